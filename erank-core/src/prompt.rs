//! The prompt: a template, an instruction, a query and a document.
//!
//! ```text
//! PromptTemplate ──bind(instruction, query)──▶ BoundPrompt ──+ document──▶ the user's message, or
//!                                                                          the whole prompt
//! ```
//!
//! The text of a template is either a user message, which a backend puts into the chat template of its model, or
//! the whole prompt, which needs no chat template.
//!
//! All documents of a query share the part before the document. [`BoundPrompt::before_document`] returns
//! that part, so that a backend can compute it once.

use std::ops::Range;

use thiserror::Error;

use crate::answer_format::AnswerFormat;

/// ERank's prompt, exactly as in its authors' code (`examples/utils.py` of Alibaba-NLP/ERank-4B).
const ERANK: &str = "\
Given a query and a document, please give a relevance score of 0~10.
The goal or relevance definition is: {instruction}

Here is the query:
{query}

Here is the document:
{doc}

After thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].
- 0 represents completely not related
- 10 means perfectly related.

Desired output format:
<think>put your thinking here</think><answer>Only allows an integer here</answer>

Your output:";

/// Qwen3-Reranker's prompt, exactly as in the code of its model card.
const QWEN3_RERANKER: &str = "\
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the \
answer can only be \"yes\" or \"no\".<|im_end|>
<|im_start|>user
<Instruct>: {instruction}
<Query>: {query}
<Document>: {doc}<|im_end|>
<|im_start|>assistant
<think>

</think>

";

/// The instructions ("the goal or relevance definition") that the models were evaluated with.
///
/// Source: arXiv 2509.00520, table 7, in its spelling; [`GENERIC`](instructions::GENERIC) is the example in
/// ERank's model card, and [`WEB_SEARCH`](instructions::WEB_SEARCH) is Qwen3-Reranker's default.
pub mod instructions {
    /// The default for any collection, from the model card.
    pub const GENERIC: &str = "Retrieve relevant documents for the query.";
    /// The instruction for BEIR and TREC Deep Learning.
    pub const BEIR: &str = "Given a query, retrieval relevant passage.";
    /// The instruction for FollowIR.
    pub const FOLLOW_IR: &str = "Retrieval the relevant passage for the given query. Be careful about the extra requirements about relevance in the query.";
    /// The instruction for the subsets of BRIGHT that have no instruction of their own below.
    pub const BRIGHT: &str = "A document is relevant if it contains information that helps answer or address the query. A document is not relevant if it doesn't contain information that helps answer the query, even if it mentions similar topics.";
    /// The instruction for BRIGHT's subset AoPS.
    pub const BRIGHT_AOPS: &str = "We want to find different but similar math problems to the query. A document is relevant if it uses the same class of functions and shares any overlapping techniques.";
    /// The instruction for BRIGHT's subset LeetCode.
    pub const BRIGHT_LEETCODE: &str = "I am looking to find different problems that share similar data structures (of any kind) or algorithms (e.g. DFS, DP, sorting, traversals, etc.). I am looking for problems that share one or both of these similarities to the query. Does the passage below share any similarities? e.g. if there was a textbook on leetcode problems, this would be in the same book even though it could be in a different chapter.";
    /// The instruction for BRIGHT's subset Pony.
    pub const BRIGHT_PONY: &str = "I will use the programming language pony. But to solve the problem above, I need to know things about pony. A passage is relevant if it contains docs that match any part (even basic parts) of the code I will have to write for the above program.";
    /// The instruction for both TheoremQA subsets of BRIGHT, questions and theorems.
    pub const BRIGHT_THEOREMQA: &str = "We want to find a document which uses the same mathematical process as the query. A document is relevant if it uses the same mathematical process as the query.";
    /// Qwen3-Reranker's default, from its model card.
    pub const WEB_SEARCH: &str =
        "Given a web search query, retrieve relevant passages that answer the query";

    /// All presets with their short names, for command lines.
    pub const PRESETS: [(&str, &str); 10] = [
        ("generic", GENERIC),
        ("beir", BEIR),
        ("trec-dl", BEIR),
        ("followir", FOLLOW_IR),
        ("bright", BRIGHT),
        ("bright-aops", BRIGHT_AOPS),
        ("bright-leetcode", BRIGHT_LEETCODE),
        ("bright-pony", BRIGHT_PONY),
        ("bright-theoremqa", BRIGHT_THEOREMQA),
        ("web-search", WEB_SEARCH),
    ];

    /// Returns the preset called `name`. Returns `None` for an unknown name.
    pub fn preset(name: &str) -> Option<&'static str> {
        PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, text)| *text)
    }
}

/// A user message, or a whole prompt, with placeholders for the instruction, the query and the document, and
/// the format of the answer that it asks for.
///
/// ```
/// use erank_core::{AnswerFormat, PromptTemplate};
///
/// let template = PromptTemplate::custom(
///     "Is this about {query}?\n{doc}\nAnswer as <think>…</think><answer>yes or no</answer>.",
///     AnswerFormat::yes_no(),
/// )?;
/// let prompt = template.bind("", "jets");
/// assert!(prompt.render("Jet noise.").starts_with("Is this about jets?\nJet noise.\n"));
/// # Ok::<(), erank_core::TemplateError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PromptTemplate {
    text: String,
    pieces: Vec<Piece>,
    answers: AnswerFormat,
    is_whole: bool,
    default_instruction: &'static str,
}

/// A range of the template's text, or a placeholder.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(Range<usize>),
    Instruction,
    Query,
    Document,
}

impl PromptTemplate {
    /// Returns ERank's own prompt with the answers 0 to 10.
    pub fn erank() -> Self {
        Self::built_in(Self::custom(ERANK, AnswerFormat::zero_to_ten()))
    }

    /// Returns the prompt of Qwen3-Reranker and of models that were fine-tuned from it. It is a whole prompt with
    /// the [bare](AnswerFormat::bare) answers `no` and `yes`. The default score is the probability of `yes`, as
    /// in the model card's code.
    ///
    /// ```
    /// use erank_core::testing::ScriptedBackend;
    /// use erank_core::{PromptTemplate, Request, Reranker, ScoreKind};
    ///
    /// // Any backend of a Qwen3-Reranker model goes here.
    /// let backend = ScriptedBackend::texts(["no", "yes"]);
    /// let reranker = Reranker::builder(backend)
    ///     .template(PromptTemplate::qwen3_reranker())
    ///     .score(ScoreKind::Integer) // needed because the script has no probabilities
    ///     .build()?;
    /// let ranking = reranker.rerank(&Request::new("jet noise", ["Bread.", "Jets are loud."]))?;
    /// assert_eq!(ranking.documents[0].index, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn qwen3_reranker() -> Self {
        let template = Self::whole(QWEN3_RERANKER, AnswerFormat::yes_no().bare());
        Self { default_instruction: instructions::WEB_SEARCH, ..Self::built_in(template) }
    }

    fn built_in(template: Result<Self, TemplateError>) -> Self {
        match template {
            Ok(template) => template,
            Err(_) => unreachable!("the built-in templates are checked by a test"),
        }
    }

    /// Creates a template whose text is the whole prompt, up to the beginning of the model's turn. Control tokens
    /// in the text are effective, and the model needs no chat template.
    ///
    /// The placeholders are those of [`custom`](Self::custom).
    ///
    /// # Errors
    /// Returns a [`TemplateError`] for the first placeholder that is missing or repeated.
    ///
    /// ```
    /// use erank_core::{AnswerFormat, PromptTemplate};
    ///
    /// let template = PromptTemplate::whole(
    ///     "<|im_start|>user\nIs this about {query}?\n{doc}<|im_end|>\n<|im_start|>assistant\n",
    ///     AnswerFormat::yes_no().bare(),
    /// )?;
    /// assert!(template.is_whole());
    /// # Ok::<(), erank_core::TemplateError>(())
    /// ```
    pub fn whole(text: impl Into<String>, answers: AnswerFormat) -> Result<Self, TemplateError> {
        Ok(Self { is_whole: true, ..Self::custom(text, answers)? })
    }

    /// Creates a template of a user message from a text with the placeholders `{query}` and `{doc}` once each,
    /// and `{instruction}` at most once. Any other brace is text.
    ///
    /// # Errors
    /// Returns a [`TemplateError`] for the first placeholder that is missing or repeated.
    pub fn custom(text: impl Into<String>, answers: AnswerFormat) -> Result<Self, TemplateError> {
        let text = text.into();
        let mut placeholders = Vec::new();
        for (name, piece, required) in [
            ("{instruction}", Piece::Instruction, false),
            ("{query}", Piece::Query, true),
            ("{doc}", Piece::Document, true),
        ] {
            let mut found = text.match_indices(name).map(|(start, _)| start);
            match (found.next(), found.next()) {
                (None, _) if required => return Err(TemplateError::Missing(name)),
                (None, _) => {}
                (Some(start), None) => placeholders.push((start..start + name.len(), piece)),
                (Some(_), Some(_)) => return Err(TemplateError::Repeated(name)),
            }
        }
        placeholders.sort_by_key(|(range, _)| range.start);

        let mut pieces = Vec::new();
        let mut done = 0;
        for (range, piece) in placeholders {
            pieces.extend((done < range.start).then_some(Piece::Text(done..range.start)));
            pieces.push(piece);
            done = range.end;
        }
        pieces.extend((done < text.len()).then_some(Piece::Text(done..text.len())));
        let default_instruction = instructions::GENERIC;
        Ok(Self { text, pieces, answers, is_whole: false, default_instruction })
    }

    /// Returns whether the text is the whole prompt. Otherwise it is a user message.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Returns the instruction for requests without one.
    pub fn default_instruction(&self) -> &'static str {
        self.default_instruction
    }

    /// Returns the answers that the prompt asks for.
    pub fn answers(&self) -> &AnswerFormat {
        &self.answers
    }

    /// Fills in the instruction and the query, which all documents share.
    pub fn bind<'a>(&'a self, instruction: &'a str, query: &'a str) -> BoundPrompt<'a> {
        BoundPrompt { template: self, instruction, query }
    }
}

impl Default for PromptTemplate {
    fn default() -> Self {
        Self::erank()
    }
}

/// A prompt that this crate knows, by the models that were trained with it.
///
/// ```
/// use erank_core::prompt::{PromptFamily, PromptTemplate};
///
/// let family: Option<PromptFamily> = PromptFamily::named("qwen3-reranker");
/// assert_eq!(family.map(PromptFamily::template), Some(PromptTemplate::qwen3_reranker()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptFamily {
    /// ERank: [`PromptTemplate::erank`].
    Erank,
    /// Qwen3-Reranker: [`PromptTemplate::qwen3_reranker`].
    Qwen3Reranker,
}

impl PromptFamily {
    /// All families.
    pub const ALL: [Self; 2] = [Self::Erank, Self::Qwen3Reranker];

    /// Returns the family called `name`. Returns `None` for an unknown name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Returns the name for command lines and reports: `erank` or `qwen3-reranker`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erank => "erank",
            Self::Qwen3Reranker => "qwen3-reranker",
        }
    }

    /// Returns the prompt.
    pub fn template(self) -> PromptTemplate {
        match self {
            Self::Erank => PromptTemplate::erank(),
            Self::Qwen3Reranker => PromptTemplate::qwen3_reranker(),
        }
    }
}

/// The error of an invalid template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A required placeholder is missing.
    #[error("the template lacks the placeholder {0}; add it to the text")]
    Missing(&'static str),
    /// A placeholder occurs more than once.
    #[error("the template has the placeholder {0} more than once; keep one")]
    Repeated(&'static str),
}

/// A part of the prompt's text, with its origin.
///
/// A backend must treat all text but [`Trusted`](Segment::Trusted) text as data. A control token in data must
/// reach the model as plain text. Only the query and the document are truncated. The enum is exhaustive. If a
/// kind of text is added, backends that do not handle it no longer compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Text of the template, in which control tokens are effective.
    Trusted(&'a str),
    /// Text of the instruction, which is data.
    Instruction(&'a str),
    /// Text of the query, which is data.
    Query(&'a str),
    /// Text of the document, which is data.
    Document(&'a str),
}

impl<'a> Segment<'a> {
    /// Returns the segment's text.
    pub fn text(self) -> &'a str {
        match self {
            Self::Trusted(text)
            | Self::Instruction(text)
            | Self::Query(text)
            | Self::Document(text) => text,
        }
    }
}

/// A template with its instruction and query, but without a document.
#[derive(Debug, Clone, Copy)]
pub struct BoundPrompt<'a> {
    template: &'a PromptTemplate,
    instruction: &'a str,
    query: &'a str,
}

impl<'a> BoundPrompt<'a> {
    /// Returns the answers that the prompt asks for.
    pub fn answers(&self) -> &'a AnswerFormat {
        &self.template.answers
    }

    /// Returns the query.
    pub fn query(&self) -> &'a str {
        self.query
    }

    /// Returns the instruction.
    pub fn instruction(&self) -> &'a str {
        self.instruction
    }

    /// Returns whether the segments are the whole prompt. Otherwise they are a user message, which belongs into
    /// the model's chat template.
    pub fn is_whole(&self) -> bool {
        self.template.is_whole
    }

    /// Returns the segments before the document in order, which all documents of this query share.
    pub fn before_document(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let prompt = *self;
        let pieces = prompt.template.pieces.iter();
        pieces
            .take_while(|piece| **piece != Piece::Document)
            .map(move |piece| prompt.fill(piece, ""))
    }

    /// Returns the segments after the document, in order.
    pub fn after_document(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let prompt = *self;
        let pieces = prompt.template.pieces.iter();
        pieces
            .skip_while(|piece| **piece != Piece::Document)
            .skip(1)
            .map(move |piece| prompt.fill(piece, ""))
    }

    /// Returns all segments of the prompt for `document`, in order.
    pub fn segments(&self, document: &'a str) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let prompt = *self;
        prompt.template.pieces.iter().map(move |piece| prompt.fill(piece, document))
    }

    /// Returns the user message, or the whole prompt, for `document` without truncation.
    pub fn render(&self, document: &str) -> String {
        let prompt = BoundPrompt { ..*self };
        prompt.segments(document).map(Segment::text).collect()
    }

    fn fill(&self, piece: &Piece, document: &'a str) -> Segment<'a> {
        match piece {
            Piece::Text(range) => Segment::Trusted(&self.template.text[range.clone()]),
            Piece::Instruction => Segment::Instruction(self.instruction),
            Piece::Query => Segment::Query(self.query),
            Piece::Document => Segment::Document(document),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of the reference's Python code, `PROMPT.format(instruction=…, query=…, doc=…)`.
    const GOLDEN: &str = "Given a query and a document, please give a relevance score of 0~10.\nThe goal or relevance definition is: Retrieve relevant documents for the query.\n\nHere is the query:\nwhat is a jet?\n\nHere is the document:\nA jet is a stream of fluid.\n\nAfter thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].\n- 0 represents completely not related\n- 10 means perfectly related.\n\nDesired output format:\n<think>put your thinking here</think><answer>Only allows an integer here</answer>\n\nYour output:";

    #[test]
    fn erank_prompt_equals_golden_text() {
        let template = PromptTemplate::erank();
        let prompt = template.bind(instructions::GENERIC, "what is a jet?");
        assert_eq!(prompt.render("A jet is a stream of fluid."), GOLDEN);
    }

    #[test]
    fn qwen3_reranker_prompt_equals_golden_text() {
        // The output of the model card's Python code, `prefix + format_instruction(None, query, doc) + suffix`.
        let golden = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: what is a jet?\n<Document>: A jet is a stream of fluid.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
        let template = PromptTemplate::qwen3_reranker();
        let prompt = template.bind(template.default_instruction(), "what is a jet?");
        assert_eq!(prompt.render("A jet is a stream of fluid."), golden);
        assert!(prompt.is_whole() && prompt.answers().is_bare());
        assert!(!PromptTemplate::erank().is_whole());
    }

    #[test]
    fn segments_equal_shared_part_document_and_rest() {
        let template = PromptTemplate::erank();
        let prompt = template.bind("i", "q");
        let text = |segments: Vec<Segment<'_>>| -> String {
            segments.into_iter().map(Segment::text).collect()
        };
        let whole = text(prompt.before_document().collect())
            + "the document"
            + &text(prompt.after_document().collect());
        assert_eq!(whole, prompt.render("the document"));
        assert!(prompt.before_document().any(|segment| segment == Segment::Query("q")));
    }

    #[test]
    fn render_ignores_placeholders_in_data() {
        let template = PromptTemplate::erank();
        let rendered = template.bind("{doc}", "{instruction}").render("{query}");
        assert!(rendered.contains("definition is: {doc}\n"));
        assert!(rendered.contains("the query:\n{instruction}\n"));
        assert!(rendered.contains("the document:\n{query}\n"));
    }

    #[test]
    fn custom_rejects_missing_and_repeated_placeholders() {
        let custom = |text: &str| PromptTemplate::custom(text, AnswerFormat::zero_to_ten());
        assert_eq!(custom("{doc}"), Err(TemplateError::Missing("{query}")));
        assert_eq!(custom("{query}"), Err(TemplateError::Missing("{doc}")));
        assert_eq!(custom("{doc}{query}{doc}"), Err(TemplateError::Repeated("{doc}")));
        assert_eq!(
            custom("{instruction}{instruction}{query}{doc}"),
            Err(TemplateError::Repeated("{instruction}"))
        );
        let json = custom("{\"a\": {query}, \"b\": {doc}}").expect("other braces are text");
        assert_eq!(json.bind("", "1").render("2"), "{\"a\": 1, \"b\": 2}");
    }

    #[test]
    fn preset_finds_names() {
        assert_eq!(instructions::preset("trec-dl"), Some(instructions::BEIR));
        assert_eq!(instructions::preset("nope"), None);
    }
}

//! The prompt: a template, an instruction, a query and a document.
//!
//! ```text
//! PromptTemplate ──bind(instruction, query)──▶ BoundPrompt ──+ document──▶ the user's message
//! ```
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

/// The instructions ("the goal or relevance definition") that ERank was evaluated with.
///
/// Source: arXiv 2509.00520, table 7, in its spelling; [`GENERIC`](instructions::GENERIC) is the
/// model card's example.
pub mod instructions {
    /// The default for any collection, from the model card.
    pub const GENERIC: &str = "Retrieve relevant documents for the query.";
    /// The instruction for BEIR and TREC Deep Learning.
    pub const BEIR: &str = "Given a query, retrieval relevant passage.";
    /// The instruction for FollowIR.
    pub const FOLLOW_IR: &str = "Retrieval the relevant passage for the given query. Be careful about the extra requirements about relevance in the query.";
    /// The instruction for most subsets of BRIGHT.
    pub const BRIGHT: &str = "A document is relevant if it contains information that helps answer or address the query. A document is not relevant if it doesn't contain information that helps answer the query, even if it mentions similar topics.";

    /// All presets with their short names, for command lines.
    pub const PRESETS: [(&str, &str); 5] = [
        ("generic", GENERIC),
        ("beir", BEIR),
        ("trec-dl", BEIR),
        ("followir", FOLLOW_IR),
        ("bright", BRIGHT),
    ];

    /// Returns the preset called `name`. Returns `None` for an unknown name.
    pub fn preset(name: &str) -> Option<&'static str> {
        PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, text)| *text)
    }
}

/// A user message with placeholders for the instruction, the query and the document, and the format of
/// the answer that it asks for.
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
        match Self::custom(ERANK, AnswerFormat::zero_to_ten()) {
            Ok(template) => template,
            Err(_) => unreachable!("the built-in template is checked by a test"),
        }
    }

    /// Creates a template from a text with the placeholders `{query}` and `{doc}` once each, and
    /// `{instruction}` at most once. Any other brace is text.
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
        Ok(Self { text, pieces, answers })
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
/// A backend must treat the text of [`Query`](Segment::Query) and [`Document`](Segment::Document) as
/// data. A control token in them must reach the model as plain text. Only these two are truncated. The enum
/// is exhaustive. If a kind of text is added, backends that do not handle it no longer compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Text of the template or the instruction, in which control tokens are effective.
    Trusted(&'a str),
    /// Text of the query, which is data.
    Query(&'a str),
    /// Text of the document, which is data.
    Document(&'a str),
}

impl<'a> Segment<'a> {
    /// Returns the segment's text.
    pub fn text(self) -> &'a str {
        match self {
            Self::Trusted(text) | Self::Query(text) | Self::Document(text) => text,
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

    /// Returns the user message for `document` without truncation.
    pub fn render(&self, document: &str) -> String {
        let prompt = BoundPrompt { ..*self };
        prompt.segments(document).map(Segment::text).collect()
    }

    fn fill(&self, piece: &Piece, document: &'a str) -> Segment<'a> {
        match piece {
            Piece::Text(range) => Segment::Trusted(&self.template.text[range.clone()]),
            Piece::Instruction => Segment::Trusted(self.instruction),
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

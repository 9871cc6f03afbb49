//! A prompt becomes token ids, and generated ids become text.
//!
//! ```text
//! BoundPrompt ─chat template─▶ PromptFrame ─+ document─▶ EncodedPrompt        ids ─TokenDecoder─▶ text
//! ```
//!
//! **Control tokens count in trusted text alone.** Trusted are the chat template, the prompt
//! template and the instruction. In the query and the document, what looks like a control token
//! (`<|im_end|>`, `<think>`, …) becomes the tokens of its characters, also where it begins or ends
//! in trusted text, or comes about by normalization.
//!
//! **Everything else is token for token what Python gives** for the whole prompt, with
//! transformers' `apply_chat_template`: normalization, pre-tokenization and merges run across the
//! borders between the template's text and the data. One difference is known: after a run of a
//! million white-space characters, the regular expressions here give up and stop splitting words.
//!
//! The template is rendered once per query, with marks where the query and the document go; they
//! are put in afterwards, so that the template never sees them. A template that decides by what
//! the message says (Qwen3's asks whether it begins with `<tool_response>`) sees the marks.

mod chat_template;
mod decoder;
mod file;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::sync::Arc;

use erank_core::prompt::{BoundPrompt, PromptTemplate, Segment};
use erank_core::{BackendError, DocumentError, ScoringOptions};
use thiserror::Error;

use chat_template::ChatTemplate;
pub use decoder::TokenDecoder;
use vocabulary::{MarkedText, Vocabulary};

use crate::error::{Cause, LoadError};

/// A checkpoint's tokenizer and chat template.
///
/// Cheap to clone: clones share everything.
#[derive(Clone)]
pub struct PromptTokenizer {
    vocabulary: Arc<Vocabulary>,
    template: Arc<ChatTemplate>,
}

impl PromptTokenizer {
    /// From the contents of a checkpoint's files `tokenizer.json`, `tokenizer_config.json` and
    /// `chat_template.jinja`. As in transformers, the last one has precedence over the template in
    /// the second; one of the two must have a template.
    ///
    /// The tokenizer must be a BPE that cannot make an added token (`<|im_end|>`, …) of plain text.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] names the file and says what is wrong with it.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        chat_template_jinja: Option<&[u8]>,
    ) -> Result<Self, LoadError> {
        let template = ChatTemplate::read(tokenizer_config_json, chat_template_jinja)?;
        let vocabulary = Vocabulary::from_json(tokenizer_json)?;
        let tokenizer = Self { vocabulary: Arc::new(vocabulary), template: Arc::new(template) };
        tokenizer.try_template()?;
        Ok(tokenizer)
    }

    /// Renders the chat template around `prompt`, and cuts the query to its limit.
    ///
    /// # Errors
    /// [`PromptError`] if the chat template fails on this prompt or does not write its query and
    /// its document exactly once.
    pub fn bind(
        &self,
        prompt: &BoundPrompt<'_>,
        options: &ScoringOptions,
    ) -> Result<PromptFrame, PromptError> {
        let query = self.vocabulary.truncate(prompt.query(), options.max_query_tokens);
        let query = query.map_err(PromptError::Tokenizer)?;
        let (before, after) = self.render(prompt, query)?;
        Ok(PromptFrame {
            vocabulary: Arc::clone(&self.vocabulary),
            before,
            after,
            query_truncated: query.len() < prompt.query().len(),
            max_document_tokens: options.max_document_tokens,
        })
    }

    /// The ids of trusted text, in which control tokens count: text that is forced upon the model,
    /// such as `</think><answer>`, or an answer's label.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`] if the tokenizer has no tokens for the text.
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let mut trusted = MarkedText::default();
        trusted.push_trusted(text);
        self.vocabulary.encode(&trusted).map_err(PromptError::Tokenizer)
    }

    /// Decodes generated ids one by one.
    pub fn decoder(&self) -> TokenDecoder {
        TokenDecoder::new(Arc::clone(&self.vocabulary))
    }

    /// One more than the largest token id: the rows that the model's embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The token that ends a turn, by `tokenizer_config.json`, if it names one of the vocabulary.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.template.eos_token().and_then(|token| self.token_to_id(token))
    }

    /// The id of the token that is written `token` in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// Whether `id` is an added token, such as `<|im_end|>` or `<think>`: one that plain text never
    /// becomes.
    pub fn is_added(&self, id: u32) -> bool {
        self.vocabulary.added(id).is_some()
    }

    /// Whether `id` is an added token that decoding leaves out, such as `<|im_end|>`.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.added(id).is_some_and(|token| token.special)
    }

    /// What `id` stands for, for people to read: U+FFFD for parts of characters, nothing for an
    /// unknown id.
    pub fn token_text(&self, id: u32) -> String {
        match self.vocabulary.added(id) {
            Some(token) => token.content.clone(),
            None => {
                let bytes = self.vocabulary.decode(id).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }

    /// A template that cannot be used with any prompt is an error when the model is loaded.
    fn try_template(&self) -> Result<(), LoadError> {
        let prompt = PromptTemplate::erank();
        let rendered = self.render(&prompt.bind("", ""), "");
        let unusable =
            |cause| LoadError::unparsable(self.template.file(), "no prompt from it", cause);
        match rendered {
            Ok(_) => Ok(()),
            Err(PromptError::Template(cause)) => Err(unusable(cause)),
            Err(error) => Err(unusable(error.into())),
        }
    }

    /// The rendered prompt before and after the document.
    fn render(
        &self,
        prompt: &BoundPrompt<'_>,
        query: &str,
    ) -> Result<(MarkedText, MarkedText), PromptError> {
        let marks = Marks::new(prompt, &self.template);
        let message: String = prompt.segments("").map(|segment| marks.text(segment)).collect();
        let rendered = self.template.render(&message);
        let rendered = rendered.map_err(|error| PromptError::Template(error.into()))?;
        for (field, mark) in [("query", &marks.query), ("document", &marks.document)] {
            match rendered.matches(mark.as_str()).count() {
                0 => return Err(PromptError::Lost(field)),
                1 => {}
                _ => return Err(PromptError::Repeated(field)),
            }
        }
        let (before, after) = rendered.split_once(&marks.document).unwrap_or((&rendered, ""));
        Ok((marks.fill_in(before, query), marks.fill_in(after, query)))
    }
}

impl std::fmt::Debug for PromptTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("template", &self.template)
            .finish()
    }
}

/// What stands for the query and the document while the chat template runs.
struct Marks {
    query: String,
    document: String,
}

impl Marks {
    /// Marks that occur in neither the template nor the trusted text of the prompt.
    fn new(prompt: &BoundPrompt<'_>, template: &ChatTemplate) -> Self {
        let is_free = |mark: &String| {
            !template.contains(mark) && !prompt.segments("").any(|part| part.text().contains(mark))
        };
        Self {
            query: Self::candidates("query").find(is_free).unwrap_or_default(),
            document: Self::candidates("document").find(is_free).unwrap_or_default(),
        }
    }

    /// Each holds what a template could change in data: white space at its ends that it could
    /// trim, characters that it could escape, letters whose case it could change. Such a template
    /// loses the mark, which is an error and not a silent difference.
    fn candidates(field: &str) -> impl Iterator<Item = String> {
        (0_u64..).map(move |number| format!("\n <{field} É&\"'\\ {number}> \n"))
    }

    fn text(&self, segment: Segment<'_>) -> String {
        match segment {
            Segment::Trusted(text) => text.to_owned(),
            Segment::Query(_) => self.query.clone(),
            Segment::Document(_) => self.document.clone(),
        }
    }

    /// A part of the rendered prompt without the document, with the query in its place.
    fn fill_in(&self, rendered: &str, query: &str) -> MarkedText {
        let mut text = MarkedText::default();
        match rendered.split_once(&self.query) {
            None => text.push_trusted(rendered),
            Some((before, after)) => {
                text.push_trusted(before);
                text.push_data(query);
                text.push_trusted(after);
            }
        }
        text
    }
}

/// A rendered prompt that lacks only its document. May be shared by threads.
#[derive(Clone)]
pub struct PromptFrame {
    vocabulary: Arc<Vocabulary>,
    before: MarkedText,
    after: MarkedText,
    query_truncated: bool,
    max_document_tokens: usize,
}

impl PromptFrame {
    /// The ids of the prompt for `document`.
    ///
    /// The query and the document are cut to the tokens that [`ScoringOptions`] allows: tokenized
    /// alone, and kept up to the end of the last token that fits. In Python that is
    /// `tokenizer.decode(ids[:n])`, but that a character of which only a part fits is left out here,
    /// where Python keeps U+FFFD for it (or, if normalization took the character apart, the part).
    /// Tokenized within the prompt, the end of a cut text may merge with what follows.
    ///
    /// # Errors
    /// [`DocumentError::Backend`] if the tokenizer has no tokens for the text.
    pub fn encode(&self, document: &str) -> Result<EncodedPrompt, DocumentError> {
        let kept = self.truncate(document)?;
        let ids = self.vocabulary.encode(&self.fill_in(kept)).map_err(PromptError::Tokenizer)?;
        Ok(EncodedPrompt {
            ids,
            query_truncated: self.query_truncated,
            document_truncated: kept.len() < document.len(),
        })
    }

    /// The text that [`encode`](Self::encode) tokenizes: the rendered prompt with the query and
    /// the document cut to their limits.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn text(&self, document: &str) -> Result<String, DocumentError> {
        let kept = self.truncate(document)?;
        Ok(self.fill_in(kept).as_str().to_owned())
    }

    /// Whether the prompt ends with a `<think>` of the chat template's own, so that what the model
    /// generates begins inside the thought.
    pub fn opens_thought(&self) -> bool {
        self.after.trusted_end().trim_end().ends_with(erank_core::tags::THINK_OPEN)
    }

    fn truncate<'a>(&self, document: &'a str) -> Result<&'a str, PromptError> {
        self.vocabulary.truncate(document, self.max_document_tokens).map_err(PromptError::Tokenizer)
    }

    fn fill_in(&self, document: &str) -> MarkedText {
        let mut text = self.before.clone();
        text.push_data(document);
        text.append(&self.after);
        text
    }
}

impl std::fmt::Debug for PromptFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptFrame")
            .field("before", &self.before)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedPrompt {
    /// The token ids.
    pub ids: Vec<u32>,
    /// Whether the query was cut to its limit.
    pub query_truncated: bool,
    /// Whether the document was cut to its limit.
    pub document_truncated: bool,
}

/// Why a prompt cannot be brought into the model's form.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The chat template failed, or refused the prompt.
    #[error("the chat template fails on this prompt")]
    Template(#[source] Cause),
    /// The rendered prompt lacks the query or the document.
    #[error(
        "the chat template drops or changes the {0}; if it trims messages, let the prompt template \
         begin and end with text of its own"
    )]
    Lost(&'static str),
    /// The rendered prompt has the query or the document more than once.
    #[error("the chat template writes the {0} more than once")]
    Repeated(&'static str),
    /// The tokenizer cannot encode the text.
    #[error("the tokenizer cannot encode the text")]
    Tokenizer(#[source] Cause),
}

impl From<PromptError> for BackendError {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Tokenizer(_) => Self::Failed(Box::new(error)),
            _ => Self::Unsupported(Box::new(error)),
        }
    }
}

impl From<PromptError> for DocumentError {
    fn from(error: PromptError) -> Self {
        Self::Backend(Box::new(error))
    }
}

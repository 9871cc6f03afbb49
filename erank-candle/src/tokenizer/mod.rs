//! Prompts to token ids, and generated ids to text.
//!
//! ```text
//! BoundPrompt ─chat template─▶ PromptFrame ─+ document─▶ EncodedPrompt        ids ─TokenDecoder─▶ text
//! ```
//!
//! # Added tokens in data
//!
//! Added tokens (`<|im_end|>`, `<think>`, …) count only in trusted text: the chat template, the
//! prompt template and the instruction. In the query and the document, a text that looks like an
//! added token is encoded as plain text. The same holds if the text begins or ends in trusted text,
//! or if normalization produces it.
//!
//! # Equality with transformers
//!
//! All other text gets the ids of transformers' `apply_chat_template` for the whole prompt. Normalization,
//! pre-tokenization and merges run across the boundaries between trusted text and data. One difference is
//! known. After a run of a million white-space characters, the regular expressions used here fail and stop
//! splitting words.
//!
//! # Placeholders
//!
//! The chat template is rendered once per query, with placeholders for the query and the document,
//! which are inserted afterwards. So the template never sees the query and the document. Conditions
//! on the message test the placeholders instead, for example Qwen3's condition that the message
//! begins with `<tool_response>`.

mod chat_template;
mod decoder;
mod file;
mod strftime;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::sync::Arc;

use erank_core::prompt::{BoundPrompt, PromptTemplate, Segment};
use erank_core::{BackendError, DocumentError, ScoringOptions};
use thiserror::Error;

use chat_template::ChatTemplate;
pub use decoder::TokenDecoder;
pub(crate) use file::QWEN_PATTERN;
use vocabulary::{MarkedText, Vocabulary};

use crate::error::{Cause, LoadError};

/// A checkpoint's tokenizer and chat template.
///
/// Clones share all data and are cheap.
#[derive(Clone)]
pub struct PromptTokenizer {
    vocabulary: Arc<Vocabulary>,
    template: Arc<ChatTemplate>,
}

impl PromptTokenizer {
    /// Creates a tokenizer from the contents of `tokenizer.json`, `tokenizer_config.json` and
    /// `chat_template.jinja`.
    ///
    /// One of the last two files must contain a chat template. If both do, `chat_template.jinja` is
    /// used, as in transformers. The tokenizer's model must be BPE, and must not be able to produce
    /// an added token, such as `<|im_end|>`, from plain text.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the reason.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        chat_template_jinja: Option<&[u8]>,
    ) -> Result<Self, LoadError> {
        let template = ChatTemplate::new(tokenizer_config_json, chat_template_jinja)?;
        let vocabulary = Vocabulary::from_json(tokenizer_json)?;
        let tokenizer = Self { vocabulary: Arc::new(vocabulary), template: Arc::new(template) };
        tokenizer.check_template()?;
        Ok(tokenizer)
    }

    /// Renders the chat template for `prompt`, and truncates the query to its limit.
    ///
    /// # Errors
    /// Returns a [`PromptError`] if the chat template fails on this prompt, or if it does not output
    /// the query and the document exactly once.
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

    /// Encodes trusted text, in which added tokens count. Examples are forced text, such as
    /// `</think><answer>`, and the labels of answers.
    ///
    /// # Errors
    /// Returns [`PromptError::Tokenizer`] if the tokenizer cannot encode the text.
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let mut trusted = MarkedText::default();
        trusted.push_trusted(text);
        self.vocabulary.encode(&trusted).map_err(PromptError::Tokenizer)
    }

    /// Returns a streaming decoder for generated ids.
    pub fn decoder(&self) -> TokenDecoder {
        TokenDecoder::new(Arc::clone(&self.vocabulary))
    }

    /// Returns one more than the largest token id. The embedding must have at least this number of rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// Returns the id of the `eos_token` of `tokenizer_config.json`, if the vocabulary contains it.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.template.eos_token().and_then(|token| self.token_to_id(token))
    }

    /// Returns the id of a token, given as it is written in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// Returns whether `id` is an added token, such as `<|im_end|>` or `<think>`. Plain text is never
    /// encoded as an added token.
    pub fn is_added(&self, id: u32) -> bool {
        self.vocabulary.added(id).is_some()
    }

    /// Returns whether `id` is a special token, such as `<|im_end|>`. Special tokens are the added tokens
    /// that decoding skips.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.added(id).is_some_and(|token| token.special)
    }

    /// Returns the text of a token for display. Parts of characters become U+FFFD. The text of an
    /// unknown id is empty.
    pub fn token_text(&self, id: u32) -> String {
        match self.vocabulary.added(id) {
            Some(token) => token.content.clone(),
            None => {
                let bytes = self.vocabulary.decode(id).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }

    /// Renders a prompt to detect chat templates that fail on all prompts.
    fn check_template(&self) -> Result<(), LoadError> {
        let prompt = PromptTemplate::erank();
        let rendered = self.render(&prompt.bind("", ""), "");
        let unusable = |cause| {
            LoadError::unparsable(
                self.template.file(),
                "the chat template cannot be rendered",
                cause,
            )
        };
        match rendered {
            Ok(_) => Ok(()),
            Err(PromptError::Template(cause)) => Err(unusable(cause)),
            Err(error) => Err(unusable(error.into())),
        }
    }

    /// Renders the chat template. Returns the text before the document and the text after it.
    fn render(
        &self,
        prompt: &BoundPrompt<'_>,
        query: &str,
    ) -> Result<(MarkedText, MarkedText), PromptError> {
        let placeholders = Placeholders::new(prompt, &self.template);
        let message: String =
            prompt.segments("").map(|segment| placeholders.text(segment)).collect();
        let rendered = self.template.render(&message);
        let rendered = rendered.map_err(|error| PromptError::Template(error.into()))?;
        for (field, placeholder) in
            [("query", &placeholders.query), ("document", &placeholders.document)]
        {
            match rendered.matches(placeholder.as_str()).count() {
                0 => return Err(PromptError::MissingField(field)),
                1 => {}
                _ => return Err(PromptError::RepeatedField(field)),
            }
        }
        let (before, after) =
            rendered.split_once(&placeholders.document).unwrap_or((&rendered, ""));
        Ok((placeholders.insert_query(before, query), placeholders.insert_query(after, query)))
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

/// The texts that stand for the query and the document while the chat template runs.
struct Placeholders {
    query: String,
    document: String,
}

impl Placeholders {
    /// Chooses placeholders that occur neither in the chat template nor in the prompt's trusted text.
    fn new(prompt: &BoundPrompt<'_>, template: &ChatTemplate) -> Self {
        let is_unused = |placeholder: &String| {
            !template.contains(placeholder)
                && !prompt.segments("").any(|part| part.text().contains(placeholder))
        };
        Self {
            query: Self::candidates("query").find(is_unused).unwrap_or_default(),
            document: Self::candidates("document").find(is_unused).unwrap_or_default(),
        }
    }

    /// Returns the possible placeholders for a field.
    ///
    /// Each contains characters that a template may change in data: white space at the ends
    /// (trimming), special characters (escaping) and letters (case). If a template changes them, the
    /// placeholder is missing from its output, which is reported as an error.
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

    /// Replaces the query's placeholder by the query, in a part of the rendered prompt that does not
    /// contain the document.
    fn insert_query(&self, rendered: &str, query: &str) -> MarkedText {
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

/// A rendered prompt without its document. Threads may share it.
#[derive(Clone)]
pub struct PromptFrame {
    vocabulary: Arc<Vocabulary>,
    before: MarkedText,
    after: MarkedText,
    query_truncated: bool,
    max_document_tokens: usize,
}

impl PromptFrame {
    /// Encodes the prompt for `document`.
    ///
    /// The query and the document are truncated to the limits of [`ScoringOptions`]. Each text is
    /// tokenized alone and kept up to the end of the last token that fits, as
    /// `tokenizer.decode(ids[:n])` does in Python. There is one difference. If only a part of a character
    /// fits, the character is removed here, while Python keeps U+FFFD for it (or, if normalization decomposed
    /// the character, the part). Afterwards the whole prompt is tokenized, so the end of a truncated text may
    /// merge with the text that follows it.
    ///
    /// # Errors
    /// Returns [`DocumentError::Backend`] if the tokenizer cannot encode the text.
    pub fn encode(&self, document: &str) -> Result<EncodedPrompt, DocumentError> {
        let kept = self.truncate(document)?;
        let ids =
            self.vocabulary.encode(&self.insert_document(kept)).map_err(PromptError::Tokenizer)?;
        Ok(EncodedPrompt {
            ids,
            query_truncated: self.query_truncated,
            document_truncated: kept.len() < document.len(),
        })
    }

    /// Returns the text that [`encode`](Self::encode) tokenizes: the rendered prompt with the query
    /// and the document truncated to their limits.
    ///
    /// # Errors
    /// Returns the same errors as [`encode`](Self::encode).
    pub fn text(&self, document: &str) -> Result<String, DocumentError> {
        let kept = self.truncate(document)?;
        Ok(self.insert_document(kept).as_str().to_owned())
    }

    /// Returns whether the prompt ends with `<think>`, written by the chat template. The generated
    /// text then begins inside the thought.
    pub fn opens_thought(&self) -> bool {
        self.after.trusted_end().trim_end().ends_with(erank_core::tags::THINK_OPEN)
    }

    fn truncate<'a>(&self, document: &'a str) -> Result<&'a str, PromptError> {
        self.vocabulary.truncate(document, self.max_document_tokens).map_err(PromptError::Tokenizer)
    }

    fn insert_document(&self, document: &str) -> MarkedText {
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

/// An encoded prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedPrompt {
    /// The token ids.
    pub ids: Vec<u32>,
    /// Whether the query was truncated to its limit.
    pub query_truncated: bool,
    /// Whether the document was truncated to its limit.
    pub document_truncated: bool,
}

/// An error of rendering or encoding a prompt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The chat template failed, or raised an exception.
    #[error("cannot render the chat template for this prompt")]
    Template(#[source] Cause),
    /// The rendered prompt does not contain the query or the document unchanged.
    #[error(
        "the chat template drops or changes the {0}; if it trims messages, begin and end the prompt \
         template with fixed text"
    )]
    MissingField(&'static str),
    /// The rendered prompt contains the query or the document more than once.
    #[error("the chat template outputs the {0} more than once")]
    RepeatedField(&'static str),
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

//! Prompts to token ids, and generated ids to text.
//!
//! ```text
//! BoundPrompt ─chat template─▶ PromptFrame ─+ document─▶ EncodedPrompt        ids ─TokenDecoder─▶ text
//! ```
//!
//! A [whole](erank_core::PromptTemplate::whole) prompt needs no chat template.
//!
//! # Added tokens in data
//!
//! Added tokens (`<|im_end|>`, `<think>`, …) count only in trusted text: the chat template and the prompt
//! template. In the instruction, the query and the document, a text that looks like an added token is
//! encoded as plain text. The same holds if the text begins or ends in trusted text,
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
//! The chat template is rendered once per query, with placeholders for the instruction, the query and the document,
//! which are inserted afterwards. So the template never sees them. Conditions on the message test the placeholders
//! instead, for example Qwen3's condition that the message begins with `<tool_response>`.

mod chat_template;
mod decoder;
mod file;
mod strftime;
mod template_scan;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::sync::Arc;

use erank_core::prompt::{BoundPrompt, Segment};
use erank_core::{BackendError, CancellationToken, DocumentError, ScoringOptions};
use thiserror::Error;

use chat_template::{ChatTemplate, TokenizerConfig};
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
    /// `None` if the checkpoint has none.
    template: Option<Arc<ChatTemplate>>,
    eos_token: Option<String>,
    /// The tokens that `tokenizer_config.json` declares and `tokenizer.json` lacks.
    missing_tokens: Arc<[String]>,
}

impl PromptTokenizer {
    /// Creates a tokenizer from the contents of `tokenizer.json`, `tokenizer_config.json` and
    /// `chat_template.jinja`.
    ///
    /// If both of the last two files contain a chat template, `chat_template.jinja` is used, as in
    /// transformers. Without a chat template, only [whole](erank_core::PromptTemplate::whole) prompts can be
    /// bound. The tokenizer's model must be BPE, and must not be able to produce an added token, such as
    /// `<|im_end|>`, from plain text.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the reason.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        chat_template_jinja: Option<&[u8]>,
    ) -> Result<Self, LoadError> {
        let config = TokenizerConfig::from_json(tokenizer_config_json)?;
        let template = ChatTemplate::new(&config, chat_template_jinja)?;
        let vocabulary = Vocabulary::from_json(tokenizer_json)?;
        let mut missing_tokens = config.declared_tokens();
        missing_tokens.retain(|token| vocabulary.id(token).is_none());
        // transformers would add the token to the vocabulary, so the prompt would have other ids.
        let source = chat_template::source(&config, chat_template_jinja)?;
        let source = source.map(|(source, _)| source).unwrap_or_default();
        let is_written = |token: &&String| {
            let mut variables = config.variables(token);
            source.contains(&**token) || variables.any(|name| source.contains(name))
        };
        if let Some(token) = missing_tokens.iter().find(is_written) {
            let reason = format!(
                "it lacks the token {token:?}, which tokenizer_config.json declares and the chat template writes; \
                 save both files from one tokenizer"
            );
            return Err(LoadError::invalid("tokenizer.json", reason));
        }
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            template: template.map(Arc::new),
            eos_token: config.eos_token()?,
            missing_tokens: missing_tokens.into(),
        })
    }

    /// Returns the source of the chat template, given the contents of `tokenizer_config.json` and
    /// `chat_template.jinja`.
    pub(crate) fn chat_template(
        tokenizer_config_json: Option<&[u8]>,
        chat_template_jinja: Option<&[u8]>,
    ) -> Result<Option<String>, LoadError> {
        let config = TokenizerConfig::from_json(tokenizer_config_json)?;
        let found = chat_template::source(&config, chat_template_jinja)?;
        Ok(found.map(|(source, _)| source))
    }

    /// Returns the name of the file with the chat template, if the checkpoint has one.
    pub fn chat_template_file(&self) -> Option<&'static str> {
        self.template.as_ref().map(|template| template.file())
    }

    /// Returns the tokens that `tokenizer_config.json` declares and `tokenizer.json` lacks. They are plain text here;
    /// transformers would add them to the vocabulary. The chat template writes none of them.
    pub fn missing_tokens(&self) -> &[String] {
        &self.missing_tokens
    }

    /// Renders the chat template for `prompt`, unless it is a whole prompt, and truncates the query to its
    /// limit.
    ///
    /// # Errors
    /// Returns a [`PromptError`] if there is no chat template, if it fails on this prompt, or if it does not
    /// output the instruction, the query and the document exactly once.
    pub fn bind(
        &self,
        prompt: &BoundPrompt<'_>,
        options: &ScoringOptions,
    ) -> Result<PromptFrame, PromptError> {
        let query = self
            .vocabulary
            .truncate(prompt.query(), options.max_query_tokens, &CancellationToken::new())
            .map_err(PromptError::Tokenizer)?;
        let (before, after) = match prompt.is_whole() {
            true => {
                (marked(prompt.before_document(), query), marked(prompt.after_document(), query))
            }
            false => self.render(prompt, query)?,
        };
        Ok(PromptFrame {
            vocabulary: Arc::clone(&self.vocabulary),
            before,
            after,
            query_truncated: query.len() < prompt.query().len(),
            max_document_tokens: options.max_document_tokens,
            max_prompt_tokens: options.max_prompt_tokens,
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

    /// Returns the ends of the first `max_tokens` tokens of `text`, as byte offsets in ascending order. The text is
    /// data, and is tokenized alone, as a document is for its limit of tokens. A token that ends within a character
    /// ends before it. If there are fewer tokens, the last end is the length of the text.
    ///
    /// # Errors
    /// Returns [`PromptError::Tokenizer`] if the tokenizer cannot encode the text.
    pub fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, PromptError> {
        self.vocabulary.token_ends(text, max_tokens).map_err(PromptError::Tokenizer)
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
        self.eos_token.as_deref().and_then(|token| self.token_to_id(token))
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

    /// Renders the chat template. Returns the text before the document and the text after it.
    fn render(
        &self,
        prompt: &BoundPrompt<'_>,
        query: &str,
    ) -> Result<(MarkedText, MarkedText), PromptError> {
        let template = self.template.as_deref().ok_or(PromptError::NoChatTemplate)?;
        let placeholders = Placeholders::new(prompt, template);
        let message: String =
            prompt.segments("").map(|segment| placeholders.text(segment)).collect();
        let rendered = template.render(&message);
        let rendered = rendered.map_err(|error| PromptError::Template(error.into()))?;
        for segment in prompt.segments("") {
            let (field, placeholder) = match segment {
                Segment::Trusted(_) => continue,
                Segment::Instruction(_) => ("instruction", &placeholders.instruction),
                Segment::Query(_) => ("query", &placeholders.query),
                Segment::Document(_) => ("document", &placeholders.document),
            };
            match rendered.matches(placeholder.as_str()).count() {
                0 => return Err(PromptError::MissingField(field)),
                1 => {}
                _ => return Err(PromptError::RepeatedField(field)),
            }
        }
        let (before, after) =
            rendered.split_once(&placeholders.document).unwrap_or((&rendered, ""));
        let fields = placeholders.fields(prompt.instruction(), query);
        Ok((insert(before, &fields), insert(after, &fields)))
    }
}

/// Returns the text of segments without the document, in which `query` replaces the query.
fn marked<'a>(segments: impl Iterator<Item = Segment<'a>>, query: &str) -> MarkedText {
    let mut text = MarkedText::default();
    for segment in segments {
        match segment {
            Segment::Trusted(trusted) => text.push_trusted(trusted),
            Segment::Instruction(instruction) => text.push_data(instruction),
            Segment::Query(_) => text.push_data(query),
            Segment::Document(document) => text.push_data(document),
        }
    }
    text
}

impl std::fmt::Debug for PromptTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("template", &self.template)
            .finish()
    }
}

/// The texts that stand for the instruction, the query and the document while the chat template runs.
struct Placeholders {
    instruction: String,
    query: String,
    document: String,
}

impl Placeholders {
    /// Chooses placeholders that occur neither in the chat template nor in the prompt's texts.
    fn new(prompt: &BoundPrompt<'_>, template: &ChatTemplate) -> Self {
        let is_unused = |placeholder: &String| {
            !template.contains(placeholder)
                && !prompt.segments("").any(|part| part.text().contains(placeholder))
        };
        Self {
            instruction: Self::candidates("instruction").find(is_unused).unwrap_or_default(),
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
            Segment::Instruction(_) => self.instruction.clone(),
            Segment::Query(_) => self.query.clone(),
            Segment::Document(_) => self.document.clone(),
        }
    }

    /// Returns the placeholders before and after the document, each with the text that replaces it.
    fn fields<'a>(&'a self, instruction: &'a str, query: &'a str) -> [(&'a str, &'a str); 2] {
        [(&self.instruction, instruction), (&self.query, query)]
    }
}

/// Replaces placeholders by data, in a part of the rendered prompt that does not contain the document.
fn insert(rendered: &str, fields: &[(&str, &str)]) -> MarkedText {
    let mut text = MarkedText::default();
    let mut rest = rendered;
    let first = |rest: &str| {
        let found = fields.iter().filter_map(|field| Some((rest.find(field.0)?, *field)));
        found.min_by_key(|(start, _)| *start)
    };
    while let Some((start, (placeholder, data))) = first(rest) {
        text.push_trusted(&rest[..start]);
        text.push_data(data);
        rest = &rest[start + placeholder.len()..];
    }
    text.push_trusted(rest);
    text
}

/// A rendered prompt without its document. Threads may share it.
#[derive(Clone)]
pub struct PromptFrame {
    vocabulary: Arc<Vocabulary>,
    before: MarkedText,
    after: MarkedText,
    query_truncated: bool,
    max_document_tokens: usize,
    max_prompt_tokens: Option<usize>,
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
    /// Memory depends on the limits, not on the length of the texts. Of a long text, only a beginning is tokenized: as
    /// many bytes as the limit's tokens could come from. If it is one word without a boundary, its last token before
    /// the limit may differ from Python's. So may the end of a text of which the tokenizer removes more than 15 of 16
    /// bytes.
    ///
    /// # Errors
    /// Returns [`DocumentError::Backend`] if the tokenizer cannot encode the text, and
    /// [`DocumentError::PromptTooLong`] if the prompt without the document exceeds
    /// [`max_prompt_tokens`](ScoringOptions::max_prompt_tokens).
    pub fn encode(&self, document: &str) -> Result<EncodedPrompt, DocumentError> {
        self.encode_with_cancellation(document, &CancellationToken::new())
    }

    /// Encodes the prompt for `document`, as [`encode`](Self::encode) does, unless it is cancelled.
    ///
    /// # Errors
    /// Returns [`DocumentError::Cancelled`], or the errors of [`encode`](Self::encode).
    pub(crate) fn encode_with_cancellation(
        &self,
        document: &str,
        cancellation: &CancellationToken,
    ) -> Result<EncodedPrompt, DocumentError> {
        let (kept, ids) = self.fit(document, cancellation)?;
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
        let (kept, _) = self.fit(document, &CancellationToken::new())?;
        Ok(self.insert_document(kept).as_str().to_owned())
    }

    /// Returns whether the prompt ends with `<think>`, written by the chat template. The generated
    /// text then begins inside the thought.
    pub fn opens_thought(&self) -> bool {
        self.after.trusted_end().trim_end().ends_with(erank_core::tags::THINK_OPEN)
    }

    /// Returns the beginning of the document that fits the limits, and the ids of its prompt.
    fn fit<'a>(
        &self,
        document: &'a str,
        cancellation: &CancellationToken,
    ) -> Result<(&'a str, Vec<u32>), DocumentError> {
        let kept = self.vocabulary.truncate(document, self.max_document_tokens, cancellation);
        let mut kept = kept.map_err(|error| match cancellation.is_cancelled() {
            true => DocumentError::Cancelled,
            false => PromptError::Tokenizer(error).into(),
        })?;
        loop {
            if cancellation.is_cancelled() {
                return Err(DocumentError::Cancelled);
            }
            let text = self.insert_document(kept);
            let ids = self.vocabulary.encode(&text).map_err(PromptError::Tokenizer)?;
            let Some(limit) = self.max_prompt_tokens.filter(|limit| ids.len() > *limit) else {
                return Ok((kept, ids));
            };
            if kept.is_empty() {
                return Err(DocumentError::PromptTooLong { tokens: ids.len(), limit });
            }
            // A shorter document may be split into other tokens, so the next prompt may still be too long.
            let start = self.before.as_str().len();
            let (range, excess) = (start..start + kept.len(), ids.len() - limit);
            let shorter = self.vocabulary.shorten(&text, range, excess);
            kept = &kept[..shorter.map_err(PromptError::Tokenizer)?];
        }
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
    /// The checkpoint has no chat template, and the prompt is a user message.
    #[error(
        "the checkpoint has no chat template, which the prompt template needs; add the template that the model \
         was trained with as chat_template.jinja, or choose a prompt template that is a whole prompt"
    )]
    NoChatTemplate,
    /// The chat template failed, or raised an exception.
    #[error("cannot render the chat template for this prompt")]
    Template(#[source] Cause),
    /// The rendered prompt does not contain the instruction, the query or the document unchanged.
    #[error(
        "the chat template drops or changes the {0}; if it trims messages, begin and end the prompt \
         template with fixed text"
    )]
    MissingField(&'static str),
    /// The rendered prompt contains the instruction, the query or the document more than once.
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

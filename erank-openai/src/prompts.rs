//! From a bound prompt and a document to what the server is sent.

use std::ops::Range;

use erank_core::ScoringOptions;
use erank_core::prompt::{BoundPrompt, Segment};
use erank_core::{BackendError, Cause, DocumentError};
use serde_json::Value;

use crate::control_tokens::ControlTokens;
use crate::server::Capabilities;
use crate::settings::{OpenAiSettings, Prompts};

/// Makes prompts of token ids, for [`Prompts::TokenIds`]: the model's own tokenizer and chat template
/// on this side of the network.
///
/// With `erank-candle`, it takes a few lines around its `PromptTokenizer`; the workspace's tests of
/// agreement between the local and the remote backend have them.
pub trait TokenPrompts: Send + Sync {
    /// The prompt for `document`, chat template included, with query and document cut to the tokens
    /// that `options` allow. What looks like a control token in them must be encoded as plain text.
    ///
    /// # Errors
    /// Any error leaves this document without a score.
    fn encode(
        &self,
        prompt: &BoundPrompt<'_>,
        document: &str,
        options: &ScoringOptions,
    ) -> Result<TokenPrompt, Cause>;

    /// The ids of text that counts as the model's own, such as `</think><answer>`.
    ///
    /// # Errors
    /// Any error leaves the document at hand without a score.
    fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Cause>;

    /// The text of generated ids; nothing for a token that ends the turn.
    fn decode(&self, ids: &[u32]) -> String;
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TokenPrompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// Whether the prompt ends with a `<think>` of the chat template's own.
    pub opens_thought: bool,
    /// Whether the query was cut to its limit.
    pub query_truncated: bool,
    /// Whether the document was cut to its limit.
    pub document_truncated: bool,
}

impl TokenPrompt {
    /// A prompt of which nothing was cut, without an open thought; set the other fields as known.
    pub fn new(ids: Vec<u32>) -> Self {
        Self { ids, ..Self::default() }
    }
}

/// What a request says before the model goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    /// A user's message.
    Message(String),
}

impl Prompt {
    /// As the field of a request.
    pub(crate) fn value(&self) -> Value {
        match self {
            Self::Text(text) | Self::Message(text) => text.as_str().into(),
            Self::Ids(ids) => ids.as_slice().into(),
        }
    }

    /// What both begin with; `None` for messages, which a server does not take in parts.
    pub(crate) fn common_prefix(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                let pairs = a.char_indices().zip(b.chars());
                let end = pairs.take_while(|((_, a), b)| a == b).last();
                Some(Self::Text(a[..end.map_or(0, |((at, c), _)| at + c.len_utf8())].to_owned()))
            }
            (Self::Ids(a), Self::Ids(b)) => {
                let pairs = a.iter().zip(b).take_while(|(a, b)| a == b);
                Some(Self::Ids(pairs.map(|(id, _)| *id).collect()))
            }
            _ => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) | Self::Message(text) => text.is_empty(),
            Self::Ids(ids) => ids.is_empty(),
        }
    }
}

/// A document's prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) prompt: Prompt,
    pub(crate) opens_thought: bool,
    pub(crate) query_truncated: bool,
    pub(crate) document_truncated: bool,
}

/// Makes the prompts of one job.
pub(crate) struct Framer<'a> {
    prompt: BoundPrompt<'a>,
    options: ScoringOptions,
    form: Form<'a>,
}

enum Form<'a> {
    Ids(&'a dyn TokenPrompts),
    Text {
        control_tokens: &'a ControlTokens,
        /// Around the user's message.
        before: &'a str,
        after: &'a str,
        is_message: bool,
        bytes_per_token: f64,
    },
}

impl<'a> Framer<'a> {
    pub(crate) fn new(
        prompt: BoundPrompt<'a>,
        options: ScoringOptions,
        settings: &'a OpenAiSettings,
        known: &'a Capabilities,
        control_tokens: &'a ControlTokens,
    ) -> Result<Self, BackendError> {
        let (before, after) = match (&settings.prompts, &known.frame) {
            (Prompts::TokenIds(tokenizer), _) => {
                return Ok(Self { prompt, options, form: Form::Ids(&**tokenizer) });
            }
            (Prompts::Frame { before, after }, _) => (before.as_str(), after.as_str()),
            (Prompts::ServerTemplate, Some((before, after))) => (before.as_str(), after.as_str()),
            (Prompts::ServerTemplate, None) => {
                return Err(BackendError::Failed("the template was not asked for".into()));
            }
            (Prompts::Chat, _) => ("", ""),
        };
        let form = Form::Text {
            control_tokens,
            before,
            after,
            is_message: matches!(settings.prompts, Prompts::Chat),
            bytes_per_token: settings.bytes_per_token,
        };
        Ok(Self { prompt, options, form })
    }

    /// The prompt for a document.
    pub(crate) fn prepare(&self, document: &str) -> Result<Prepared, DocumentError> {
        match &self.form {
            Form::Ids(tokenizer) => {
                let encoded = tokenizer.encode(&self.prompt, document, &self.options);
                let encoded = encoded.map_err(DocumentError::Backend)?;
                Ok(Prepared {
                    prompt: Prompt::Ids(encoded.ids),
                    opens_thought: encoded.opens_thought,
                    query_truncated: encoded.query_truncated,
                    document_truncated: encoded.document_truncated,
                })
            }
            Form::Text { control_tokens, before, after, is_message, bytes_per_token } => {
                let cut_to = |text, tokens| cut(text, tokens, *bytes_per_token);
                let (mut text, mut data) = ((*before).to_owned(), Vec::<Range<usize>>::new());
                let (mut query_truncated, mut document_truncated) = (false, false);
                // Its lifetime is the job's, the document's is not.
                let prompt: BoundPrompt<'_> = self.prompt;
                for segment in prompt.segments(document) {
                    let start = text.len();
                    match segment {
                        Segment::Trusted(trusted) => {
                            text.push_str(trusted);
                            continue;
                        }
                        Segment::Query(query) => {
                            let kept = cut_to(query, self.options.max_query_tokens);
                            query_truncated = kept.len() < query.len();
                            text.push_str(kept);
                        }
                        Segment::Document(document) => {
                            let kept = cut_to(document, self.options.max_document_tokens);
                            document_truncated = kept.len() < document.len();
                            text.push_str(kept);
                        }
                    }
                    data.push(start..text.len());
                }
                text.push_str(after);
                let text = control_tokens.neutralised(text, &data);
                let prompt = if *is_message { Prompt::Message(text) } else { Prompt::Text(text) };
                let opens_thought = after.trim_end().ends_with("<think>");
                Ok(Prepared { prompt, opens_thought, query_truncated, document_truncated })
            }
        }
    }
}

/// The beginning of `text` that has as many bytes as `tokens` tokens, in whole characters.
fn cut(text: &str, tokens: usize, bytes_per_token: f64) -> &str {
    let most = (tokens as f64 * bytes_per_token) as usize;
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use erank_core::{AnswerFormat, PromptTemplate};

    fn known() -> Capabilities {
        let frame = Some(("<|im_start|>user\n".into(), "<|im_end|>\n<think>\n".into()));
        Capabilities {
            server: crate::Server::Other,
            model: None,
            context: None,
            frame,
            takes_ids: false,
        }
    }

    fn prepare(settings: &OpenAiSettings, document: &str, options: ScoringOptions) -> Prepared {
        let text = "Q: {query}\nD: {doc}\nScore?";
        let template = PromptTemplate::custom(text, AnswerFormat::zero_to_ten()).expect("valid");
        let control_tokens = ControlTokens::new(&settings.control_tokens).expect("few");
        let prompt = template.bind("", "what <|im_end|>");
        let known = known();
        let framer = Framer::new(prompt, options, settings, &known, &control_tokens);
        framer.expect("a template").prepare(document).expect("a prompt")
    }

    #[test]
    fn the_frame_keeps_its_control_tokens_and_the_data_loses_them() {
        let prepared =
            prepare(&OpenAiSettings::default(), "a <think> b", ScoringOptions::default());
        let expected =
            "<|im_start|>user\nQ: what < |im_end|>\nD: a < think> b\nScore?<|im_end|>\n<think>\n";
        assert_eq!(prepared.prompt, Prompt::Text(expected.into()));
        assert!(
            prepared.opens_thought && !prepared.query_truncated && !prepared.document_truncated
        );

        let mut settings = OpenAiSettings { prompts: Prompts::Chat, ..OpenAiSettings::default() };
        settings.control_tokens = vec!["[X]".into()];
        let prepared = prepare(&settings, "[X]", ScoringOptions::default());
        let expected = "Q: what < |im_end|>\nD: [ X]\nScore?";
        assert_eq!(prepared.prompt, Prompt::Message(expected.into()));
        assert!(!prepared.opens_thought);
    }

    #[test]
    fn query_and_document_are_cut_in_whole_characters_and_say_so() {
        let mut options = ScoringOptions::default();
        options.max_document_tokens = 2;
        options.max_query_tokens = 1;
        let settings = OpenAiSettings {
            prompts: Prompts::Chat,
            bytes_per_token: 3.0,
            ..OpenAiSettings::default()
        };
        let prepared = prepare(&settings, "abcdeéfg", options);
        assert_eq!(prepared.prompt, Prompt::Message("Q: wha\nD: abcde\nScore?".into()));
        assert!(prepared.query_truncated && prepared.document_truncated);
    }

    #[test]
    fn the_common_prefix_is_in_whole_characters() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(text("aéx").common_prefix(&text("aéy")), Some(text("aé")));
        assert_eq!(text("aé").common_prefix(&text("aè")), Some(text("a")));
        let ids = |ids: &[u32]| Prompt::Ids(ids.into());
        assert_eq!(ids(&[1, 2]).common_prefix(&ids(&[1, 3])), Some(ids(&[1])));
        assert!(ids(&[]).is_empty() && !text("a").is_empty());
        assert_eq!(Prompt::Message("a".into()).common_prefix(&Prompt::Message("a".into())), None);
    }
}

//! The prompts of a job. A prompt is the request field that holds a query, a document and the text around
//! them.

use erank_core::ScoringOptions;
use erank_core::prompt::{BoundPrompt, Segment};
use erank_core::tags::THINK_OPEN;
use erank_core::{BackendError, DocumentError};
use serde_json::Value;

use crate::capabilities::Capabilities;
use crate::control_tokens::ControlTokens;
use crate::error::CapabilityError;
use crate::settings::{OpenAiSettings, PromptFormat};
use crate::tokenizer::ClientTokenizer;

/// The input of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    TokenIds(Vec<u32>),
    /// A user's message.
    Message(String),
}

impl Prompt {
    /// Returns the prompt as the value of a request field.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Text(text) | Self::Message(text) => text.as_str().into(),
            Self::TokenIds(ids) => ids.as_slice().into(),
        }
    }

    /// Returns the longest common prefix of two prompts. Returns `None` for messages, because a server does
    /// not accept a prefix of a message.
    pub(crate) fn common_prefix(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                let pairs = a.char_indices().zip(b.chars());
                let end = pairs.take_while(|((_, a), b)| a == b).last();
                Some(Self::Text(a[..end.map_or(0, |((at, c), _)| at + c.len_utf8())].to_owned()))
            }
            (Self::TokenIds(a), Self::TokenIds(b)) => {
                let pairs = a.iter().zip(b).take_while(|(a, b)| a == b);
                Some(Self::TokenIds(pairs.map(|(id, _)| *id).collect()))
            }
            _ => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) | Self::Message(text) => text.is_empty(),
            Self::TokenIds(ids) => ids.is_empty(),
        }
    }
}

/// The prompt of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DocumentPrompt {
    pub(crate) prompt: Prompt,
    /// Whether the prompt ends with `<think>`.
    pub(crate) opens_thought: bool,
    pub(crate) query_truncated: bool,
    pub(crate) document_truncated: bool,
}

/// Builds the prompts of one job.
pub(crate) struct PromptBuilder<'a> {
    prompt: BoundPrompt<'a>,
    options: ScoringOptions,
    format: Format<'a>,
}

enum Format<'a> {
    TokenIds(&'a dyn ClientTokenizer),
    Text {
        control_tokens: &'a ControlTokens,
        /// The chat template's text before and after the user's message. Empty around a whole prompt.
        prefix: &'a str,
        suffix: &'a str,
        is_message: bool,
        bytes_per_token: f64,
    },
}

impl<'a> PromptBuilder<'a> {
    /// Creates a builder for the prompt format of the settings.
    pub(crate) fn new(
        prompt: BoundPrompt<'a>,
        options: ScoringOptions,
        settings: &'a OpenAiSettings,
        server: &'a Capabilities,
        control_tokens: &'a ControlTokens,
    ) -> Result<Self, BackendError> {
        let (prefix, suffix) = match (&settings.prompt_format, &server.chat_template) {
            (PromptFormat::TokenIds(tokenizer), _) => {
                return Ok(Self { prompt, options, format: Format::TokenIds(&**tokenizer) });
            }
            (PromptFormat::Chat, _) => ("", ""),
            (PromptFormat::Template { .. } | PromptFormat::ServerTemplate, _)
                if prompt.is_whole() =>
            {
                ("", "")
            }
            (PromptFormat::Template { prefix, suffix }, _) => (prefix.as_str(), suffix.as_str()),
            (PromptFormat::ServerTemplate, Ok((prefix, suffix))) => {
                (prefix.as_str(), suffix.as_str())
            }
            (PromptFormat::ServerTemplate, Err(problem)) => {
                let problem = problem.clone();
                return Err(CapabilityError::NoChatTemplate { problem }.into());
            }
        };
        let format = Format::Text {
            control_tokens,
            prefix,
            suffix,
            is_message: matches!(settings.prompt_format, PromptFormat::Chat),
            bytes_per_token: settings.bytes_per_token,
        };
        Ok(Self { prompt, options, format })
    }

    /// Builds the prompt of a document.
    pub(crate) fn build(&self, document: &str) -> Result<DocumentPrompt, DocumentError> {
        match &self.format {
            Format::TokenIds(tokenizer) => {
                let encoded = tokenizer.encode(&self.prompt, document, &self.options);
                let encoded = encoded.map_err(DocumentError::Backend)?;
                Ok(DocumentPrompt {
                    prompt: Prompt::TokenIds(encoded.ids),
                    opens_thought: encoded.opens_thought,
                    query_truncated: encoded.query_truncated,
                    document_truncated: encoded.document_truncated,
                })
            }
            Format::Text { control_tokens, prefix, suffix, is_message, bytes_per_token } => {
                let bytes = |tokens: usize| estimated_bytes(tokens, *bytes_per_token);
                let query = truncate(self.prompt.query(), bytes(self.options.max_query_tokens));
                let kept = match self.options.max_prompt_tokens {
                    None => document,
                    Some(limit) => {
                        // All other text stays whole.
                        let other = self.prompt.segments("").map(|segment| match segment {
                            Segment::Query(_) => query.len(),
                            other => other.text().len(),
                        });
                        let other = other.sum::<usize>() + prefix.len() + suffix.len();
                        let left = bytes(limit).checked_sub(other).ok_or_else(|| {
                            let tokens = (other as f64 / bytes_per_token).ceil() as usize;
                            DocumentError::PromptTooLong { tokens, limit }
                        })?;
                        truncate(document, left)
                    }
                };
                let kept = truncate(kept, bytes(self.options.max_document_tokens));

                let (mut text, mut data) = ((*prefix).to_owned(), Vec::new());
                // Shortens the lifetime to that of the document.
                let prompt: BoundPrompt<'_> = self.prompt;
                for segment in prompt.segments(kept) {
                    let start = text.len();
                    match segment {
                        Segment::Trusted(trusted) => {
                            text.push_str(trusted);
                            continue;
                        }
                        Segment::Instruction(part) | Segment::Document(part) => text.push_str(part),
                        Segment::Query(_) => text.push_str(query),
                    }
                    data.push(start..text.len());
                }
                text.push_str(suffix);
                let trusted_end = &text[data.last().map_or(0, |data| data.end)..];
                let opens_thought = trusted_end.trim_end().ends_with(THINK_OPEN);
                let text = control_tokens.neutralize(text, &data);
                let prompt = if *is_message { Prompt::Message(text) } else { Prompt::Text(text) };
                Ok(DocumentPrompt {
                    prompt,
                    opens_thought,
                    query_truncated: query.len() < self.prompt.query().len(),
                    document_truncated: kept.len() < document.len(),
                })
            }
        }
    }
}

/// Returns the estimated number of bytes of `tokens` tokens.
fn estimated_bytes(tokens: usize, bytes_per_token: f64) -> usize {
    (tokens as f64 * bytes_per_token) as usize
}

/// Returns the ends of the first `max_tokens` tokens of `text`, by the estimate that truncates documents.
pub(crate) fn estimated_token_ends(
    text: &str,
    max_tokens: usize,
    bytes_per_token: f64,
) -> Vec<usize> {
    let mut ends = Vec::new();
    while ends.len() < max_tokens && ends.last().copied().unwrap_or(0) < text.len() {
        let bytes = estimated_bytes(ends.len() + 1, bytes_per_token);
        ends.push(truncate(text, bytes).len());
    }
    ends
}

/// Truncates `text` to a number of bytes, at a character boundary.
fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use erank_core::{AnswerFormat, PromptTemplate};

    use crate::settings::ServerKind;

    fn server() -> Capabilities {
        let template = ("<|im_start|>user\n".into(), "<|im_end|>\n<think>\n".into());
        Capabilities {
            kind: ServerKind::Other,
            model: None,
            context_length: None,
            chat_template: Ok(template),
            logprob_token_ids: false,
            raw_logprobs: true,
        }
    }

    fn build(settings: &OpenAiSettings, document: &str, options: ScoringOptions) -> DocumentPrompt {
        let text = "Q: {query}\nD: {doc}\nScore?";
        let template = PromptTemplate::custom(text, AnswerFormat::zero_to_ten()).expect("valid");
        let control_tokens = ControlTokens::new(&settings.control_tokens).expect("few");
        let prompt = template.bind("", "what <|im_end|>");
        let server = server();
        let builder = PromptBuilder::new(prompt, options, settings, &server, &control_tokens);
        builder.expect("a template").build(document).expect("a prompt")
    }

    #[test]
    fn build_neutralizes_control_tokens_in_data_only() {
        let built = build(&OpenAiSettings::default(), "a <think> b", ScoringOptions::default());
        let expected =
            "<|im_start|>user\nQ: what < |im_end|>\nD: a < think> b\nScore?<|im_end|>\n<think>\n";
        assert_eq!(built.prompt, Prompt::Text(expected.into()));
        assert!(built.opens_thought && !built.query_truncated && !built.document_truncated);

        let mut settings =
            OpenAiSettings { prompt_format: PromptFormat::Chat, ..OpenAiSettings::default() };
        settings.control_tokens = vec!["[X]".into()];
        let built = build(&settings, "[X]", ScoringOptions::default());
        let expected = "Q: what < |im_end|>\nD: [ X]\nScore?";
        assert_eq!(built.prompt, Prompt::Message(expected.into()));
        assert!(!built.opens_thought);
    }

    #[test]
    fn build_truncates_query_and_document_at_char_boundaries() {
        let mut options = ScoringOptions::default();
        options.max_document_tokens = 2;
        options.max_query_tokens = 1;
        let settings = OpenAiSettings {
            prompt_format: PromptFormat::Chat,
            bytes_per_token: 3.0,
            ..OpenAiSettings::default()
        };
        let built = build(&settings, "abcdeéfg", options);
        assert_eq!(built.prompt, Prompt::Message("Q: wha\nD: abcde\nScore?".into()));
        assert!(built.query_truncated && built.document_truncated);
    }

    #[test]
    fn estimated_token_ends_are_those_of_truncation() {
        let text = "abcdeéfg";
        assert_eq!(estimated_token_ends(text, 9, 3.0), [3, 5, 9]);
        assert_eq!(estimated_token_ends(text, 2, 3.0), [3, 5]);
        assert_eq!(estimated_token_ends(text, 3, 0.4), [0, 0, 1]);
        assert_eq!(estimated_token_ends("", 3, 3.0), [0; 0]);
        for (tokens, end) in (1..).zip(estimated_token_ends(text, 20, 0.7)) {
            assert_eq!(truncate(text, estimated_bytes(tokens, 0.7)).len(), end);
        }
    }

    #[test]
    fn common_prefix_ends_at_char_or_token_boundary() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(text("aéx").common_prefix(&text("aéy")), Some(text("aé")));
        assert_eq!(text("aé").common_prefix(&text("aè")), Some(text("a")));
        let ids = |ids: &[u32]| Prompt::TokenIds(ids.into());
        assert_eq!(ids(&[1, 2]).common_prefix(&ids(&[1, 3])), Some(ids(&[1])));
        assert!(ids(&[]).is_empty() && !text("a").is_empty());
        assert_eq!(Prompt::Message("a".into()).common_prefix(&Prompt::Message("a".into())), None);
    }
}

//! How the command ends: exit codes, and errors that say what to do next.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use erank_candle::LoadError;
use erank_core::{BackendError, ConfigError, DocumentError};
use erank_openai::{CapabilityError, RequestError, SetupError};
use thiserror::Error;

use crate::eval::EvalError;
use crate::text;

/// How the command ended. The codes are part of its interface; `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done.
    Done = 0,
    /// An error ended the work.
    Failed = 1,
    /// Some documents could not be ranked.
    SomeUnscored = 3,
    /// The time was over.
    TimedOut = 4,
    /// Ctrl-C, as shells count it: 128 + SIGINT.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the command cannot go on.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error("{given} is neither a folder nor a name on the model hub")]
    NoSuchModel { given: String },
    #[error("cannot load the model {given}")]
    Model {
        given: String,
        #[source]
        source: LoadError,
    },
    #[error("--url and --prompts are for a remote model; add --backend openai")]
    RemoteWithoutBackend,
    #[error("cannot use the remote model")]
    Remote(#[from] SetupError),
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{piece:?} is no token id")]
    NoTokenId { piece: String },
    #[error("token id {id} is not in the model's vocabulary of {vocab_size}")]
    UnknownTokenId { id: u32, vocab_size: usize },
    #[cfg(feature = "search")]
    #[error("cannot search the documents")]
    Search(#[from] Box<tantivy::TantivyError>),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("cannot make the prompt")]
    Prompt(#[from] DocumentError),
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// Prints the error to standard error, unless the reader of the output has just gone away
    /// (`erank … | head`).
    pub(crate) fn report(&self) -> Exit {
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Done;
        }
        text::note(&format!("error: {}", causes(self)));
        if let Some(advice) = self.advice() {
            text::note(&format!("  {advice}"));
        }
        Exit::Failed
    }

    /// What to do next, where the error does not say it.
    fn advice(&self) -> Option<&'static str> {
        const FOLDER: &str = "A model folder holds config.json, tokenizer.json, \
            tokenizer_config.json and model.safetensors, or model.safetensors.index.json with its \
            parts. Give such a folder, a name on the model hub (--model OWNER/NAME), or leave \
            --model out for the bundled model.";
        const ARCHITECTURE: &str = "Only Qwen3 models such as ERank can be loaded; if this is one, \
            get its files anew.";
        match self {
            Self::NoSuchModel { .. } | Self::Model { source: LoadError::Read { .. }, .. } => {
                Some(FOLDER)
            }
            Self::Model { source: LoadError::Hub { .. }, .. } => {
                Some("If you meant a folder: there is none of this name here.")
            }
            Self::Model {
                source: LoadError::Invalid { .. } | LoadError::Tensor { .. }, ..
            } => Some(ARCHITECTURE),
            Self::Read { .. } => Some("Give a file that can be read, or - for standard input."),
            Self::Backend(error) => remote_advice(error),
            Self::NoTokenId { .. } => {
                Some("Give numbers with commas or spaces between them, such as --ids 9707,11,1879.")
            }
            _ => None,
        }
    }
}

/// The flag for what the remote backend, which speaks to programs, calls a setting, and for an address
/// where nobody answers.
fn remote_advice(error: &BackendError) -> Option<&'static str> {
    let mut cause = Error::source(error)?;
    let lacking = loop {
        if let Some(RequestError::RetriesExhausted { last, .. }) = cause.downcast_ref() {
            let nobody = matches!(
                **last,
                RequestError::Unreachable { .. } | RequestError::Connection { .. }
            );
            return nobody.then_some("Check that the server runs, and that --url is its address.");
        }
        match cause.downcast_ref::<CapabilityError>() {
            Some(lacking) => break lacking,
            None => cause = cause.source()?,
        }
    };
    match lacking {
        CapabilityError::UnknownModel { .. } | CapabilityError::ModelNotSet { .. } => {
            Some("Here the model's name at the server is --model.")
        }
        CapabilityError::NoChatTemplate { .. } => {
            Some("Here that is --prompts chatml, or --prompts chat.")
        }
        CapabilityError::NoLogprobs { .. } => Some("Here integers alone are --score integer."),
        CapabilityError::ChatAnswerOnly => Some(
            "Here that is --prompts: choose another, or leave --answer-only and --think-about out.",
        ),
        _ => None,
    }
}

/// The error with its causes, each said once.
fn causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

/// An error with its causes as one line for lists.
pub(crate) fn one_line(error: &dyn Error) -> String {
    text::line(&causes(error))
}

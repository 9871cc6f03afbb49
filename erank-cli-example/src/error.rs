//! Exit codes, and errors with advice.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use erank_candle::LoadError;
use erank_core::error::chain;
use erank_core::{BackendError, ConfigError, DocumentError};
use erank_openai::{CapabilityError, RequestError, SetupError};
use thiserror::Error;

use crate::eval::error::EvalError;
use crate::{input, text};

/// The exit code of the command. `--help` lists the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work was completed.
    Done = 0,
    /// An error ended the command.
    Failed = 1,
    /// Some documents could not be ranked or scored.
    SomeUnscored = 3,
    /// `--timeout` expired.
    TimedOut = 4,
    /// Ctrl-C was pressed. Shells report 128 plus the signal's number.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends the command.
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
    #[error("cannot tell the prompt of the model {given}")]
    UnknownPrompt {
        given: String,
        #[source]
        source: LoadError,
    },
    #[error("cannot tell the prompt of the model {given}, which --first-pass names")]
    FirstPassPrompt {
        given: String,
        #[source]
        source: LoadError,
    },
    #[error("cannot quantise the model {given}")]
    Quantize {
        given: String,
        #[source]
        source: LoadError,
    },
    #[error("the model {given} cannot score the documents")]
    Scoring {
        given: String,
        #[source]
        source: BackendError,
    },
    #[error("{what} has no documents to compare the models with")]
    NoDocuments { what: String },
    #[error("{} exists; name another file, or delete it first", path.display())]
    OutputExists { path: PathBuf },
    #[error("--url and --prompts need --backend openai")]
    RemoteWithoutBackend,
    #[error("cannot use the remote model")]
    Remote(#[from] SetupError),
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the calibration {file}: {problem}")]
    Calibration { file: String, problem: String },
    #[error("{piece:?} is not a token id")]
    NoTokenId { piece: String },
    #[error("token id {id} is not in the model's vocabulary of {vocab_size}")]
    UnknownTokenId { id: u32, vocab_size: usize },
    #[cfg(feature = "serve")]
    #[error("cannot serve at {address}")]
    Serve {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
    #[cfg(feature = "search")]
    #[error("cannot search the documents")]
    Search(#[source] Box<tantivy::TantivyError>),
    #[cfg(feature = "search")]
    #[error("the query is not in tantivy's syntax; mend it, or leave --query-syntax out")]
    QuerySyntax(#[source] Box<tantivy::query::QueryParserError>),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("cannot render the prompt")]
    Prompt(#[from] DocumentError),
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

#[cfg(feature = "search")]
impl From<tantivy::TantivyError> for CommandError {
    fn from(error: tantivy::TantivyError) -> Self {
        Self::Search(Box::new(error))
    }
}

impl CommandError {
    /// Returns the error of reading the documents of `--docs`.
    pub(crate) fn documents(docs: &str, source: io::Error) -> Self {
        Self::Read { what: input::shown(docs), source }
    }

    /// Prints the error with its causes and advice to standard error, and returns the exit code.
    ///
    /// A closed output pipe (`erank … | head`) is not reported as an error.
    pub(crate) fn report(&self) -> Exit {
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Done;
        }
        text::note(&format!("error: {}", chain(self)));
        if let Some(advice) = self.advice() {
            text::note(&format!("  {advice}"));
        }
        Exit::Failed
    }

    /// Returns advice, if the message does not already contain it.
    fn advice(&self) -> Option<&'static str> {
        const FOLDER: &str = "A model folder holds config.json, tokenizer.json, \
            tokenizer_config.json and model.safetensors, or model.safetensors.index.json with its \
            parts. Give such a folder, a GGUF file or a name on the model hub (--model OWNER/NAME), or omit \
            --model for the bundled model.";
        match self {
            Self::NoSuchModel { .. } => Some(FOLDER),
            Self::Model { source: LoadError::Read { source, .. }, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Some(FOLDER)
            }
            Self::UnknownPrompt { .. } => Some("Name the prompt with --template."),
            Self::FirstPassPrompt { .. } => Some(
                "Give a Qwen3-Reranker, an ERank, or a folder whose name contains \"reranker\" if the model has \
                 Qwen3-Reranker's prompt.",
            ),
            Self::Model { source: LoadError::Hub { .. }, .. } => {
                Some("If you meant a folder, check its path: it does not exist.")
            }
            Self::NoDocuments { .. } => Some("Give a file of documents."),
            #[cfg(feature = "serve")]
            Self::Serve { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("Another program listens there; choose another port with --listen.")
            }
            // The source names what is wrong in the file, and what to do.
            Self::Read { source, .. } if source.kind() == io::ErrorKind::InvalidData => None,
            Self::Read { .. } => Some("Give a readable file, or - for standard input."),
            Self::Backend(error) => remote_advice(error),
            Self::NoTokenId { .. } => {
                Some("Give numbers separated by commas or spaces, such as --ids 9707,11,1879.")
            }
            _ => None,
        }
    }
}

/// Returns the flag that corresponds to the setting in an error of the remote backend, or advice for an
/// unreachable server.
fn remote_advice(error: &BackendError) -> Option<&'static str> {
    let mut cause = Error::source(error)?;
    let lacking = loop {
        if let Some(RequestError::RetriesExhausted { last, .. }) = cause.downcast_ref() {
            let is_unreachable = matches!(
                **last,
                RequestError::Unreachable { .. } | RequestError::Connection { .. }
            );
            return is_unreachable
                .then_some("Check that the server runs, and that --url is its address.");
        }
        match cause.downcast_ref::<CapabilityError>() {
            Some(lacking) => break lacking,
            None => cause = cause.source()?,
        }
    };
    match lacking {
        CapabilityError::UnknownModel { .. } | CapabilityError::ModelNotSet { .. } => {
            Some("The option --model sets the model's name at the server.")
        }
        CapabilityError::NoChatTemplate { .. } => {
            Some("The option for this is --prompts chatml, or --prompts chat.")
        }
        CapabilityError::NoCompletions { .. } => Some("The option for this is --prompts chat."),
        CapabilityError::NoLogprobs { .. } => {
            Some("To rank by integers alone, use --score integer.")
        }
        CapabilityError::ChatAnswerOnly => Some(
            "Choose another form with --prompts, or leave --answer-only and --think-about out.",
        ),
        _ => None,
    }
}

/// Returns the error with its causes on one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    text::line(&chain(error))
}

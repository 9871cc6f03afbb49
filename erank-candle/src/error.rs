//! Errors of loading a model.

use std::path::PathBuf;

use thiserror::Error;

/// An error of another library, kept as the source of ours.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of loading a model. The message names the file, tensor or setting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path of the file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// The contents of a file are invalid or not supported.
    #[error("cannot use {file}: {reason}")]
    Invalid {
        /// The name of the file.
        file: String,
        /// The reason, with the key or value that is wrong.
        reason: String,
        /// The parser's error, if a parser rejected the file.
        #[source]
        source: Option<Cause>,
    },
    /// A tensor is missing, or its shape or type differs from the configuration.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// The reason.
        reason: String,
    },
    /// A file could not be downloaded from the Hugging Face hub.
    #[error(
        "cannot download {file} of {model} from the hub; check the name, the revision, the network and, for a private model, the token"
    )]
    Hub {
        /// The model's name on the hub.
        model: String,
        /// The name of the file.
        file: String,
        /// The error of the hub's client.
        #[source]
        source: Cause,
    },
    /// The hub's local cache does not have a model, and no network is to be used.
    #[error(
        "{model} is not in the hub's cache {}, and no network is used because {reason}; download it once with a \
         network, or name another cache with HF_HUB_CACHE", cache.display()
    )]
    NotCached {
        /// The model's name on the hub, with the revision.
        model: String,
        /// The folder of the cache.
        cache: PathBuf,
        /// Why no network is used.
        reason: &'static str,
    },
    /// A setting is invalid, or this machine does not support it.
    #[error("{0}")]
    Setting(String),
}

impl LoadError {
    /// Creates an [`Invalid`](Self::Invalid) error for a file that was parsed.
    pub(crate) fn invalid(file: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_owned(), reason: reason.into(), source: None }
    }

    /// Creates an [`Invalid`](Self::Invalid) error for a file that a parser rejected. The reason is
    /// `problem`, followed by the message of `source`.
    pub(crate) fn unparsable(file: &str, problem: &str, source: impl Into<Cause>) -> Self {
        let source = source.into();
        let reason = format!("{problem}: {source}");
        Self::Invalid { file: file.to_owned(), reason, source: Some(source) }
    }

    /// Creates a [`Tensor`](Self::Tensor) error.
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.into() }
    }
}

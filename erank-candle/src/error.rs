//! Why a model cannot be loaded.

use std::path::PathBuf;

use thiserror::Error;

/// A cause from a library.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a model cannot be loaded. Each names the file, tensor or setting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file was read, but does not hold what it should.
    #[error("{file} is not usable: {reason}")]
    Invalid {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        reason: String,
        /// The parser's error, if one found it.
        #[source]
        source: Option<Cause>,
    },
    /// A tensor is missing or has another shape or type than the configuration says.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model hub could not deliver a file.
    #[error(
        "cannot get {file} of {model} from the model hub; check the name, the revision, the network and, for a private model, the token"
    )]
    Hub {
        /// The model's name on the hub.
        model: String,
        /// The file.
        file: String,
        /// The client's error.
        #[source]
        source: Cause,
    },
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(String),
}

impl LoadError {
    /// A file that does not hold what it should.
    pub(crate) fn invalid(file: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_owned(), reason: reason.into(), source: None }
    }

    /// A file that a parser refused.
    pub(crate) fn unparsable(file: &str, what: &str, source: impl Into<Cause>) -> Self {
        let source = source.into();
        let reason = format!("{what}: {source}");
        Self::Invalid { file: file.to_owned(), reason, source: Some(source) }
    }

    /// A tensor that is not as it should be.
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.into() }
    }
}

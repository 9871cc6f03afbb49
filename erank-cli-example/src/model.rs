//! Which model runs.

use std::path::Path;

use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Config, LoadError, WeightFormat};
use erank_core::{ScoringBackend, ScoringOptions};
use erank_openai::{ApiKey, OpenAiBackend};

use crate::args::{Backend, Device, Dtype, ModelArguments, Prompts, RemoteArguments, Score};
use crate::error::CommandError;
use crate::text;

/// The name of the bundled model.
const BUNDLED: &str = "tiny";

/// A model, here or elsewhere.
pub(crate) struct Chosen {
    pub(crate) backend: Box<dyn ScoringBackend>,
    /// The default options, with the limits for texts.
    pub(crate) limits: ScoringOptions,
    /// The [`Checkpoint::fingerprint`] of a model that is here.
    pub(crate) fingerprint: Option<u32>,
}

/// Loads the model that was asked for.
pub(crate) fn load(arguments: &ModelArguments) -> Result<CandleBackend, CommandError> {
    Ok(load_with_fingerprint(arguments)?.0)
}

fn load_with_fingerprint(arguments: &ModelArguments) -> Result<(CandleBackend, u32), CommandError> {
    let given = &arguments.model;
    let Some(source) = Source::of(given) else {
        return Err(CommandError::NoSuchModel { given: text::line(given) });
    };
    let loaded = source.checkpoint().and_then(|checkpoint| {
        let backend = CandleBackend::load(&checkpoint, &settings(arguments))?;
        Ok((backend, checkpoint.fingerprint()))
    });
    loaded.map_err(|source| CommandError::Model { given: text::line(given), source })
}

/// The model that was asked for, here or elsewhere.
pub(crate) fn choose(
    model: &ModelArguments,
    remote: &RemoteArguments,
    score: Score,
) -> Result<Chosen, CommandError> {
    if remote.backend == Backend::Candle {
        if !remote.url.is_empty() || remote.prompts.is_some() {
            return Err(CommandError::RemoteWithoutBackend);
        }
        let (backend, fingerprint) = load_with_fingerprint(model)?;
        let limits = limits(model, backend.config());
        return Ok(Chosen { backend: Box::new(backend), limits, fingerprint: Some(fingerprint) });
    }
    let mut settings = erank_openai::OpenAiSettings::default();
    settings.model = (model.model != BUNDLED).then(|| model.model.clone());
    settings.api_key = std::env::var("ERANK_API_KEY").ok().map(ApiKey::new);
    settings.prompt_format = match remote.prompts.unwrap_or_default() {
        Prompts::Template => erank_openai::PromptFormat::ServerTemplate,
        Prompts::Chatml => erank_openai::PromptFormat::chat_ml(),
        Prompts::Chat => erank_openai::PromptFormat::Chat,
    };
    // A server that gives none can still rank by integers.
    settings.logprobs = !matches!(score, Score::Integer);
    let backend = OpenAiBackend::new(&remote.url, settings)?;
    let mut limits = ScoringOptions::default();
    if let Some(tokens) = model.max_document_tokens {
        limits.max_document_tokens = tokens.get();
    }
    Ok(Chosen { backend: Box::new(backend), limits, fingerprint: None })
}

/// The bundled model, as it is.
pub(crate) fn bundled() -> Result<CandleBackend, CommandError> {
    CandleBackend::tiny()
        .map_err(|source| CommandError::Model { given: BUNDLED.to_owned(), source })
}

/// Where a model comes from.
#[derive(Debug, PartialEq)]
enum Source<'a> {
    Folder(&'a Path),
    Bundled,
    Hub { name: &'a str, revision: Option<&'a str> },
}

impl<'a> Source<'a> {
    /// A folder if there is one; else a name, if it can be one.
    fn of(given: &'a str) -> Option<Self> {
        let path = Path::new(given);
        if path.is_dir() {
            return Some(Self::Folder(path));
        }
        if given == BUNDLED {
            return Some(Self::Bundled);
        }
        let (name, revision) = match given.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (given, None),
        };
        let is_part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let (owner, model) = name.split_once('/')?;
        let is_name = is_part(owner) && is_part(model) && revision != Some("");
        is_name.then_some(Self::Hub { name, revision })
    }

    fn checkpoint(&self) -> Result<Checkpoint, LoadError> {
        match self {
            Self::Folder(folder) => Checkpoint::open(folder),
            Self::Bundled => Ok(Checkpoint::tiny()),
            Self::Hub { name, revision } => Checkpoint::from_hub(name, *revision),
        }
    }
}

fn settings(arguments: &ModelArguments) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.weights = arguments.dtype.map(|format| match format {
        Dtype::F32 => WeightFormat::F32,
        Dtype::Bf16 => WeightFormat::Bf16,
    });
    settings.device = match arguments.device {
        Device::Cpu => erank_candle::Device::Cpu,
        Device::Cuda => erank_candle::Device::Cuda { ordinal: 0 },
        Device::Metal => erank_candle::Device::Metal { ordinal: 0 },
    };
    settings.threads = arguments.threads;
    if let Some(mebibytes) = arguments.cache_mb {
        settings.kv_cache_memory_bytes = Some(mebibytes.get().saturating_mul(1 << 20));
    }
    settings
}

/// The library's limits for texts, lowered for a model that cannot hold them, or as asked for.
pub(crate) fn limits(arguments: &ModelArguments, config: &Config) -> ScoringOptions {
    let mut limits = ScoringOptions::default();
    let positions = config.max_position_embeddings;
    limits.max_query_tokens = limits.max_query_tokens.min(positions / 4).max(1);
    limits.max_document_tokens = match arguments.max_document_tokens {
        Some(tokens) => tokens.get(),
        None => limits.max_document_tokens.min(positions / 2).max(1),
    };
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_folder_or_a_name() {
        let hub = |name, revision| Some(Source::Hub { name, revision });
        assert_eq!(Source::of("tiny"), Some(Source::Bundled));
        assert_eq!(Source::of("/"), Some(Source::Folder(Path::new("/"))));
        assert_eq!(Source::of("Alibaba-NLP/ERank-4B"), hub("Alibaba-NLP/ERank-4B", None));
        assert_eq!(Source::of("a/b.c@v1/x"), hub("a/b.c", Some("v1/x")));
        for neither in
            ["", "nowhere", "./nowhere", "/no/where", "a/b/c", "../a", "a/b@", "a/\u{1b}"]
        {
            assert_eq!(Source::of(neither), None, "{neither}");
        }
    }
}

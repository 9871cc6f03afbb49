//! The choice of the model and its backend.

use std::num::NonZeroUsize;
use std::path::Path;

use erank_candle::{
    CandleBackend, CandleSettings, Checkpoint, Config, HubName, KvCacheFormat, LoadError,
};
use erank_core::{PromptFamily, ScoringBackend, ScoringOptions};
use erank_openai::{ApiKey, OpenAiBackend, OpenAiSettings};

use crate::args::{Backend, CacheFormat, Device, ModelArguments, Prompts, RemoteArguments, Score};
use crate::error::CommandError;
use crate::text;

/// The name of the bundled model.
pub(crate) const BUNDLED: &str = "tiny";

/// A backend with a model, local or remote.
pub(crate) struct Chosen {
    pub(crate) backend: Box<dyn ScoringBackend>,
    /// The prompt that the model was trained with.
    pub(crate) family: PromptFamily,
    /// The default options, with the limits for queries and documents.
    pub(crate) limits: ScoringOptions,
    /// The [`Checkpoint::fingerprint`] of a local model; `None` for a remote one.
    pub(crate) fingerprint: Option<u32>,
    /// The [`CandleBackend::description`] of a local model: the format of the weights, and the instruction set or
    /// the device. `None` for a remote one.
    pub(crate) description: Option<String>,
}

/// Returns the prompt that the arguments name, or else the prompt that a model was trained with. Says which
/// prompt was recognised, if it is not ERank's.
pub(crate) fn family(
    arguments: &ModelArguments,
    checkpoint: &Checkpoint,
) -> Result<PromptFamily, CommandError> {
    match arguments.template {
        Some(family) => Ok(family),
        None => {
            let recognised = checkpoint.recognise_prompt().map_err(|source| {
                CommandError::UnknownPrompt { given: text::line(&arguments.model), source }
            })?;
            if let Some(reason) = recognised.reason {
                note_prompt(recognised.family, reason);
            }
            Ok(recognised.family)
        }
    }
}

/// Says which prompt is used, and why.
fn note_prompt(family: PromptFamily, reason: &str) {
    let name = family.name();
    text::note(&format!("The model gets the prompt of {name}, because {reason} (see --template)."));
}

/// Returns the prompt of a remote model, which is known by its name alone.
fn remote_family(arguments: &ModelArguments) -> PromptFamily {
    let name = arguments.model.rsplit('/').next().unwrap_or_default();
    let is_reranker = name.to_ascii_lowercase().contains("reranker");
    match arguments.template {
        Some(family) => family,
        None if is_reranker => {
            note_prompt(PromptFamily::Qwen3Reranker, "its name contains \"reranker\"");
            PromptFamily::Qwen3Reranker
        }
        None => PromptFamily::Erank,
    }
}

/// Loads the local model that scores all documents before the one of `arguments`, in the formats of its own files.
pub(crate) fn first_pass(given: &str, arguments: &ModelArguments) -> Result<Chosen, CommandError> {
    let checkpoint = checkpoint(given, arguments.offline)?;
    let unknown = |source| CommandError::FirstPassPrompt { given: text::line(given), source };
    let family = checkpoint.recognise_prompt().map_err(unknown)?.family;
    let mut settings = settings(arguments);
    (settings.weights, settings.kv_cache) = (None, None);
    let backend = CandleBackend::load(&checkpoint, &settings).map_err(failed(given))?;
    let limits = limits(arguments, backend.config());
    text::note(&format!(
        "{} scores all documents first, with the prompt of {}.",
        text::line(backend.name()),
        family.name()
    ));
    let (fingerprint, description) = (Some(checkpoint.fingerprint()), Some(backend.description()));
    Ok(Chosen { backend: Box::new(backend), family, limits, fingerprint, description })
}

/// Returns the conversion of an error of loading the model that was `given`.
pub(crate) fn failed(given: &str) -> impl Fn(LoadError) -> CommandError {
    |source| CommandError::Model { given: text::line(given), source }
}

/// Opens the files of a model: a path, a name on the hub, or the bundled model. If `offline`, no network is used.
pub(crate) fn checkpoint(given: &str, offline: bool) -> Result<Checkpoint, CommandError> {
    let Some(source) = Source::of(given) else {
        return Err(CommandError::NoSuchModel { given: text::line(given) });
    };
    source.checkpoint(offline).map_err(failed(given))
}

/// A model in this process.
pub(crate) struct Local {
    pub(crate) backend: CandleBackend,
    pub(crate) family: PromptFamily,
    pub(crate) limits: ScoringOptions,
    pub(crate) fingerprint: u32,
}

/// Loads the local model of the arguments.
pub(crate) fn local(arguments: &ModelArguments) -> Result<Local, CommandError> {
    let given = &arguments.model;
    let mut checkpoint = checkpoint(given, arguments.offline)?;
    if arguments.no_mmap {
        checkpoint = checkpoint.without_mapping().map_err(failed(given))?;
    }
    let family = family(arguments, &checkpoint)?;
    let backend = CandleBackend::load(&checkpoint, &settings(arguments)).map_err(failed(given))?;
    let limits = limits(arguments, backend.config());
    Ok(Local { backend, family, limits, fingerprint: checkpoint.fingerprint() })
}

/// Loads a local model, or connects to a remote one.
pub(crate) fn choose(
    model: &ModelArguments,
    remote: &RemoteArguments,
    score: Option<Score>,
) -> Result<Chosen, CommandError> {
    remote.check()?;
    if remote.backend == Backend::Candle {
        let Local { backend, family, limits, fingerprint } = local(model)?;
        let description = Some(backend.description());
        let (backend, fingerprint) = (Box::new(backend), Some(fingerprint));
        return Ok(Chosen { backend, family, limits, fingerprint, description });
    }
    let mut settings = OpenAiSettings::default();
    settings.model = (model.model != BUNDLED).then(|| model.model.clone());
    settings.api_key = std::env::var("ERANK_API_KEY").ok().map(ApiKey::new);
    settings.prompt_format = match remote.prompts.unwrap_or_default() {
        Prompts::Template => erank_openai::PromptFormat::ServerTemplate,
        Prompts::Chatml => erank_openai::PromptFormat::chat_ml(),
        Prompts::Chat => erank_openai::PromptFormat::Chat,
    };
    settings.logprobs = needs_logprobs(remote, score);
    let backend = OpenAiBackend::new(&remote.url, settings)?;
    let mut limits = ScoringOptions::default();
    if let Some(tokens) = model.max_document_tokens {
        limits.max_document_tokens = tokens.get();
    }
    limits.max_prompt_tokens = model.max_prompt_tokens.map(NonZeroUsize::get);
    let family = remote_family(model);
    let (backend, fingerprint, description) = (Box::new(backend), None, None);
    Ok(Chosen { backend, family, limits, fingerprint, description })
}

/// Returns whether the backend has to give log-probabilities. Servers without them can still rank by integers.
pub(crate) fn needs_logprobs(remote: &RemoteArguments, score: Option<Score>) -> bool {
    remote.backend == Backend::Candle || !matches!(score, Some(Score::Integer))
}

/// Loads the bundled model with default settings.
pub(crate) fn bundled() -> Result<CandleBackend, CommandError> {
    CandleBackend::tiny().map_err(failed(BUNDLED))
}

/// The source of a local model.
#[derive(Debug, PartialEq)]
enum Source<'a> {
    /// A folder or a GGUF file.
    Local(&'a Path),
    Bundled,
    /// A name that [`HubName::parse`] accepts.
    Hub(&'a str),
}

impl<'a> Source<'a> {
    /// Returns the folder or the GGUF file of this path, or else the name on the hub if `given` is a valid one.
    fn of(given: &'a str) -> Option<Self> {
        let path = Path::new(given);
        let is_file_name = given.ends_with(".gguf") && !given.contains(':');
        if path.is_dir() || is_file_name || path.is_file() {
            return Some(Self::Local(path));
        }
        if given == BUNDLED {
            return Some(Self::Bundled);
        }
        HubName::parse(given).map(|_| Self::Hub(given))
    }

    /// Opens the checkpoint; a checkpoint on the hub is downloaded first, unless `offline`.
    fn checkpoint(&self, offline: bool) -> Result<Checkpoint, LoadError> {
        match self {
            Self::Local(path) => Checkpoint::open(path),
            Self::Bundled => Ok(Checkpoint::tiny()),
            Self::Hub(name) if offline => Checkpoint::from_hub_cache(name, None),
            Self::Hub(name) => Checkpoint::from_hub(name, None),
        }
    }
}

/// Returns the settings of the local backend.
pub(crate) fn settings(arguments: &ModelArguments) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.weights = arguments.weights;
    settings.kv_cache = arguments.kv_cache.map(|format| match format {
        CacheFormat::F32 => KvCacheFormat::F32,
        CacheFormat::Bf16 => KvCacheFormat::Bf16,
        CacheFormat::Int8 => KvCacheFormat::Int8,
    });
    settings.device = match arguments.device {
        Device::Cpu => erank_candle::Device::Cpu,
        Device::CpuCandle => erank_candle::Device::CpuCandle,
        Device::Cuda => erank_candle::Device::Cuda { ordinal: 0 },
        Device::Metal => erank_candle::Device::Metal { ordinal: 0 },
    };
    settings.threads = arguments.threads;
    if let Some(mebibytes) = arguments.kv_cache_mib {
        settings.kv_cache_memory_bytes = Some(mebibytes.get().saturating_mul(1 << 20));
    }
    settings
}

/// Returns the default options with the token limits for queries and documents.
///
/// The library's limits are lowered for a model with a short context. `--max-document-tokens` takes
/// precedence.
pub(crate) fn limits(arguments: &ModelArguments, config: &Config) -> ScoringOptions {
    let mut limits = ScoringOptions::default();
    let positions = config.max_position_embeddings;
    limits.max_query_tokens = limits.max_query_tokens.min(positions / 4).max(1);
    limits.max_document_tokens = match arguments.max_document_tokens {
        Some(tokens) => tokens.get(),
        None => limits.max_document_tokens.min(positions / 2).max(1),
    };
    limits.max_prompt_tokens = arguments.max_prompt_tokens.map(NonZeroUsize::get);
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_folder_a_hub_name_or_the_bundled_model() {
        assert_eq!(Source::of("tiny"), Some(Source::Bundled));
        assert_eq!(Source::of("/"), Some(Source::Local(Path::new("/"))));
        let local = Some(Source::Local(Path::new("models/m-Q8_0.gguf")));
        assert_eq!(Source::of("models/m-Q8_0.gguf"), local);
        for name in [
            "a/b:Q4_K_M",
            "a/b:c/d.gguf@v1",
            "a/b@v1:c/d.gguf",
            "Alibaba-NLP/ERank-4B",
            "a/b.c@v1/x",
        ] {
            assert_eq!(Source::of(name), Some(Source::Hub(name)));
        }
        for invalid in
            ["", "nowhere", "./nowhere", "/no/where", "a/b/c", "../a", "a/b@", "a/\u{1b}"]
        {
            assert_eq!(Source::of(invalid), None, "{invalid}");
        }
    }
}

//! The local backend: a checkpoint loaded into an engine.

use std::num::NonZeroUsize;
use std::path::Path;

use candle_core::DType;
use erank_core::backend::{BackendError, DocumentError, Job, ScoringBackend, ScoringOptions, Sink};
use erank_core::prompt::BoundPrompt;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::LoadError;
use crate::kv_cache::{BLOCK_TOKENS, KvCache};
use crate::labels::Labels;
use crate::logits::{Logits, TokenLogProb};
use crate::model::Qwen3;
use crate::sequence::Task;
use crate::tokenizer::{EncodedPrompt, PromptTokenizer};

/// How a model is loaded and run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The type that weights and the KV cache are kept in, F32 or BF16; `None` is the checkpoint's
    /// own. Arithmetic is in F32 either way.
    pub dtype: Option<DType>,
    /// Threads to compute with; `None` is one per core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes for the KV cache. Work that does not fit waits.
    pub cache_bytes: usize,
    /// Most tokens that one step computes. More make prompts faster to read, and make a stop, which
    /// is seen between steps, slower.
    pub step_tokens: NonZeroUsize,
}

impl Default for Settings {
    /// The checkpoint's type, all cores, 2 GiB of cache, 512 tokens a step.
    fn default() -> Self {
        Self {
            dtype: None,
            threads: None,
            cache_bytes: 2 << 30,
            step_tokens: NonZeroUsize::MIN.saturating_add(511),
        }
    }
}

/// ERank in this process: a [`ScoringBackend`] on candle.
///
/// One model serves any number of threads. Jobs take turns; the documents of a job share one
/// running batch.
///
/// ```
/// use erank_candle::CandleBackend;
/// use erank_core::{Request, Reranker};
///
/// // `CandleBackend::open(folder)` and `CandleBackend::from_hub(name, revision)` load the real one.
/// let reranker = Reranker::builder(CandleBackend::tiny()?).build()?;
/// let request = Request::new("capital of France", [
///     "The recipe takes flour, water and salt.",
///     "Paris is the capital of France and its largest city.",
/// ]);
/// let ranking = reranker.rerank(&request)?;
/// assert_eq!(ranking.documents[0].index, 1);
/// println!("{}", ranking.documents[0].reasoning);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CandleBackend {
    name: String,
    tokenizer: PromptTokenizer,
    engine: Engine,
}

impl CandleBackend {
    /// Loads a folder in the layout of the model hub, with the default settings.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::open(folder)?, &Settings::default())
    }

    /// Loads a model by its name on the model hub, such as `Alibaba-NLP/ERank-4B`, with the default
    /// settings; `revision` is a branch, tag or commit, `main` if none is given. Files are kept in
    /// the hub's usual cache.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    #[cfg(feature = "hub")]
    pub fn from_hub(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::from_hub(name, revision)?, &Settings::default())
    }

    /// Loads the bundled demonstration model.
    ///
    /// # Errors
    /// [`LoadError`] if threads cannot be started.
    #[cfg(feature = "tiny-model")]
    pub fn tiny() -> Result<Self, LoadError> {
        Self::load(&Checkpoint::tiny(), &Settings::default())
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    pub fn load(checkpoint: &Checkpoint, settings: &Settings) -> Result<Self, LoadError> {
        let tokenizer = PromptTokenizer::new(
            checkpoint.tokenizer.as_deref().ok_or_else(|| {
                LoadError::invalid("tokenizer.json", "the checkpoint does not have it")
            })?,
            checkpoint.tokenizer_config.as_deref(),
            checkpoint.chat_template.as_deref(),
        )?;
        let setting = |what: &str, error: &dyn std::fmt::Display| {
            LoadError::Setting(format!("{what}: {error}"))
        };
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads.map_or(0, NonZeroUsize::get))
            .thread_name(|index| format!("erank-{index}"))
            .build()
            .map_err(|error| setting("cannot start the threads", &error))?;

        let model = threads.install(|| Qwen3::load(checkpoint, settings.dtype))?;
        let vocab_size = model.config().vocab_size;
        if tokenizer.vocab_size() > vocab_size {
            let reason = format!(
                "its ids reach {}, but the model has {vocab_size} embeddings",
                tokenizer.vocab_size() - 1
            );
            return Err(LoadError::invalid("tokenizer.json", reason));
        }
        let blocks = cache_blocks(&model, settings)?;
        let engine = Engine::new(model, threads, blocks, settings.step_tokens.get())
            .map_err(|error| setting("cannot make the KV cache", &error))?;
        Ok(Self { name: checkpoint.name().to_owned(), tokenizer, engine })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.engine.model().config()
    }

    /// The checkpoint's tokenizer and chat template.
    pub fn tokenizer(&self) -> &PromptTokenizer {
        &self.tokenizer
    }

    /// What runs, for logs: the instruction set of the kernels and the type of the weights.
    pub fn description(&self) -> String {
        let model = self.engine.model();
        format!("{} weights, {} kernels", model.dtype().as_str(), model.instruction_set())
    }

    /// The prompt for a document as the model reads it: the text, and its tokens.
    ///
    /// # Errors
    /// [`BackendError`] if the chat template or the tokenizer fails on it.
    pub fn encode(
        &self,
        prompt: &BoundPrompt<'_>,
        document: &str,
        options: &ScoringOptions,
    ) -> Result<(String, EncodedPrompt), BackendError> {
        let frame = self.tokenizer.bind(prompt, options)?;
        let failed = |error: DocumentError| BackendError::Failed(error.into());
        let text = frame.text(document).map_err(failed)?;
        Ok((text, frame.encode(document).map_err(failed)?))
    }

    /// For every position of `ids`, the `k` tokens that the model finds most probable next, best
    /// first.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] if there are more ids than fit, or one is not in the
    /// vocabulary.
    pub fn most_probable(
        &self,
        ids: &[u32],
        k: usize,
    ) -> Result<Vec<Vec<TokenLogProb>>, BackendError> {
        let limit = self.engine.limit();
        if ids.len() > limit {
            let problem = format!("{} tokens, where {limit} fit", ids.len());
            return Err(BackendError::Unsupported(problem.into()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config().vocab_size) {
            let problem = format!("token id {id} is not below {}", self.config().vocab_size);
            return Err(BackendError::Unsupported(problem.into()));
        }
        let mut positions = Vec::with_capacity(ids.len());
        self.engine
            .every_logits(ids, |logits| positions.push(Logits::new(logits).most_probable(k)))
            .map_err(|error| BackendError::Failed(error.into()))?;
        Ok(positions)
    }
}

/// Blocks that the budget pays for, but no more than one step's sequences could ever fill.
fn cache_blocks(model: &Qwen3, settings: &Settings) -> Result<usize, LoadError> {
    let config = model.config();
    let block_bytes = KvCache::block_bytes(config, model.dtype());
    let affordable = settings.cache_bytes / block_bytes;
    let sequence = config.max_position_embeddings.div_ceil(BLOCK_TOKENS);
    let usable = sequence.saturating_mul(settings.step_tokens.get().saturating_add(1));
    // The least in which a prompt and its answer could fit.
    const LEAST: usize = 16;
    if affordable < LEAST {
        return Err(LoadError::Setting(format!(
            "cache_bytes is {}; with {block_bytes} bytes for {BLOCK_TOKENS} tokens, give at least {}",
            settings.cache_bytes,
            LEAST * block_bytes
        )));
    }
    Ok(affordable.min(usable))
}

impl ScoringBackend for CandleBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let frame = self.tokenizer.bind(&job.prompt, &job.options)?;
        let format = job.prompt.answers();
        let labels = format
            .answers()
            .map(|(label, _)| self.tokenizer.encode_trusted(label))
            .collect::<Result<_, _>>()?;
        let task = Task {
            tokenizer: &self.tokenizer,
            format,
            labels: Labels::new(labels),
            mode: job.options.mode,
            eos_token_ids: &self.config().eos_token_ids,
            opens_thought: frame.opens_thought(),
            limit: self.engine.limit(),
        };
        self.engine
            .run(&task, &frame, job.documents, &job.stop, sink)
            .map_err(|error| BackendError::Failed(error.into()))
    }
}

impl std::fmt::Debug for CandleBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CandleBackend")
            .field("name", &self.name)
            .field("config", self.config())
            .finish_non_exhaustive()
    }
}

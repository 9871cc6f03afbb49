//! The local backend: a checkpoint loaded into an engine.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation};
use erank_core::prompt::BoundPrompt;
use erank_core::{BackendError, DocumentError, Job, ScoringBackend, ScoringOptions, Sink};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::engine::labels::Labels;
use crate::engine::sequence::{THOUGHT_CLOSE, Task};
use crate::engine::{Engine, Limits, Statistics};
use crate::error::LoadError;
use crate::kv_cache::{BLOCK_TOKENS, BlockId, KvCache};
use crate::logits::{Logits, TokenLogProb};
use crate::memory;
use crate::model::{CANDLE, Qwen3, Row};
use crate::tokenizer::{EncodedPrompt, PromptTokenizer};

/// How a model is loaded and run.
///
/// ```
/// use erank_candle::{CandleBackend, Checkpoint, CandleSettings};
///
/// let mut settings = CandleSettings::default();
/// settings.threads = Some(2.try_into()?);
/// settings.kv_cache_memory_bytes = Some(64 << 20);
/// // Or `Checkpoint::open(folder)`, or `Checkpoint::from_hub(name, revision)`.
/// let backend = CandleBackend::load(&Checkpoint::tiny(), &settings)?;
/// println!("{}, room for {} blocks", backend.description(), backend.statistics().total_blocks);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CandleSettings {
    /// The type that weights and the KV cache are kept in, F32 or BF16; `None` is the checkpoint's
    /// own. Arithmetic is in F32 either way.
    pub dtype: Option<DType>,
    /// Where the model runs: on the CPU, with this crate's kernels, or on a GPU, through candle's own
    /// operations, for which the crate must be built with its feature `cuda` or `metal`.
    pub device: DeviceLocation,
    /// The instruction set of the kernels: `"amx"`, `"avx512bf16"`, `"avx512"`, `"avx2"` or `"portable"`, if
    /// the machine has it. `None` is the environment variable `ERANK_INSTRUCTION_SET`, or else the
    /// best. `"candle"` is none of them, but candle's own operations, as a GPU runs them: much slower on
    /// the CPU, and there to test them.
    pub instruction_set: Option<String>,
    /// Threads to compute with; `None` is one per core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes for the KV cache, running sequences and remembered prefixes together. Work that does
    /// not fit waits. The cache has the type of the weights: an F32 model's holds half as many tokens
    /// in the same bytes as a BF16 model's. `None` is a quarter of the memory that is available when
    /// the model is loaded, or 2 GiB where that cannot be told, as of a GPU.
    pub kv_cache_memory_bytes: Option<usize>,
    /// Most tokens that one step computes. More make prompts faster to read, and make a stop, which
    /// is seen between steps, slower.
    pub max_num_batched_tokens: NonZeroUsize,
    /// Most sequences that run at once, over all callers. More share the reading of the weights, and
    /// make the first results come later.
    pub max_num_seqs: NonZeroUsize,
    /// A step of fewer tokens is filled up to this many with guesses of what comes next, copied
    /// from where the last tokens stood before: with few sequences, checking several tokens costs
    /// hardly more than computing one. 0 guesses nothing. Results are the same.
    pub speculative_tokens: usize,
}

impl Default for CandleSettings {
    /// The checkpoint's type, the CPU, all its cores, a quarter of the memory, 512 tokens a step,
    /// 64 sequences, guesses up to 8 tokens.
    fn default() -> Self {
        Self {
            dtype: None,
            device: DeviceLocation::Cpu,
            instruction_set: None,
            threads: None,
            kv_cache_memory_bytes: None,
            max_num_batched_tokens: NonZeroUsize::MIN.saturating_add(511),
            max_num_seqs: NonZeroUsize::MIN.saturating_add(63),
            speculative_tokens: 8,
        }
    }
}

/// ERank in this process: a [`ScoringBackend`] on candle.
///
/// One model serves any number of threads: the documents of all callers share one running batch, on
/// a thread of the backend's own that ends with it. On the CPU, a document's result has the same bits
/// whatever else runs.
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
/// println!("{}", ranking.documents[0].answer.reasoning);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CandleBackend {
    name: String,
    tokenizer: PromptTokenizer,
    model: Arc<Qwen3>,
    threads: Arc<rayon::ThreadPool>,
    engine: Engine,
    /// Held while [`CandleBackend::most_probable`] has a cache beside the engine's.
    own_cache: Mutex<()>,
}

impl CandleBackend {
    /// Loads a folder in the layout of the model hub, with the default settings.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::open(folder)?, &CandleSettings::default())
    }

    /// Loads a model by its name on the model hub, such as `Alibaba-NLP/ERank-4B`, with the default
    /// settings; `revision` is a branch, tag or commit, `main` if none is given. Files are kept in
    /// the hub's usual cache.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    #[cfg(feature = "hub")]
    pub fn from_hub(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::from_hub(name, revision)?, &CandleSettings::default())
    }

    /// Loads the bundled demonstration model.
    ///
    /// # Errors
    /// [`LoadError`] if threads cannot be started.
    #[cfg(feature = "tiny-model")]
    pub fn tiny() -> Result<Self, LoadError> {
        Self::load(&Checkpoint::tiny(), &CandleSettings::default())
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// [`LoadError`] names the file, tensor or setting that is missing or wrong.
    pub fn load(checkpoint: &Checkpoint, settings: &CandleSettings) -> Result<Self, LoadError> {
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
        let threads = Arc::new(threads);

        let model = Arc::new(threads.install(|| load_model(checkpoint, settings))?);
        let vocab_size = model.config().vocab_size;
        if tokenizer.vocab_size() > vocab_size {
            let reason = format!(
                "its ids reach {}, but the model has {vocab_size} embeddings",
                tokenizer.vocab_size() - 1
            );
            return Err(LoadError::invalid("tokenizer.json", reason));
        }
        let blocks = cache_blocks(&model, settings)?;
        let cache =
            model.new_cache(blocks).map_err(|error| setting("cannot make the KV cache", &error))?;
        let max_num_batched_tokens = settings.max_num_batched_tokens.get();
        let sequences = settings.max_num_seqs.get().min(max_num_batched_tokens);
        let limits = Limits {
            max_num_batched_tokens,
            sequences,
            speculative_tokens: settings.speculative_tokens,
        };
        let engine = Engine::start(Arc::clone(&model), Arc::clone(&threads), cache, limits)
            .map_err(|error| setting("cannot start the engine's thread", &error))?;
        let (name, own_cache) = (checkpoint.name().to_owned(), Mutex::new(()));
        let backend = Self { name, tokenizer, model, threads, engine, own_cache };
        tracing::info!(model = backend.name, blocks, "loaded: {}", backend.description());
        Ok(backend)
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The checkpoint's tokenizer and chat template.
    pub fn tokenizer(&self) -> &PromptTokenizer {
        &self.tokenizer
    }

    /// What runs, for logs: the type of the weights, and the instruction set of the kernels or the device.
    pub fn description(&self) -> String {
        let (dtype, set) = (self.model.dtype().as_str(), self.model.instruction_set());
        match self.model.device().location() {
            DeviceLocation::Cpu => format!("{dtype} weights, {set} kernels"),
            DeviceLocation::Cuda { gpu_id } => format!("{dtype} weights, on CUDA device {gpu_id}"),
            DeviceLocation::Metal { gpu_id } => {
                format!("{dtype} weights, on Metal device {gpu_id}")
            }
        }
    }

    /// What the engine has done and is doing, in numbers.
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
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
    /// first. Meant for looking into a model: it is computed beside the running batch, with a cache of
    /// its own, for the ids alone, that [`CandleSettings::kv_cache_memory_bytes`] does not count. Calls wait for one
    /// another, so there is one such cache at most.
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
        self.every_logits(ids, |logits| logits.most_probable(k))
            .map_err(|error| BackendError::Failed(error.into()))
    }

    /// The tokens that end the model's turn, as any of the checkpoint's files names them.
    fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids = self.config().eos_token_ids.clone();
        ids.extend(self.tokenizer.eos_token_id().filter(|id| !ids.contains(id)));
        ids
    }

    /// What `read` makes of the logits behind each of `ids`, in order.
    fn every_logits<T>(
        &self,
        ids: &[u32],
        mut read: impl FnMut(&Logits<'_>) -> T,
    ) -> candle_core::Result<Vec<T>> {
        // Logits of a large vocabulary take space: 151,936 × 4 bytes a token.
        const AT_ONCE: usize = 64;
        let blocks = ids.len().div_ceil(BLOCK_TOKENS);
        // Nothing is guarded that a panic could have left half done.
        let _one_at_a_time = self.own_cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = self.model.new_cache(blocks)?;
        let blocks: Vec<BlockId> = std::iter::from_fn(|| cache.take()).collect();
        let mut positions = Vec::with_capacity(ids.len());
        for tokens in ids.chunks(AT_ONCE) {
            let position = positions.len();
            let row = Row { tokens, position, blocks: &blocks, logits: tokens.len() };
            let logits = self.threads.install(|| self.model.forward(&[row], &cache))?;
            let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
            let rows = logits.chunks_exact(self.config().vocab_size);
            positions.extend(rows.map(|row| read(&Logits::new(row))));
        }
        Ok(positions)
    }
}

/// With kernels on the CPU, and through candle's operations elsewhere, or if asked for.
fn load_model(checkpoint: &Checkpoint, settings: &CandleSettings) -> Result<Qwen3, LoadError> {
    use DeviceLocation::{Cpu, Cuda, Metal};
    match (settings.device, settings.instruction_set.as_deref()) {
        (location, Some(CANDLE)) | (location @ (Cuda { .. } | Metal { .. }), None) => {
            Qwen3::load_on(&open_device(location)?, checkpoint, settings.dtype)
        }
        (Cpu, set) => Qwen3::load(checkpoint, settings.dtype, set),
        (location, Some(set)) => Err(LoadError::Setting(format!(
            "the instruction set {set:?} is one of the CPU's; give none for {location:?}"
        ))),
    }
}

fn open_device(location: DeviceLocation) -> Result<Device, LoadError> {
    let (device, feature) = match location {
        DeviceLocation::Cpu => return Ok(Device::Cpu),
        DeviceLocation::Cuda { gpu_id } => (Device::new_cuda(gpu_id), "cuda"),
        DeviceLocation::Metal { gpu_id } => (Device::new_metal(gpu_id), "metal"),
    };
    device.map_err(|error| {
        LoadError::Setting(format!(
            "cannot use {location:?}: {error}; it takes such a device with its driver, and a build with \
             erank-candle's feature `{feature}`"
        ))
    })
}

/// Blocks that the budget pays for, but no more than the running sequences could ever fill.
fn cache_blocks(model: &Qwen3, settings: &CandleSettings) -> Result<usize, LoadError> {
    // The least in which a prompt and its answer could fit.
    const LEAST: usize = 16;
    let config = model.config();
    let block_bytes = KvCache::block_bytes(config, model.dtype());
    let available = || memory::available().filter(|_| model.device().is_cpu());
    let affordable = match settings.kv_cache_memory_bytes {
        Some(bytes) => bytes / block_bytes,
        None => (available().map_or(2 << 30, |bytes| bytes / 4) / block_bytes).max(LEAST),
    };
    if affordable < LEAST {
        return Err(LoadError::Setting(format!(
            "kv_cache_memory_bytes pays for {affordable} blocks; with {block_bytes} bytes for {BLOCK_TOKENS} \
             tokens, give at least {}",
            LEAST * block_bytes
        )));
    }
    let sequence = config.max_position_embeddings.div_ceil(BLOCK_TOKENS);
    let usable = sequence.saturating_mul(settings.max_num_seqs.get().saturating_add(1));
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
            tokenizer: self.tokenizer.clone(),
            format: format.clone(),
            labels: Labels::new(labels),
            options: job.options,
            eos_token_ids: self.eos_token_ids(),
            end_of_thought: self
                .tokenizer
                .token_to_id(THOUGHT_CLOSE)
                .filter(|id| self.tokenizer.is_added(*id)),
            opens_thought: frame.opens_thought(),
            limit: self.engine.limit(),
        };
        let span = tracing::debug_span!("score", documents = job.documents.len());
        let _in_span = span.enter();
        self.engine.run(&Arc::new(task), &frame, job.documents, &job.cancellation, sink)
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

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_with_what_any_file_says() {
        let mut checkpoint = Checkpoint::tiny();
        let id = |token: &str| {
            CandleBackend::tiny().expect("bundled").tokenizer().token_to_id(token).expect("a token")
        };
        let (text, start, end) = (id("<|endoftext|>"), id("<|im_start|>"), id("<|im_end|>"));
        checkpoint.generation_config = Some(format!(r#"{{"eos_token_id": {text}}}"#).into());
        let set = |json: &[u8], key: &str, value: serde_json::Value| {
            let mut json: serde_json::Value = serde_json::from_slice(json).expect("JSON");
            json[key] = value;
            json.to_string().into_bytes()
        };
        checkpoint.config = set(&checkpoint.config, "eos_token_id", end.into());
        let config = checkpoint.tokenizer_config.take().expect("bundled");
        checkpoint.tokenizer_config = Some(set(&config, "eos_token", "<|im_start|>".into()));
        let backend = CandleBackend::load(&checkpoint, &CandleSettings::default()).expect("usable");
        assert_eq!(backend.eos_token_ids(), [text, end, start]);
    }
}

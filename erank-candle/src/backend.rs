//! The local backend: a checkpoint loaded into an engine.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use erank_core::tags::THINK_CLOSE;
use erank_core::{
    AnswerFormat, BackendError, BoundPrompt, Cause, DocumentError, Job, Mode, ScoringBackend,
    ScoringOptions, Sink,
};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::Config;
use crate::engine::Engine;
use crate::engine::answer_trie::AnswerTrie;
use crate::engine::block_allocator::BlockAllocator;
use crate::engine::limits::Limits;
use crate::engine::sequence::JobContext;
use crate::engine::statistics::Statistics;
use crate::error::LoadError;
use crate::kernels::WeightFormat;
use crate::logits::{Logits, TokenLogProb};
use crate::memory;
use crate::model::load::{LoadedModel, load};
use crate::model::step::{BLOCK_TOKENS, BlockId, Row};
use crate::model::{Head, ModelShape};
use crate::settings::{CandleSettings, Device};
use crate::tokenizer::{EncodedPrompt, PromptTokenizer};

/// ERank in this process: a [`ScoringBackend`] on candle.
///
/// One model serves any number of threads. The documents of all callers share one running batch, on a thread
/// that the backend starts and that ends when the backend is dropped. On the CPU, a document's result has the
/// same bits, no matter what else runs.
///
/// ```
/// use erank_candle::CandleBackend;
/// use erank_core::{Request, Reranker};
///
/// // `CandleBackend::open(folder)` and `CandleBackend::from_hub(name, revision)` load the real model.
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
    model: LoadedModel,
    device: Device,
    threads: Arc<rayon::ThreadPool>,
    engine: Engine,
    /// Held while [`CandleBackend::most_probable`] has a KV cache besides the engine's.
    inspection: Mutex<()>,
}

impl CandleBackend {
    /// Loads a folder in the layout of the model hub, or a GGUF file, with the default settings. See
    /// [`Checkpoint::open`].
    ///
    /// # Errors
    /// Returns a [`LoadError`] that names the file, tensor or setting that is missing or wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::open(path)?, &CandleSettings::default())
    }

    /// Loads a model by its name on the model hub, such as `Alibaba-NLP/ERank-4B`, with the default settings.
    ///
    /// `revision` is a branch, tag or commit; `None` is `main`. Files are kept in the hub's usual cache.
    ///
    /// # Errors
    /// Returns a [`LoadError`] that names the file, tensor or setting that is missing or wrong.
    #[cfg(feature = "hub")]
    pub fn from_hub(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        Self::load(&Checkpoint::from_hub(name, revision)?, &CandleSettings::default())
    }

    /// Loads the bundled demonstration model.
    ///
    /// # Errors
    /// Returns a [`LoadError`] if threads cannot be started.
    #[cfg(feature = "tiny-model")]
    pub fn tiny() -> Result<Self, LoadError> {
        Self::load(&Checkpoint::tiny(), &CandleSettings::default())
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Returns a [`LoadError`] that names the file, tensor or setting that is missing or wrong.
    pub fn load(checkpoint: &Checkpoint, settings: &CandleSettings) -> Result<Self, LoadError> {
        let tokenizer = checkpoint.tokenizer()?;
        let threads = Arc::new(start_threads(settings.threads)?);
        let model = threads.install(|| load(checkpoint, settings))?;
        check_vocabulary(&tokenizer, &model.config)
            .map_err(|error| checkpoint.name_built_file(error))?;
        let engine = start_engine(&model, &threads, settings)?;
        let backend = Self {
            name: checkpoint.name().to_owned(),
            tokenizer,
            model,
            device: settings.device,
            threads,
            engine,
            inspection: Mutex::new(()),
        };
        let blocks = backend.statistics().total_blocks;
        tracing::info!(model = backend.name, blocks, "loaded: {}", backend.description());
        Ok(backend)
    }

    /// Returns the model's configuration.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// Returns the checkpoint's tokenizer with its chat template.
    pub fn tokenizer(&self) -> &PromptTokenizer {
        &self.tokenizer
    }

    /// Returns a description of what runs, for logs. It names the format of the weights, and the kernels or
    /// the device.
    pub fn description(&self) -> String {
        description(self.model.weights, self.model.kernels, self.device)
    }

    /// Returns the engine's counters. They are published before each result is sent, so they include every result that
    /// a caller has, even if the step has not ended.
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
    }

    /// Renders the prompt for a document as the model reads it. Returns its text and its tokens.
    ///
    /// # Errors
    /// Returns a [`BackendError`] if the chat template or the tokenizer fails on it.
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

    /// Returns the `k` most probable next tokens at every position of `ids`, best first.
    ///
    /// This method serves to inspect a model. It computes beside the running batch, with a KV cache for these ids
    /// that [`CandleSettings::kv_cache_memory_bytes`] does not count. Concurrent calls run one after another, so
    /// that there is at most one such cache.
    ///
    /// # Errors
    /// Returns [`BackendError::Unsupported`] if there are more ids than fit the model, one is outside the
    /// vocabulary, or the model is a classifier. Returns [`BackendError::Failed`] if the model's numbers are NaN or
    /// infinite, as with damaged weights.
    pub fn most_probable(
        &self,
        ids: &[u32],
        k: usize,
    ) -> Result<Vec<Vec<TokenLogProb>>, BackendError> {
        if self.model.model.shape().head == Head::Classifier {
            let problem = "the model is a classifier, which has no probabilities of tokens";
            return Err(BackendError::Unsupported(problem.into()));
        }
        let limit = self.engine.max_tokens();
        if ids.len() > limit {
            let problem = format!("{} tokens are more than the {limit} that fit", ids.len());
            return Err(BackendError::Unsupported(problem.into()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config().vocab_size) {
            let problem = format!("token id {id} is not below {}", self.config().vocab_size);
            return Err(BackendError::Unsupported(problem.into()));
        }
        self.logits_of_all(ids, |logits| logits.most_probable(k)).map_err(BackendError::Failed)
    }

    /// Returns the tokens that end the model's turn according to any of the checkpoint's files.
    fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids = self.config().eos_token_ids.clone();
        ids.extend(self.tokenizer.eos_token_id().filter(|id| !ids.contains(id)));
        ids
    }

    /// Calls `read` with the logits after each of `ids`, in order, and collects its results.
    fn logits_of_all<T>(
        &self,
        ids: &[u32],
        mut read: impl FnMut(&Logits<'_>) -> T,
    ) -> Result<Vec<T>, Cause> {
        // A token's logits take 151,936 × 4 bytes with Qwen3's vocabulary.
        const TOKENS_PER_PASS: usize = 64;
        // The lock guards no data that a panic could have left inconsistent.
        let _guard = self.inspection.lock().unwrap_or_else(PoisonError::into_inner);
        let model = &self.model.model;
        let mut allocator = BlockAllocator::new(ids.len().div_ceil(BLOCK_TOKENS));
        let cache = model.new_cache(allocator.blocks())?;
        let blocks: Vec<BlockId> = std::iter::from_fn(|| allocator.allocate()).collect();
        let mut results = Vec::with_capacity(ids.len());
        for tokens in ids.chunks(TOKENS_PER_PASS) {
            let position = results.len();
            let row = Row { tokens, position, blocks: &blocks, logits: tokens.len() };
            let logits = self.threads.install(|| model.forward(&[row], &cache))?;
            for row in logits.chunks_exact(model.shape().logits) {
                let logits = Logits::new(row);
                logits.check()?;
                results.push(read(&logits));
            }
        }
        Ok(results)
    }
}

/// Returns the description of a model with weights mostly of this format.
pub(crate) fn description(weights: WeightFormat, kernels: &str, device: Device) -> String {
    match device {
        Device::Cpu | Device::CpuCandle => format!("{weights} weights, {kernels} kernels"),
        device => format!("{weights} weights, on {device}"),
    }
}

fn start_threads(count: Option<NonZeroUsize>) -> Result<rayon::ThreadPool, LoadError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count.map_or(0, NonZeroUsize::get))
        .thread_name(|index| format!("erank-{index}"))
        .build()
        .map_err(|error| LoadError::Setting(format!("cannot start the threads: {error}")))
}

/// Checks that the model has an embedding for every token id.
fn check_vocabulary(tokenizer: &PromptTokenizer, config: &Config) -> Result<(), LoadError> {
    let (ids, embeddings) = (tokenizer.vocab_size(), config.vocab_size);
    if ids > embeddings {
        let reason =
            format!("its ids reach {}, but the model has {embeddings} embeddings", ids - 1);
        return Err(LoadError::invalid("tokenizer.json", reason));
    }
    Ok(())
}

fn start_engine(
    model: &LoadedModel,
    threads: &Arc<rayon::ThreadPool>,
    settings: &CandleSettings,
) -> Result<Engine, LoadError> {
    let (shape, available) = (model.model.shape(), available_memory(settings.device));
    let blocks = cache_blocks(shape, settings, available)?;
    check_memory(shape, settings, available)?;
    let max_num_batched_tokens = settings.max_num_batched_tokens.get();
    let limits = Limits {
        blocks,
        max_num_batched_tokens,
        max_num_seqs: settings.max_num_seqs.get().min(max_num_batched_tokens),
        speculative_tokens: settings.speculative_tokens,
    };
    Engine::start(Arc::clone(&model.model), Arc::clone(threads), limits)
        .map_err(|error| LoadError::Setting(format!("cannot start the engine: {error}")))
}

/// Returns the memory that is available on a device, if it is known.
pub(crate) fn available_memory(device: Device) -> Option<usize> {
    match device {
        Device::Cpu | Device::CpuCandle => memory::available(),
        _ => None,
    }
}

/// Smallest number of blocks that a prompt and its answer fit in.
const MIN_BLOCKS: usize = 16;

/// Checks that the shortest cache fits the available memory, unless the settings choose the budget.
fn check_memory(
    shape: ModelShape,
    settings: &CandleSettings,
    available: Option<usize>,
) -> Result<(), LoadError> {
    let least = MIN_BLOCKS.saturating_mul(shape.block_bytes);
    match (settings.kv_cache_memory_bytes, available) {
        (None, Some(available)) if available < least => Err(LoadError::Setting(format!(
            "the shortest KV cache of the model takes {least} bytes, more than the {available} that are available; \
             free memory, or choose a smaller model"
        ))),
        _ => Ok(()),
    }
}

/// Returns the number of blocks that the budget pays for, at most as many as the running sequences could fill.
/// `available` is the memory of which the default budget is a quarter. That budget pays at least for one prompt and its
/// answer, even if there is less memory.
///
/// # Errors
/// Returns an error if the budget of `settings` does not pay for one prompt and its answer.
pub(crate) fn cache_blocks(
    shape: ModelShape,
    settings: &CandleSettings,
    available: Option<usize>,
) -> Result<usize, LoadError> {
    let affordable = match settings.kv_cache_memory_bytes {
        Some(bytes) => bytes / shape.block_bytes,
        None => {
            let bytes = available.map_or(2 << 30, |bytes| bytes / 4);
            (bytes / shape.block_bytes).max(MIN_BLOCKS)
        }
    };
    if affordable < MIN_BLOCKS {
        return Err(LoadError::Setting(format!(
            "kv_cache_memory_bytes pays for {affordable} blocks of {BLOCK_TOKENS} tokens, {} bytes each; give \
             at least {} bytes",
            shape.block_bytes,
            MIN_BLOCKS * shape.block_bytes
        )));
    }
    let sequence = shape.max_tokens.div_ceil(BLOCK_TOKENS);
    let usable = sequence.saturating_mul(settings.max_num_seqs.get().saturating_add(1));
    Ok(affordable.min(usable))
}

/// Returns the tokens of each label.
fn label_tokens(
    tokenizer: &PromptTokenizer,
    format: &AnswerFormat,
) -> Result<Vec<Vec<u32>>, BackendError> {
    let mut labels: Vec<Vec<u32>> = Vec::new();
    for (label, _) in format.answers() {
        let tokens = tokenizer.encode_trusted(label)?;
        if tokens.is_empty() || labels.contains(&tokens) {
            let problem = format!(
                "the tokenizer does not distinguish the label {label:?} from another one, or has no token for it; \
                 choose an AnswerFormat with other labels"
            );
            return Err(BackendError::Unsupported(problem.into()));
        }
        labels.push(tokens);
    }
    Ok(labels)
}

/// Returns each label of a classifier as the index of its logit, checked against the job. `names` are those of the
/// classifier's rows.
fn label_indices(
    shape: ModelShape,
    names: &[String],
    format: &AnswerFormat,
    mode: Mode,
) -> Result<Vec<Vec<u32>>, BackendError> {
    let (labels, answers) = (shape.logits, format.answers().len());
    if mode != Mode::AnswerOnly {
        let problem = "the model is a classifier and generates no text; choose Mode::AnswerOnly";
        return Err(BackendError::Unsupported(problem.into()));
    }
    if labels != answers {
        let problem = format!(
            "the model is a classifier of {labels} labels, but the prompt allows {answers} answers; give the \
             prompt an AnswerFormat of {labels} labels, in the order of the model's"
        );
        return Err(BackendError::Unsupported(problem.into()));
    }
    // transformers names labels so if nobody named them.
    let has_names = !names.iter().enumerate().all(|(row, name)| *name == format!("LABEL_{row}"));
    let named = |label: &str| names.iter().position(|name| name.eq_ignore_ascii_case(label));
    let by_name: Option<Vec<usize>> = format.answers().map(|(label, _)| named(label)).collect();
    let indices = match by_name {
        Some(indices) => indices,
        // A single row is the probability of the second answer, whatever its name is.
        None if !has_names || names.len() < labels => (0..labels).collect(),
        None => {
            let wanted: Vec<&str> = format.answers().map(|(label, _)| label).collect();
            let problem = format!(
                "the classifier's labels are {} (id2label), but the prompt's answers are {}; give the prompt an \
                 AnswerFormat with the classifier's labels",
                names.join(", "),
                wanted.join(", ")
            );
            return Err(BackendError::Unsupported(problem.into()));
        }
    };
    Ok(indices.into_iter().map(|index| vec![index as u32]).collect())
}

impl ScoringBackend for CandleBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let frame = self.tokenizer.bind(&job.prompt, &job.options)?;
        let format = job.prompt.answers();
        let shape = self.model.model.shape();
        let labels = match shape.head {
            Head::LanguageModel => label_tokens(&self.tokenizer, format)?,
            Head::Classifier => {
                label_indices(shape, &self.config().label_names, format, job.options.mode)?
            }
        };
        let context = JobContext {
            tokenizer: self.tokenizer.clone(),
            format: format.clone(),
            answers: AnswerTrie::new(labels),
            head: shape.head,
            options: job.options,
            eos_token_ids: self.eos_token_ids(),
            thought_end_id: self
                .tokenizer
                .token_to_id(THINK_CLOSE)
                .filter(|id| self.tokenizer.is_added(*id)),
            prompt_opens_thought: frame.opens_thought(),
            wants_text: sink.wants_text(),
            max_tokens: self.engine.max_tokens(),
        };
        let span = tracing::debug_span!("score", documents = job.documents.len());
        let _in_span = span.enter();
        self.engine.run(&Arc::new(context), &frame, job.documents, &job.cancellation, sink)
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        Ok(self.tokenizer.token_ends(text, max_tokens)?)
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
    fn check_memory_reports_caches_that_do_not_fit() {
        let shape = ModelShape {
            head: Head::LanguageModel,
            logits: 8,
            max_tokens: 1 << 20,
            block_bytes: usize::MAX / 8,
        };
        let settings = CandleSettings::default();
        let error = check_memory(shape, &settings, Some(1 << 30)).expect_err("too large");
        assert!(error.to_string().contains("choose a smaller model"), "{error}");
        assert!(check_memory(shape, &settings, None).is_ok());
        let small = ModelShape { block_bytes: 1 << 20, ..shape };
        assert!(check_memory(small, &settings, Some(1 << 30)).is_ok());
        assert_eq!(cache_blocks(small, &settings, Some(1 << 30)).expect("fits"), 256);
        assert_eq!(cache_blocks(small, &settings, Some(0)).expect("the shortest"), MIN_BLOCKS);
    }

    #[test]
    fn eos_token_ids_come_from_every_file() {
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

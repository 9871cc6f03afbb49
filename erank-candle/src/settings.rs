//! The settings of the local backend.

use std::fmt;
use std::num::NonZeroUsize;

use candle_core::DType;

use crate::kernels::WeightFormat;

/// How a model is loaded and run.
///
/// ```
/// use erank_candle::{CandleBackend, CandleSettings, Checkpoint};
///
/// let mut settings = CandleSettings::default();
/// settings.threads = Some(2.try_into()?);
/// settings.kv_cache_memory_bytes = Some(64 << 20);
/// // `Checkpoint::open(folder)` and `Checkpoint::from_hub(name, revision)` read other models.
/// let backend = CandleBackend::load(&Checkpoint::tiny(), &settings)?;
/// println!("{}, {} blocks", backend.description(), backend.statistics().total_blocks);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CandleSettings {
    /// The format of the weights in memory; `None` keeps each tensor's own format. Candle's own operations
    /// ([`Device::CpuCandle`] and GPUs) hold all matrices in one type. With files of several types, `None` is F32
    /// there, which represents the numbers of the other types. Sums are always accumulated in F32.
    pub weights: Option<WeightFormat>,
    /// The type of keys and values in the cache. `None` is F32 in two cases: the weights are F32, or the files have
    /// matrices of several types that are not mostly quantised. Otherwise, `None` is BF16. In the same bytes, an F32
    /// cache holds half as many tokens as a BF16 cache, and an INT8 cache twice as many.
    pub kv_cache: Option<KvCacheFormat>,
    /// The device that runs the model.
    pub device: Device,
    /// The name of the CPU kernels' instruction set: `"amx"`, `"amxprefill"`, `"avx512bf16"`, `"avx512vnni"`,
    /// `"avx512"`, `"avxvnni"`, `"avx2"`, `"neonbf16"`, `"neoni8mm"`, `"neondotprod"`, `"neon"` or `"portable"`.
    /// Loading fails if the machine does not have the set. `None` takes the environment variable
    /// `ERANK_INSTRUCTION_SET`, or else the best set of the machine. On a machine with AMX, that is `"amxprefill"` for
    /// a reranker of one pass that [`Checkpoint::recognise_prompt`](crate::Checkpoint::recognise_prompt) recognises and
    /// for a classifier, and `"amx"` for other models.
    pub instruction_set: Option<String>,
    /// Number of threads to compute with; `None` is one per core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV cache for running sequences and cached prefixes together. Work that does not fit waits.
    /// `None` is a quarter of the memory that is available while the model is loaded, or 2 GiB where the
    /// available memory is unknown, as on a GPU.
    pub kv_cache_memory_bytes: Option<usize>,
    /// Maximum number of tokens that one step computes. A larger value reads prompts faster, but delays
    /// cancellation, which is checked between steps. vLLM has a setting of the same name.
    pub max_num_batched_tokens: NonZeroUsize,
    /// Maximum number of sequences that run at once, over all callers. With more sequences, each step reads the
    /// weights for more documents, but the first results come later. vLLM has a setting of the same name.
    pub max_num_seqs: NonZeroUsize,
    /// A step of fewer tokens is filled up to this number with speculative tokens, copied from an earlier
    /// occurrence of the last tokens (prompt lookup). With few sequences, verifying several tokens costs little
    /// more than computing one. Results do not change; 0 turns speculation off.
    pub speculative_tokens: usize,
}

impl Default for CandleSettings {
    /// Returns the checkpoint's format, the CPU, all its cores, a quarter of the available memory, 512 tokens
    /// per step, 64 sequences, and speculation up to 8 tokens.
    fn default() -> Self {
        Self {
            weights: None,
            kv_cache: None,
            device: Device::default(),
            instruction_set: None,
            threads: None,
            kv_cache_memory_bytes: None,
            max_num_batched_tokens: NonZeroUsize::MIN.saturating_add(511),
            max_num_seqs: NonZeroUsize::MIN.saturating_add(63),
            speculative_tokens: 8,
        }
    }
}

/// The type of keys and values in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvCacheFormat {
    /// 32-bit floating point.
    F32,
    /// Brain floating point: the upper 16 bits of F32.
    Bf16,
    /// Integers of 8 bits with a BF16 scale for each token and KV head: half the memory of BF16. Keys and queries are
    /// multiplied with a Walsh–Hadamard matrix first, so that no channel needs a larger scale than the others. Only the
    /// CPU kernels have it.
    Int8,
}

impl KvCacheFormat {
    /// Returns the format's name: `"F32"`, `"BF16"` or `"INT8"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::Int8 => "INT8",
        }
    }

    /// Returns candle's type of the numbers in memory.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Int8 => DType::U8,
        }
    }
}

/// The device that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, with this crate's kernels.
    #[default]
    Cpu,
    /// The CPU, with candle's own operations, as a GPU runs them. It is much slower than [`Device::Cpu`] and
    /// serves to test what GPUs run.
    CpuCandle,
    /// An NVIDIA GPU, with candle's own operations; needs the feature `cuda`.
    Cuda {
        /// The GPU's number, from 0.
        ordinal: usize,
    },
    /// An Apple GPU, with candle's own operations; needs the feature `metal`.
    Metal {
        /// The GPU's number, from 0.
        ordinal: usize,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu | Self::CpuCandle => f.write_str("CPU"),
            Self::Cuda { ordinal } => write!(f, "CUDA device {ordinal}"),
            Self::Metal { ordinal } => write!(f, "Metal device {ordinal}"),
        }
    }
}

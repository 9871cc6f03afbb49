//! The arguments that choose the model and the backend.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use erank_candle::WeightFormat;
use erank_core::PromptFamily;

use super::values::{template, threads, weight_format_parser};
use crate::error::CommandError;

/// The model, and the settings of the local backend.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// The model: a folder, a GGUF file, a name on the model hub, or "tiny" for the bundled model.
    ///
    /// A folder holds config.json, tokenizer.json, tokenizer_config.json and model.safetensors. A GGUF file ends in
    /// .gguf. A name on the hub is for example Alibaba-NLP/ERank-4B, with an optional :FILE.gguf or :QUANTISATION, such
    /// as :Q4_K_M, for GGUF files, and an optional @REVISION. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and the
    /// hub's other environment variables have their usual meaning. The bundled model is a demonstration that compares
    /// words only.
    #[arg(short, long, value_name = "FOLDER|FILE|NAME", default_value = "tiny")]
    pub(crate) model: String,
    /// Uses no network: a model of the hub must be in the hub's local cache. HF_HUB_OFFLINE=1 does the same.
    #[arg(long)]
    pub(crate) offline: bool,
    /// The prompt that the model was trained with. The default is the prompt that the model's files or its name
    /// tell, or else ERank's.
    ///
    /// A model is a Qwen3-Reranker if its chat template has a sentence of that prompt, if
    /// 1_LogitScore/config.json names the answers "no" and "yes", or if its name contains "reranker".
    #[arg(long, value_name = "NAME", value_parser = template())]
    pub(crate) template: Option<PromptFamily>,
    /// The format of the weights in memory. The default is the checkpoint's own format.
    #[arg(long, value_name = "FORMAT", value_parser = weight_format_parser(), ignore_case = true)]
    pub(crate) weights: Option<WeightFormat>,
    /// The format of the KV cache. The default is f32 for f32 weights, and bf16 otherwise.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) kv_cache: Option<CacheFormat>,
    /// The device that runs the model. A GPU needs an erank built with the feature of the same name.
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Number of threads, at most that of the machine's processors. The default is one per processor.
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Documents are truncated to this number of tokens. The default is 2048, or half of the model's context
    /// if that is less.
    #[arg(long, value_name = "N")]
    pub(crate) max_document_tokens: Option<NonZeroUsize>,
    /// Documents are truncated further if the whole prompt has more tokens than this number.
    #[arg(long, value_name = "N")]
    pub(crate) max_prompt_tokens: Option<NonZeroUsize>,
    /// Memory for the KV cache, in MiB. The default is a quarter of the available memory.
    #[arg(long, value_name = "MIB")]
    pub(crate) kv_cache_mib: Option<NonZeroUsize>,
    /// Reads the model's files into memory instead of mapping them. Loading takes more memory, and another program
    /// may change the files meanwhile.
    #[arg(long)]
    pub(crate) no_mmap: bool,
}

/// The remote backend.
#[derive(Debug, Args)]
#[command(next_help_heading = "Remote model")]
pub(crate) struct RemoteArguments {
    /// The backend. candle runs the model in this process, and openai runs it on a server with an
    /// OpenAI-compatible API, such as vLLM or llama.cpp.
    ///
    /// With openai, --model is the model's name at the server. This option can be left out if the server has
    /// only one model. The environment variable ERANK_API_KEY holds the API key.
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t)]
    pub(crate) backend: Backend,
    /// The address of a server, such as http://gpu-1:8000. Several addresses share the load.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("backend", "openai"),
        conflicts_with_all = ["weights", "kv_cache", "device", "threads", "kv_cache_mib", "offline", "no_mmap"]
    )]
    pub(crate) url: Vec<String>,
    /// The form of the prompts that the server receives.
    #[arg(long, value_name = "FORM", value_enum)]
    pub(crate) prompts: Option<Prompts>,
}

impl RemoteArguments {
    /// Checks that the options of a server are given only for a model on a server.
    pub(crate) fn check(&self) -> Result<(), CommandError> {
        let is_remote = !self.url.is_empty() || self.prompts.is_some();
        match self.backend {
            Backend::Candle if is_remote => Err(CommandError::RemoteWithoutBackend),
            _ => Ok(()),
        }
    }
}

/// The form of prompts for a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prompts {
    /// Text in the model's own template, which the server renders (vLLM, llama.cpp); the default
    #[default]
    Template,
    /// Text in ChatML, the format of Qwen3's template, for servers that cannot render it
    Chatml,
    /// Chat messages, for servers with a chat API only; not with --answer-only
    Chat,
}

impl Prompts {
    /// Returns the form's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Chatml => "chatml",
            Self::Chat => "chat",
        }
    }
}

/// The backend that runs the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    #[default]
    Candle,
    Openai,
}

/// The device that runs the model.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Device {
    /// The processor
    #[default]
    Cpu,
    /// The processor with candle's own operations, which GPUs run; much slower, for comparisons
    CpuCandle,
    /// The first NVIDIA GPU
    Cuda,
    /// The Apple GPU
    Metal,
}

/// A format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheFormat {
    /// 32-bit floating point
    F32,
    /// Brain floating point, 16 bits
    Bf16,
    /// Integers of 8 bits with a scale for each token: half the memory of bf16
    Int8,
}

impl CacheFormat {
    /// Returns the format's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

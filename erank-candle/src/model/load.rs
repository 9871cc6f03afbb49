//! The list of models and devices: from a checkpoint to a [`Model`].

use std::sync::Arc;

use candle_core::DType;
use erank_core::PromptFamily;

use super::Model;
use super::candle::CandleOperations;
use super::cpu::CpuOperations;
use super::operations::Operations;
use super::qwen3::Qwen3;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::{Architecture, Config};
use crate::checkpoint::weights::Weights;
use crate::error::LoadError;
use crate::kernels::{InstructionSet, WeightFormat};
use crate::settings::{CandleSettings, Device, KvCacheFormat};

/// A model with what was read and chosen while loading it.
pub struct LoadedModel {
    /// The model, ready to run.
    pub model: Arc<dyn Model>,
    /// The checkpoint's configuration.
    pub config: Config,
    /// The format of the weights in memory, or of most of their bytes.
    pub weights: WeightFormat,
    /// The name of the kernels: an instruction set, or `"candle"`.
    pub kernels: &'static str,
}

/// Loads a checkpoint's model for the device that `settings` name. Runs on rayon's current thread pool.
///
/// # Errors
/// Returns an error that names the file or tensor that is missing or not as the configuration says, or the setting
/// that this machine or build cannot serve.
pub fn load(checkpoint: &Checkpoint, settings: &CandleSettings) -> Result<LoadedModel, LoadError> {
    let source = Source::new(checkpoint, settings)?;
    match source.operations(settings)? {
        DeviceOperations::Cpu(operations) => source.load(operations),
        DeviceOperations::Candle(operations) => source.load(operations),
    }
}

/// Returns the names of this machine's instruction sets that have kernels, the best first.
pub fn instruction_sets() -> Vec<&'static str> {
    InstructionSet::available().into_iter().map(InstructionSet::name).collect()
}

/// The operations on the device of the settings.
pub(crate) enum DeviceOperations {
    Cpu(CpuOperations),
    Candle(CandleOperations),
}

/// What a model is loaded from.
pub(crate) struct Source<'a> {
    pub(crate) config: Config,
    pub(crate) weights: Weights<'a>,
    /// The format of the weights in memory, or of most of their bytes.
    pub(crate) format: WeightFormat,
    pub(crate) kv_cache: KvCacheFormat,
    /// Whether the checkpoint's files show that the model only reads prompts: a classifier, or a reranker of one pass.
    is_one_pass: bool,
}

impl<'a> Source<'a> {
    /// Parses the configuration and the headers of the weight files.
    ///
    /// # Errors
    /// Returns an error that names the file and the key or tensor that is wrong.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        settings: &CandleSettings,
    ) -> Result<Self, LoadError> {
        let (config, weights) = checkpoint.config_and_weights()?;
        let common = settings.weights.unwrap_or(weights.common_format());
        let format = match settings.device {
            // The CPU kernels keep each matrix in its own format.
            Device::Cpu => {
                settings.weights.or(weights.formats().first().copied()).unwrap_or(common)
            }
            _ => common,
        };
        let kv_cache = settings.kv_cache.unwrap_or(match common {
            WeightFormat::F32 => KvCacheFormat::F32,
            _ => KvCacheFormat::Bf16,
        });
        let is_classifier =
            matches!(config.architecture, Architecture::Qwen3ForSequenceClassification { .. });
        let is_one_pass = is_classifier
            || checkpoint
                .recognise_prompt()
                .is_ok_and(|prompt| prompt.family == PromptFamily::Qwen3Reranker);
        Ok(Self { config, weights, format, kv_cache, is_one_pass })
    }

    /// Returns the operations on the device of the settings.
    ///
    /// # Errors
    /// Returns an error that names the setting that this machine or build cannot serve.
    pub(crate) fn operations(
        &self,
        settings: &CandleSettings,
    ) -> Result<DeviceOperations, LoadError> {
        match settings.device {
            Device::Cpu => {
                let name = settings.instruction_set.as_deref();
                let set = InstructionSet::choose(name, self.is_one_pass)?;
                Ok(DeviceOperations::Cpu(CpuOperations::new(set, settings.weights)))
            }
            device => {
                if let Some(set) = &settings.instruction_set {
                    return Err(LoadError::Setting(format!(
                        "instruction_set is {set:?}, but {device:?} does not run the CPU kernels; leave \
                         instruction_set out"
                    )));
                }
                if self.kv_cache == KvCacheFormat::Int8 {
                    return Err(LoadError::Setting(format!(
                        "kv_cache is Int8, but candle's operations, which {device:?} runs, have no such cache; use Bf16 or \
                         F32, or the CPU kernels"
                    )));
                }
                let operations = CandleOperations::new(open(device)?, candle_type(self.format)?);
                Ok(DeviceOperations::Candle(operations))
            }
        }
    }

    fn load<O: Operations + 'static>(self, operations: O) -> Result<LoadedModel, LoadError> {
        let Self { config, weights, format, kv_cache, .. } = self;
        let kernels = operations.name();
        // The list of models.
        let model: Arc<dyn Model> = match config.architecture {
            Architecture::Qwen3ForCausalLM
            | Architecture::Qwen3ForSequenceClassification { .. } => {
                Arc::new(Qwen3::load(config.clone(), &weights, operations, kv_cache)?)
            }
        };
        Ok(LoadedModel { model, config, weights: format, kernels })
    }
}

/// Returns the type of candle's that holds weights of a format.
fn candle_type(format: WeightFormat) -> Result<DType, LoadError> {
    match format {
        // F32 holds F16 numbers exactly.
        WeightFormat::F32 | WeightFormat::F16 => Ok(DType::F32),
        WeightFormat::Bf16 => Ok(DType::BF16),
        other => Err(LoadError::Setting(format!(
            "candle's operations hold F32, F16 and BF16 weights, not {other}; set `weights` to one of these, or use \
             the CPU kernels"
        ))),
    }
}

/// Opens a device of candle's.
fn open(device: Device) -> Result<candle_core::Device, LoadError> {
    let (opened, feature) = match device {
        Device::Cpu | Device::CpuCandle => return Ok(candle_core::Device::Cpu),
        Device::Cuda { ordinal } => (candle_core::Device::new_cuda(ordinal), "cuda"),
        Device::Metal { ordinal } => (candle_core::Device::new_metal(ordinal), "metal"),
    };
    opened.map_err(|error| {
        LoadError::Setting(format!(
            "cannot use {device:?}: {error}; it needs such a device with its driver, and erank-candle built \
             with its feature `{feature}`"
        ))
    })
}

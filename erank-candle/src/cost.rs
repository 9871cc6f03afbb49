//! The memory that a model takes, computed from the headers of its files.

use crate::backend::{available_memory, cache_blocks, description};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::tensor_names;
use crate::checkpoint::weights::type_name;
use crate::error::LoadError;
use crate::kernels::WeightFormat;
use crate::model::load::{DeviceOperations, Source};
use crate::model::operations::Operations;
use crate::model::qwen3;
use crate::model::step::BLOCK_TOKENS;
use crate::settings::{CandleSettings, KvCacheFormat};

/// The size of a model in its files and in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelCost {
    /// The format of the weights and the kernels, as in
    /// [`CandleBackend::description`](crate::CandleBackend::description).
    pub description: String,
    /// The tensors that the model consists of, by format. The largest group comes first.
    pub tensors: Vec<TensorGroup>,
    /// The format of the KV cache.
    pub kv_cache: KvCacheFormat,
    /// Bytes of the KV cache for each token of a sequence.
    pub kv_cache_bytes_per_token: usize,
    /// Maximum number of tokens in one sequence.
    pub max_tokens: usize,
    /// Bytes that the KV cache of [`CandleBackend::load`](crate::CandleBackend::load) can grow to, for all sequences
    /// and cached prefixes together. The default of [`CandleSettings::kv_cache_memory_bytes`] depends on the memory
    /// that is available; here, the memory of the weights is subtracted first. If no memory remains, this is the
    /// shortest cache.
    pub kv_cache_bytes: usize,
    /// Bytes of memory that are available now, if they are known.
    pub available_bytes: Option<usize>,
}

/// Tensors with the same format in the files and in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorGroup {
    /// The name of the type in the files, such as `"F16"` or `"Q8_0"`.
    pub file_format: &'static str,
    /// The format in memory, in which projections multiply matrices.
    pub memory_format: WeightFormat,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes in the files.
    pub file_bytes: usize,
    /// Bytes in memory, with the padding of packed matrices.
    pub memory_bytes: usize,
}

impl ModelCost {
    /// Returns the bytes of all weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.tensors.iter().map(|group| group.memory_bytes).sum()
    }

    /// Adds a tensor to the group of its formats.
    fn add(&mut self, tensor: TensorGroup) {
        let formats = |group: &TensorGroup| (group.file_format, group.memory_format);
        match self.tensors.iter_mut().find(|group| formats(group) == formats(&tensor)) {
            Some(group) => {
                group.tensors += tensor.tensors;
                group.file_bytes += tensor.file_bytes;
                group.memory_bytes += tensor.memory_bytes;
            }
            None => self.tensors.push(tensor),
        }
    }
}

impl Checkpoint {
    /// Computes the memory that [`CandleBackend::load`](crate::CandleBackend::load) needs with these settings, which
    /// may be more than this machine has. Reads the same files as [`config`](Self::config).
    ///
    /// # Errors
    /// Returns an error that names the file or tensor that is missing or not supported, or the setting that this
    /// machine or build cannot serve.
    pub fn cost(&self, settings: &CandleSettings) -> Result<ModelCost, LoadError> {
        self.cost_on_machine(settings, available_memory(settings.device))
    }

    /// Computes the cost on a machine on which `available` bytes of memory are available.
    fn cost_on_machine(
        &self,
        settings: &CandleSettings,
        available: Option<usize>,
    ) -> Result<ModelCost, LoadError> {
        let source = Source::new(self, settings)?;
        match source.operations(settings)? {
            DeviceOperations::Cpu(operations) => cost(&source, &operations, settings, available),
            DeviceOperations::Candle(operations) => cost(&source, &operations, settings, available),
        }
    }
}

fn cost(
    source: &Source<'_>,
    operations: &impl Operations,
    settings: &CandleSettings,
    available: Option<usize>,
) -> Result<ModelCost, LoadError> {
    let shape = qwen3::shape(&source.config, operations, source.kv_cache);
    let mut cost = ModelCost {
        description: description(source.format, operations.name(), settings.device),
        tensors: Vec::new(),
        kv_cache: source.kv_cache,
        kv_cache_bytes_per_token: shape.block_bytes / BLOCK_TOKENS,
        max_tokens: shape.max_tokens,
        kv_cache_bytes: 0,
        available_bytes: available,
    };
    for name in tensor_names(&source.config) {
        let (tensor, numbers) = source.weights.tensor(&name, None)?;
        let (memory_format, memory_bytes) = match tensor.shape[..] {
            [_, inputs] if inputs > 0 => operations
                .matrix_size(numbers, inputs)
                .map_err(|error| LoadError::tensor(&name, error.to_string()))?,
            // The weights of norms are kept in F32.
            _ => (WeightFormat::F32, numbers.len() * size_of::<f32>()),
        };
        cost.add(TensorGroup {
            file_format: type_name(numbers),
            memory_format,
            tensors: 1,
            file_bytes: tensor.bytes.len(),
            memory_bytes,
        });
    }
    cost.tensors.sort_by_key(|group| std::cmp::Reverse(group.file_bytes));
    let available = cost.available_bytes.map(|bytes| bytes.saturating_sub(cost.weight_bytes()));
    cost.kv_cache_bytes = cache_blocks(shape, settings, available)? * shape.block_bytes;
    Ok(cost)
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;
    use crate::settings::Device;
    use crate::{CandleBackend, Config};

    fn settings(weights: Option<WeightFormat>) -> CandleSettings {
        CandleSettings {
            weights,
            kv_cache_memory_bytes: Some(8 << 20),
            instruction_set: Some("portable".into()),
            ..CandleSettings::default()
        }
    }

    /// Returns the number of weights in the matrices.
    fn matrix_weights(config: &Config) -> usize {
        let attention = config.num_attention_heads + config.num_key_value_heads;
        let layer = 2 * attention * config.head_dim + 3 * config.intermediate_size;
        (config.vocab_size + config.num_hidden_layers * layer) * config.hidden_size
    }

    #[test]
    fn cost_is_the_bytes_of_all_weights() {
        let checkpoint = Checkpoint::tiny();
        let config = checkpoint.config().expect("valid");
        let weights = matrix_weights(&config);
        let matrices = 1 + 7 * config.num_hidden_layers;
        let norms = 1 + 4 * config.num_hidden_layers;
        for (setting, bytes) in [
            (None, weights * 2),
            (Some(WeightFormat::F32), weights * 4),
            (Some(WeightFormat::Q8_0), weights * 34 / 32),
        ] {
            let cost = checkpoint.cost(&settings(setting)).expect("a whole checkpoint");
            let of_matrices = |group: &&TensorGroup| group.tensors >= matrices;
            let tensors: usize = cost.tensors.iter().map(|group| group.tensors).sum();
            assert_eq!(tensors, matrices + norms, "{cost:?}");
            let group = cost.tensors.iter().find(of_matrices).expect("the matrices");
            assert_eq!(group.memory_format, setting.unwrap_or(WeightFormat::Bf16));
            let norm_bytes = cost.weight_bytes() - bytes;
            assert!(norm_bytes < 10_000, "{cost:?}");
        }
    }

    /// The engine's own figures are those of the cost.
    #[test]
    fn cost_of_the_cache_is_that_of_the_loaded_model() {
        let checkpoint = Checkpoint::tiny();
        for device in [Device::Cpu, Device::CpuCandle] {
            let mut settings = settings(None);
            settings.device = device;
            if device == Device::CpuCandle {
                settings.instruction_set = None;
            }
            let cost = checkpoint.cost(&settings).expect("a whole checkpoint");
            let backend = CandleBackend::load(&checkpoint, &settings).expect("bundled");
            assert_eq!(cost.description, backend.description());
            let blocks = backend.statistics().total_blocks;
            assert_eq!(cost.kv_cache_bytes, blocks * BLOCK_TOKENS * cost.kv_cache_bytes_per_token);
            assert_eq!(cost.max_tokens, backend.config().max_position_embeddings);
        }
    }

    #[test]
    fn cost_of_a_model_larger_than_the_memory_is_computed() {
        let checkpoint = Checkpoint::tiny();
        let mut settings = settings(None);
        settings.kv_cache_memory_bytes = None;
        for available in [0, 1 << 20] {
            let cost = checkpoint.cost_on_machine(&settings, Some(available)).expect("no refusal");
            assert_eq!(cost.available_bytes, Some(available));
            assert!(cost.weight_bytes() > available && cost.kv_cache_bytes > 0, "{cost:?}");
        }
    }

    #[test]
    fn cost_fails_where_a_setting_cannot_be_served() {
        let checkpoint = Checkpoint::tiny();
        let only_in_files = settings(Some(WeightFormat::Q4K));
        let error = checkpoint.cost(&only_in_files).expect_err("no such file").to_string();
        assert!(error.contains("only read from files"), "{error}");
        let mut no_memory = settings(None);
        no_memory.kv_cache_memory_bytes = Some(1);
        let error = checkpoint.cost(&no_memory).expect_err("too little").to_string();
        assert!(error.contains("kv_cache_memory_bytes"), "{error}");
    }
}

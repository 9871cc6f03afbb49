//! Reading of safetensors files: the names of tensors, and what is refused.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::config::{Architecture, Config};
use super::gguf::tensor_names;
use super::shard::Shard;
use super::weights::{StoredTensor, Weights, format_of};
use crate::error::LoadError;
use crate::kernels::stored::StoredRow;

const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";
/// The name of all weights but a head's begins with this, unless the model was saved without its head.
const PREFIX: &str = "model.";

/// Reads the headers of the shards. `weight_map` is the map of the index from tensors to files; without an index, it
/// is empty.
///
/// The files decide about `config.tie_word_embeddings`, as in transformers. It becomes false if the files have an
/// output projection that differs from the embedding. If the embedding is missing, the output projection is used for
/// both. `has_equal_head` keeps the result of the comparison, which reads both tensors.
///
/// # Errors
/// Returns an error if a shard is not a whole safetensors file, if a tensor is in several shards and the index names
/// none of them, or if the model of `config` does not have a tensor.
pub(super) fn weights<'a>(
    shards: &'a [Shard],
    weight_map: &BTreeMap<String, String>,
    has_equal_head: &OnceLock<bool>,
    config: &mut Config,
) -> Result<Weights<'a>, LoadError> {
    let mut tensors = named_tensors(shards, weight_map, config)?;
    match config.architecture {
        Architecture::Qwen3ForCausalLM if config.tie_word_embeddings => {
            if let Some(head) = tensors.remove(LM_HEAD) {
                match tensors.get(EMBEDDING) {
                    None => drop(tensors.insert(EMBEDDING.to_owned(), head)),
                    Some(embedding) => {
                        let is_equal = *has_equal_head.get_or_init(|| {
                            let is_equal = is_same(embedding, &head);
                            shards.iter().for_each(|shard| shard.release(head.bytes));
                            is_equal
                        });
                        if !is_equal {
                            config.tie_word_embeddings = false;
                            tensors.insert(LM_HEAD.to_owned(), head);
                        }
                    }
                }
            }
        }
        Architecture::Qwen3ForCausalLM => {}
        Architecture::Qwen3ForSequenceClassification { .. } => drop(tensors.remove(LM_HEAD)),
    }
    Weights::new(shards, tensors, str::to_owned)
}

/// Returns whether two tensors have the same bits.
fn is_same(a: &StoredTensor<'_>, b: &StoredTensor<'_>) -> bool {
    let format = |tensor: &StoredTensor<'_>| {
        tensor.numbers.as_ref().ok().map(|numbers| format_of(numbers, None))
    };
    a.shape == b.shape && format(a) == format(b) && a.bytes == b.bytes
}

/// Returns the tensors of all shards by the names of the whole model.
fn named_tensors<'a>(
    shards: &'a [Shard],
    weight_map: &BTreeMap<String, String>,
    config: &Config,
) -> Result<HashMap<String, StoredTensor<'a>>, LoadError> {
    let mut of_model: HashSet<String> = tensor_names(config).into_iter().collect();
    of_model.insert(LM_HEAD.to_owned());
    if let Architecture::Qwen3ForSequenceClassification { .. } = config.architecture {
        of_model.insert("score.bias".to_owned());
    }
    let mut tensors = HashMap::new();
    // The name in the file and the file, by the name of the whole model.
    let mut origins: HashMap<String, (String, &str)> = HashMap::new();
    for shard in shards {
        let file = SafeTensors::deserialize(shard.bytes()).map_err(|source| {
            let problem = "it is not a whole safetensors file; download it again";
            LoadError::unparsable(&shard.file, problem, source)
        })?;
        for (own_name, view) in file.tensors() {
            // Older versions of transformers stored the frequencies of the rotary embedding.
            if own_name.ends_with("rotary_emb.inv_freq") {
                continue;
            }
            let name = whole_name(&own_name, &of_model);
            if !of_model.contains(&*name) {
                let reason = why_refused(&name, &of_model, config.num_hidden_layers);
                return Err(LoadError::tensor(&own_name, reason));
            }
            match origins.entry(name.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert((own_name, &*shard.file));
                }
                Entry::Occupied(mut entry) => {
                    let (first_name, first_file) = entry.get();
                    let named = |name: &str, file: &str| {
                        weight_map.get(name).is_some_and(|named| named == file)
                    };
                    match (named(first_name, first_file), named(&own_name, &shard.file)) {
                        (true, false) => continue,
                        (false, true) => drop(entry.insert((own_name, &*shard.file))),
                        _ => {
                            return Err(LoadError::tensor(
                                &own_name,
                                format!(
                                    "it is in {first_file} as {first_name} and in {}, and the index does not \
                                     say which one counts; delete the file that does not belong to the model",
                                    shard.file
                                ),
                            ));
                        }
                    }
                }
            }
            tensors.insert(name, stored(&view));
        }
    }
    Ok(tensors)
}

/// Returns the name of a tensor in the whole model. As in transformers, a file may have names with [`PREFIX`] once too
/// often, or without it.
fn whole_name(name: &str, of_model: &HashSet<String>) -> String {
    if let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| of_model.contains(*rest)) {
        return rest.to_owned();
    }
    let prefixed = format!("{PREFIX}{name}");
    if of_model.contains(&prefixed) { prefixed } else { name.to_owned() }
}

fn why_refused(name: &str, of_model: &HashSet<String>, layers: usize) -> String {
    const OF_QUANTISED_WEIGHTS: [&str; 17] = [
        "weight_scale",
        "weight_scale_inv",
        "weight_zero_point",
        "weight_packed",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
        "qweight",
        "qzeros",
        "scales",
        "zeros",
        "biases",
        "g_idx",
        "absmax",
        "quant_map",
        "SCB",
        "quant_state",
    ];
    let mut parts = name.split('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    let layer = name.strip_prefix(PREFIX).unwrap_or(name).strip_prefix("layers.");
    let layer = layer.and_then(|rest| rest.split('.').next());
    let layer: Option<usize> = layer.and_then(|layer| layer.parse().ok());
    if OF_QUANTISED_WEIGHTS.contains(&last)
        || parts.any(|part| part.starts_with("quant_") || part == "absmax")
    {
        "it belongs to quantised weights, which are not read from safetensors files; use the model's BF16 or F32 \
         files, or a GGUF file of it"
            .into()
    } else if name.contains("lora_") {
        "it belongs to a LoRA adapter; merge the adapter into the model first, for example with PEFT's \
         merge_and_unload"
            .into()
    } else if let Some(prefix) = wrapper(name, of_model) {
        format!(
            "its name begins with {prefix:?}, which a wrapper around the model added; save the model itself, for \
             example with save_pretrained of the unwrapped model"
        )
    } else if name.starts_with("score.") {
        "it is the head of a classifier, but config.json does not name one; set architectures to \
         [\"Qwen3ForSequenceClassification\"] if the model is one"
            .into()
    } else if name.ends_with(".bias") {
        "biases are not implemented".into()
    } else if name.contains(".experts.") || name.ends_with(".mlp.gate.weight") {
        "mixtures of experts are not implemented".into()
    } else if layer.is_some_and(|layer| layer >= layers) {
        format!(
            "config.json says that the model has {layers} layers (num_hidden_layers); take config.json and the \
             weights from the same model"
        )
    } else {
        "a Qwen3 of this configuration does not have it; take config.json and the weights from the same model, \
         and choose a model without a head of its own"
            .into()
    }
}

/// Returns the beginning of a tensor's name whose rest is the name of a tensor of the model.
fn wrapper<'a>(name: &'a str, of_model: &HashSet<String>) -> Option<&'a str> {
    let starts = name.match_indices('.').map(|(dot, _)| dot + 1);
    let mut wrapped = starts.filter(|start| {
        let rest = &name[*start..];
        of_model.contains(rest) || of_model.contains(&format!("{PREFIX}{rest}"))
    });
    Some(&name[..wrapped.next()?])
}

fn stored<'a>(view: &TensorView<'a>) -> StoredTensor<'a> {
    let bytes = view.data();
    let numbers = match view.dtype() {
        Dtype::F32 => Ok(StoredRow::F32(bytes.as_chunks().0)),
        Dtype::F16 => Ok(StoredRow::F16(bytes.as_chunks().0)),
        Dtype::BF16 => Ok(StoredRow::Bf16(bytes.as_chunks().0)),
        other => Err(format!("{other:?}")),
    };
    StoredTensor { shape: view.shape().to_vec(), bytes, numbers }
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn weights_compares_the_output_projection_once() {
        let shard = |head: &'static [u8]| {
            let tensor = |bytes| TensorView::new(Dtype::BF16, vec![1, 1], bytes).expect("a tensor");
            let tensors = [(EMBEDDING, tensor(&[1, 2])), (LM_HEAD, tensor(head))];
            let bytes = safetensors::serialize(tensors, None).expect("a file");
            Shard::bundled("model.safetensors".into(), bytes.leak())
        };
        let is_tied = |shard: Shard, has_equal_head: &OnceLock<bool>| {
            let mut config = Checkpoint::tiny().config().expect("valid");
            config.tie_word_embeddings = true;
            let shards = [shard];
            let weights = weights(&shards, &BTreeMap::new(), has_equal_head, &mut config);
            assert_eq!(weights.expect("whole").contains(LM_HEAD), !config.tie_word_embeddings);
            config.tie_word_embeddings
        };
        let (equal, different) = (OnceLock::new(), OnceLock::new());
        assert!(is_tied(shard(&[1, 2]), &equal) && !is_tied(shard(&[1, 3]), &different));
        // The tensors of a checkpoint do not change, so the first result counts.
        assert!(is_tied(shard(&[1, 3]), &equal) && !is_tied(shard(&[1, 2]), &different));
    }
}

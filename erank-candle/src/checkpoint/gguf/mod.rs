//! GGUF files: the configuration, the tokenizer and the weights of a model in one file, or in several.
//!
//! Dense Qwen3 models are read. Other architectures, and tensors that such a model does not have, are refused
//! by name.

mod config;
mod metadata;
mod parse;
mod split;
mod tensor_type;
mod tokenizer;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};

use metadata::Metadata;
use parse::{Header, NamedTensor};
pub(super) use split::{ShardName, one_per_set};
pub(super) use tokenizer::TokenizerFiles;
pub use write::GgufSummary;

use super::config::{Architecture, Config};
use super::files;
use super::shard::Shard;
use super::weights::Weights;
use crate::error::LoadError;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// The names of Hugging Face's folders, and those of GGUF files.
const OUTSIDE_LAYERS: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", EMBEDDING),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", OUTPUT),
];
/// The names inside a layer: `model.layers.N.NAME.weight` and `blk.N.NAME.weight`.
const IN_LAYERS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The parsed files of a model.
pub(super) struct Gguf<'a> {
    /// The metadata of the first file.
    metadata: Metadata<'a>,
    tensors: Vec<NamedTensor<'a>>,
}

impl<'a> Gguf<'a> {
    /// Parses the files of a model, given by name and content, the first one first.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the key or tensor that is wrong or not supported.
    pub(super) fn parse(
        files: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, LoadError> {
        let count = files.len();
        let mut first: Option<Metadata<'a>> = None;
        let mut tensors = Vec::new();
        for (index, (file, bytes)) in files.enumerate() {
            let header = Header::parse(file, bytes)?;
            split::check(&header.metadata, index, count)?;
            if first.is_none() {
                config::check_architecture(&header.metadata)?;
            }
            let (metadata, of_file) = header.read_tensors()?;
            tensors.extend(of_file);
            first.get_or_insert(metadata);
        }
        let metadata = first.ok_or_else(|| LoadError::invalid("the model", "it has no file"))?;
        split::check_tensors(&metadata, tensors.len())?;
        let parsed = Self { metadata, tensors };
        parsed.check_names()?;
        Ok(parsed)
    }

    /// Parses the files of a model.
    ///
    /// # Errors
    /// Returns the errors of [`parse`](Self::parse).
    pub(super) fn of_shards(shards: &'a [Shard]) -> Result<Self, LoadError> {
        Self::parse(shards.iter().map(|shard| (&*shard.file, shard.bytes())))
    }

    /// Returns the model's configuration.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the key that is missing or out of range.
    pub(super) fn config(&self) -> Result<Config, LoadError> {
        let vocab_size = self.shape(EMBEDDING).and_then(|shape| shape.first().copied());
        let vocab_size = vocab_size.ok_or_else(|| self.metadata.missing(EMBEDDING))?;
        config::config(&self.metadata, vocab_size, self.shape(OUTPUT).is_none())
    }

    /// Returns the tensors, in files that `shards` map.
    ///
    /// # Errors
    /// Returns an error if a tensor is in more than one file.
    pub(super) fn weights(self, shards: &'a [Shard]) -> Result<Weights<'a>, LoadError> {
        let tensors = self.tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor));
        Weights::new(shards, tensors, own_name)
    }

    /// Returns a note if the metadata say that the positions are pooled, as those of embedding models do.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the key if it does not have the expected type.
    pub(super) fn note_on_pooling(&self) -> Result<Option<String>, LoadError> {
        const POOLING: &str = "qwen3.pooling_type";
        let kind = match self.metadata.integer(POOLING)? {
            None | Some(0) => return Ok(None),
            Some(4) => "a reranker with a head of its own",
            Some(_) => "an embedding model",
        };
        Ok(Some(format!(
            "{POOLING} says that the model is {kind}, but it runs as a language model"
        )))
    }

    /// Builds the files of the tokenizer from the metadata.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the key that is wrong or not supported.
    pub(super) fn tokenizer(&self) -> Result<TokenizerFiles, LoadError> {
        tokenizer::files(&self.metadata)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let tensor = self.tensors.iter().find(|(other, _)| *other == name);
        tensor.map(|(_, tensor)| &tensor.shape[..])
    }

    /// Refuses tensors that a dense Qwen3 does not have.
    fn check_names(&self) -> Result<(), LoadError> {
        let layers = config::layers(&self.metadata)?;
        match self.tensors.iter().find(|(name, _)| !is_of_qwen3(name, layers)) {
            Some((name, _)) => {
                Err(self.metadata.invalid(format!("tensor {name:?}: {}", why_refused(name))))
            }
            None => Ok(()),
        }
    }
}

/// Returns whether a file is a GGUF file, by its name or else by its first bytes.
pub(super) fn is_gguf(path: &Path) -> bool {
    const MAGIC: [u8; 4] = *b"GGUF";
    let has_magic = || {
        let mut bytes = [0; MAGIC.len()];
        files::open(path).and_then(|mut file| file.read_exact(&mut bytes)).is_ok() && bytes == MAGIC
    };
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) || has_magic()
}

/// Returns whether a file is named as a GGUF file with a language model. llama.cpp's files for images and for
/// quantisation have names of their own.
pub(super) fn is_model_file(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    name.ends_with(".gguf") && !name.starts_with("mmproj") && !name.contains("imatrix")
}

/// Maps all files of the model of which `file` is one. `locate` returns the path of a file of the same folder.
///
/// # Errors
/// Returns [`LoadError::Read`] for a file that is missing or cannot be read.
pub(super) fn open(
    file: &str,
    locate: &mut dyn FnMut(&str) -> Result<PathBuf, LoadError>,
) -> Result<Vec<Shard>, LoadError> {
    let files = ShardName::parse(file).map_or_else(|| vec![file.to_owned()], |name| name.files());
    let count = files.len();
    files
        .into_iter()
        .map(|file| {
            let path = locate(&file)?;
            if count > 1 && !path.exists() {
                let reason = format!(
                    "it is one of the model's {count} files, and it is missing; download it"
                );
                return Err(LoadError::invalid(&file, reason));
            }
            Shard::map(file, &path)
        })
        .collect()
}

/// Returns the names of a model's tensors in Hugging Face's folders.
pub(crate) fn tensor_names(config: &Config) -> Vec<String> {
    const LM_HEAD: &str = "lm_head.weight";
    let head = match config.architecture {
        Architecture::Qwen3ForCausalLM if config.tie_word_embeddings => None,
        Architecture::Qwen3ForCausalLM => Some(LM_HEAD),
        Architecture::Qwen3ForSequenceClassification { .. } => Some("score.weight"),
    };
    let outside = OUTSIDE_LAYERS.iter().map(|(name, _)| *name).filter(|name| *name != LM_HEAD);
    let layers = (0..config.num_hidden_layers).flat_map(|layer| {
        IN_LAYERS.iter().map(move |(name, _)| format!("model.layers.{layer}.{name}.weight"))
    });
    outside.chain(head).map(str::to_owned).chain(layers).collect()
}

/// Returns the name in a GGUF file of a tensor of a Hugging Face folder.
fn own_name(name: &str) -> String {
    if let Some((_, own)) = OUTSIDE_LAYERS.iter().find(|(theirs, _)| *theirs == name) {
        return (*own).to_owned();
    }
    let in_layer = || {
        let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let (_, own) = IN_LAYERS.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("blk.{layer}.{own}.weight"))
    };
    in_layer().unwrap_or_else(|| name.to_owned())
}

/// Returns whether a Qwen3 with `layers` layers has the tensor.
fn is_of_qwen3(name: &str, layers: usize) -> bool {
    if OUTSIDE_LAYERS.iter().any(|(_, own)| *own == name) {
        return true;
    }
    let in_layer = || {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let index: usize = layer.parse().ok()?;
        // "+1" and "01" are numbers, too.
        let is_layer = index < layers && index.to_string() == layer;
        Some(is_layer && IN_LAYERS.iter().any(|(_, own)| *own == part))
    };
    in_layer().unwrap_or(false)
}

fn why_refused(name: &str) -> &'static str {
    if name.starts_with("cls.") {
        "heads of classifiers are not read from GGUF files"
    } else if name.ends_with(".bias") {
        "biases are not implemented"
    } else if name.contains("attn_qkv") {
        "fused queries, keys and values are not read"
    } else if name.starts_with("rope_freqs") {
        "scaled rotary embeddings are not implemented"
    } else {
        "a dense Qwen3 with this number of layers does not have it"
    }
}

#[cfg(test)]
pub(super) mod tests;

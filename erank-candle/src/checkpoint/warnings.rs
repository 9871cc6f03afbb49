//! The unusual properties of a checkpoint, which may explain why a model does not behave as expected.

use serde_json::Value;

use super::gguf::Gguf;
use super::{
    CONFIG, Checkpoint, FileFormat, MODULES, SAFETENSORS, SAFETENSORS_INDEX, TOKENIZER,
    TOKENIZER_CONFIG, config, json,
};
use crate::error::LoadError;
use crate::kernels::WeightFormat;
use crate::tokenizer::PromptTokenizer;

impl Checkpoint {
    /// Returns what is unusual about the files although the model can be loaded, as sentences without a full stop.
    /// Reads the same files as [`config`](Self::config).
    ///
    /// # Errors
    /// Returns the errors of [`config`](Self::config).
    pub fn warnings(&self) -> Result<Vec<String>, LoadError> {
        let (config, weights) = self.config_and_weights()?;
        let mut notes = Vec::new();
        let formats = weights.formats();
        if let FileFormat::Safetensors { has_unused_index, .. } = &self.format {
            let map = config::parse(&self.config)?;
            notes.extend(config::warnings(&map));
            if *has_unused_index {
                notes.push(format!(
                    "there are {SAFETENSORS} and {SAFETENSORS_INDEX}; the first one is used, as in transformers"
                ));
            }
            if config::is_tied(&map) && !config.tie_word_embeddings {
                notes.push(format!(
                    "{CONFIG} says that the output projection is the embedding (tie_word_embeddings), but \
                     lm_head.weight differs and is used, as in transformers"
                ));
            }
            if config::is_trunk(&map) && config.tie_word_embeddings {
                notes.push(
                    "the model was saved without an output projection, and the embedding is used as one"
                        .into(),
                );
            }
            notes.extend(config::named_type(&map).and_then(|named| note_on_type(named, &formats)));
            if let [first, _, ..] = formats[..] {
                let names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
                notes.push(format!(
                    "matrices have several types, {}; the CPU kernels compute each in its own, and candle's \
                     operations all in one; most bytes are {first}",
                    names.join(" and ")
                ));
            }
        }
        if let Some(yarn) = &config.yarn {
            notes.push(format!(
                "YaRN extends {} positions by the factor {}, which changes short prompts, too",
                yarn.original_max_position_embeddings, yarn.factor
            ));
        }
        if let FileFormat::Gguf { .. } = &self.format {
            notes.extend(Gguf::of_shards(&self.shards)?.note_on_pooling()?);
        }
        notes.extend(self.notes_on_modules());
        // An error of the tokenizer is reported when the tokenizer is loaded.
        let tokenizer = self.tokenizer().ok();
        let missing = tokenizer.as_ref().map_or(&[][..], PromptTokenizer::missing_tokens);
        if !missing.is_empty() {
            notes.push(format!(
                "{TOKENIZER_CONFIG} has tokens that {TOKENIZER} lacks, and they are plain text: {}",
                missing.join(", ")
            ));
        }
        Ok(notes)
    }

    /// Returns notes on the modules of Sentence Transformers that are not applied.
    fn notes_on_modules(&self) -> Vec<String> {
        let modules = self.modules[0].as_deref().unwrap_or(b"[]");
        let modules: Vec<Value> = json::parse(MODULES, modules).unwrap_or_default();
        let types = modules.iter().filter_map(|module| module["type"].as_str());
        let names = types.map(|name| name.rsplit('.').next().unwrap_or(name));
        names
            .filter_map(|name| match name {
                "Transformer" | "LogitScore" => None,
                "Pooling" => {
                    Some(format!("{MODULES} describes an embedding model, not a reranker"))
                }
                other => Some(format!("{MODULES} lists a module {other}, which is not applied")),
            })
            .collect()
    }
}

/// Returns a note if `config.json` names another type of weights than the files have.
fn note_on_type(named: &str, formats: &[WeightFormat]) -> Option<String> {
    let expected = match named {
        "float32" => WeightFormat::F32,
        "bfloat16" => WeightFormat::Bf16,
        "float16" => WeightFormat::F16,
        _ => return Some(format!("{CONFIG} names the type {named} (dtype), which is ignored")),
    };
    let format = formats.first().filter(|format| **format != expected)?;
    Some(format!(
        "{CONFIG} names the type {named} (dtype), but the weights are {format}, in which they are computed unless \
         another format is chosen"
    ))
}

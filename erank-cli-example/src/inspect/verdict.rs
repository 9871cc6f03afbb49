//! The summary of a model: its files, what it computes, and warnings.

use std::io::{self, Write};

use erank_candle::{
    Architecture, CandleSettings, Checkpoint, Config, ModelCost, PromptTokenizer, WeightFormat,
};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use crate::error::{CommandError, one_line};
use crate::{model, text};

/// One sentence or phrase for each part of a model. `--help` lists the parts.
#[derive(Serialize)]
pub(super) struct Verdict {
    files: String,
    architecture: String,
    tokenizer: String,
    template: String,
    precision: String,
    memory: String,
    warnings: Vec<String>,
}

impl Verdict {
    /// Judges the model that was `given`, from its files alone.
    pub(super) fn new(
        given: &str,
        checkpoint: &Checkpoint,
        config: &Config,
        tokenizer: &PromptTokenizer,
        settings: &CandleSettings,
        cost: &ModelCost,
    ) -> Result<Self, CommandError> {
        let mut warnings = checkpoint.warnings().map_err(model::failed(given))?;
        let (ids, embeddings) = (tokenizer.vocab_size(), config.vocab_size);
        if ids > embeddings {
            warnings.push(format!(
                "the tokenizer has {ids} ids, but the model has {embeddings} embeddings, so it cannot be loaded; take \
                 all files from the same model"
            ));
        }
        if let Some(available) = cost.available_bytes
            && available < cost.weight_bytes()
        {
            let with = |format: &WeightFormat| {
                let mut settings = settings.clone();
                settings.weights = Some(*format);
                Some((*format, checkpoint.cost(&settings).ok()?.weight_bytes()))
            };
            warnings.push(too_large(available, WeightFormat::ALL.iter().filter_map(with)));
        }
        let prompt = match checkpoint.recognise_prompt() {
            Ok(prompt) => match prompt.reason {
                Some(reason) => format!("prompt of {}, because {reason}", prompt.family.name()),
                None => format!("prompt of {}, the default", prompt.family.name()),
            },
            Err(error) => {
                warnings.push(one_line(&error));
                "unknown prompt, to be named with --template".into()
            }
        };
        let chat_template = match tokenizer.chat_template_file() {
            Some(_) if checkpoint.is_gguf() => {
                "chat template of the GGUF file or beside it".to_owned()
            }
            Some(file) => format!("chat template of {file}"),
            None => "no chat template".to_owned(),
        };
        Ok(Self {
            files: files(checkpoint),
            architecture: architecture(config),
            tokenizer: format!(
                "{} ids for {} embeddings",
                HumanCount(ids as u64),
                HumanCount(embeddings as u64)
            ),
            template: format!("{chat_template}; {prompt}"),
            precision: cost.description.clone(),
            memory: memory(cost),
            warnings,
        })
    }

    pub(super) fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\nVerdict:")?;
        for (name, value) in [
            ("files", &self.files),
            ("architecture", &self.architecture),
            ("tokenizer", &self.tokenizer),
            ("template", &self.template),
            ("precision", &self.precision),
            ("memory", &self.memory),
        ] {
            writeln!(out, "  {name:13} {}", text::line(value))?;
        }
        if self.warnings.is_empty() {
            return writeln!(out, "  {:13} none", "warnings");
        }
        writeln!(out, "  warnings")?;
        self.warnings.iter().try_for_each(|note| writeln!(out, "    - {}", text::line(note)))
    }
}

/// Says that the weights do not fit in the available memory, and which of the `formats` that the model can have,
/// each with its bytes, is the largest one that does.
fn too_large(available: usize, formats: impl Iterator<Item = (WeightFormat, usize)>) -> String {
    let fitting = formats.filter(|(_, bytes)| *bytes <= available);
    let advice = match fitting.min_by_key(|(_, bytes)| std::cmp::Reverse(*bytes)) {
        Some((format, bytes)) => {
            let name = format.name().to_ascii_lowercase();
            format!("choose --weights {name}, with which they take {}", DecimalBytes(bytes as u64))
        }
        None => {
            "no format of --weights is small enough; free memory, or choose a smaller model".into()
        }
    };
    format!("the weights do not fit in the available memory; {advice}")
}

fn files(checkpoint: &Checkpoint) -> String {
    let sizes: Vec<usize> = checkpoint.weight_files().map(|(_, bytes)| bytes).collect();
    let names: Vec<&str> = checkpoint.weight_files().map(|(name, _)| name).take(2).collect();
    let size = DecimalBytes(sizes.iter().sum::<usize>() as u64);
    match (sizes.len(), &names[..]) {
        (1, [name, ..]) => format!("{name}, {size}"),
        (count, [name, ..]) => format!("{count} files of weights, {name} and others, {size}"),
        _ => "no weights".into(),
    }
}

fn architecture(config: &Config) -> String {
    let class = match config.architecture {
        Architecture::Qwen3ForCausalLM => "Qwen3ForCausalLM, a language model".to_owned(),
        Architecture::Qwen3ForSequenceClassification { rows } => {
            format!("Qwen3ForSequenceClassification, a classifier with {rows} rows")
        }
        _ => "another one".to_owned(),
    };
    format!(
        "{class}: {} layers of width {}, {} query heads and {} KV heads of width {}, {} positions",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        HumanCount(config.max_position_embeddings as u64)
    )
}

fn memory(cost: &ModelCost) -> String {
    let size = |bytes: usize| DecimalBytes(bytes as u64);
    let needed = format!(
        "{} for weights, and up to {} for the KV cache",
        size(cost.weight_bytes()),
        size(cost.kv_cache_bytes)
    );
    match cost.available_bytes {
        Some(available) => format!("{needed}, of {} that are available", size(available)),
        None => needed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_names_the_largest_format_that_fits() {
        let formats = || {
            let formats = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16];
            let formats = formats.into_iter().chain([WeightFormat::Q8_0]);
            formats.zip([400, 200, 200, 106])
        };
        for (available, said) in [
            (399, "choose --weights bf16, with which they take 200 B"),
            (106, "choose --weights q8_0, with which they take 106 B"),
            (105, "no format of --weights is small enough"),
        ] {
            let advice = too_large(available, formats());
            assert!(advice.contains(said), "{advice}");
        }
    }
}

//! Writes a checkpoint as a GGUF file, as llama.cpp's converter does.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::Value as Json;

use super::super::config::{Architecture, Config};
use super::super::yarn::Yarn;
use super::super::{Checkpoint, TOKENIZER};
use super::{config, own_name, tensor_names, tokenizer};
use crate::error::{Cause, LoadError};
use crate::kernels::WeightFormat;
use crate::tokenizer::QWEN_PATTERN;

type Entry = (&'static str, Value);

/// What [`Checkpoint::write_gguf`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GgufSummary {
    /// Bytes of the file.
    pub bytes: u64,
    /// The matrices that are not in the format asked for, because their rows are not whole blocks of it.
    pub other_formats: Vec<(String, WeightFormat)>,
    /// Whether the file has the tokenizer and the chat template. A GGUF file holds only tokenizers with Qwen's
    /// own splitting of words. Otherwise, `tokenizer.json` and `tokenizer_config.json` must lie beside the file.
    pub has_tokenizer: bool,
}

impl Checkpoint {
    /// Writes the model as a GGUF file. All matrices get `format`, and norms are F32.
    ///
    /// A matrix whose rows are not whole blocks of the format gets Q8_0 instead, or else BF16. K-quants are
    /// rounded by candle-core without an importance matrix. Calls `progress(done, all)` after each tensor. The
    /// file gets its name when it is whole, and then replaces a file of that name.
    ///
    /// # Errors
    /// Returns the errors of loading the model, [`LoadError::Write`], and an error for classifiers, whose heads
    /// such files cannot hold.
    pub fn write_gguf(
        &self,
        out: &Path,
        format: WeightFormat,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<GgufSummary, LoadError> {
        let (model, weights) = self.config_and_weights()?;
        if model.architecture != Architecture::Qwen3ForCausalLM {
            return Err(LoadError::Setting(
                "a GGUF file cannot hold the head of a classifier".into(),
            ));
        }
        if model.yarn.as_ref().is_some_and(|yarn| !yarn.truncate) {
            return Err(LoadError::Setting(
                "a GGUF file cannot hold YaRN whose `truncate` is false".into(),
            ));
        }
        let names = tensor_names(&model);
        let mut other_formats = Vec::new();
        let mut tensors = Vec::with_capacity(names.len());
        for name in &names {
            let numbers = weights.values(name)?;
            let (tensor, chosen) = quantise(numbers, format)
                .map_err(|error| LoadError::tensor(name, error.to_string()))?;
            if tensor.shape().rank() > 1 && chosen != format {
                other_formats.push((own_name(name), chosen));
            }
            tensors.push((own_name(name), tensor));
            progress(tensors.len(), names.len());
        }

        let mut metadata = configuration(&model, &self.name);
        let vocabulary = self.vocabulary(model.vocab_size)?;
        let has_tokenizer = !vocabulary.is_empty();
        metadata.extend(vocabulary);
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
        let bytes = write_file(out, &metadata, &tensors)
            .map_err(|source| LoadError::Write { path: out.to_owned(), source })?;
        Ok(GgufSummary { bytes, other_formats, has_tokenizer })
    }

    /// Returns the tokens, their types, the merges and the chat template. Empty if a GGUF file cannot hold the
    /// tokenizer.
    fn vocabulary(&self, rows: usize) -> Result<Vec<Entry>, LoadError> {
        let Some(bytes) = &self.tokenizer else { return Ok(Vec::new()) };
        let parse = |bytes: &[u8], file: &str| -> Result<Json, LoadError> {
            super::super::json::parse(file, bytes)
        };
        let file = parse(bytes, TOKENIZER)?;
        let pattern = file.pointer("/pre_tokenizer/pretokenizers/0/pattern/Regex");
        let is_qwens = pattern.is_some_and(|pattern| pattern == QWEN_PATTERN)
            && file["decoder"]["type"] == "ByteLevel";
        if !is_qwens {
            return Ok(Vec::new());
        }
        let mut entries = tokens(&file, rows)?;
        let settings = self.tokenizer_config.as_deref();
        let settings = settings.map(|bytes| parse(bytes, "tokenizer_config.json")).transpose()?;
        let template = match &self.chat_template {
            Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            None => {
                settings.and_then(|settings| settings["chat_template"].as_str().map(str::to_owned))
            }
        };
        entries.extend(template.map(|text| (tokenizer::CHAT_TEMPLATE, Value::String(text))));
        Ok(entries)
    }
}

/// Rounds a tensor: a vector to F32, and a matrix to the format, or else to the first one that its rows fit.
fn quantise(tensor: Tensor, format: WeightFormat) -> candle_core::Result<(QTensor, WeightFormat)> {
    let dtype = |format| match format {
        WeightFormat::F32 => GgmlDType::F32,
        WeightFormat::Bf16 => GgmlDType::BF16,
        WeightFormat::F16 => GgmlDType::F16,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q5K => GgmlDType::Q5K,
        WeightFormat::Q6K => GgmlDType::Q6K,
    };
    let inputs = tensor.dims().last().copied().unwrap_or(0);
    let fits = |format: &WeightFormat| inputs.is_multiple_of(dtype(*format).block_size());
    let format = match tensor.rank() {
        0 | 1 => WeightFormat::F32,
        _ => {
            let choices = [format, WeightFormat::Q8_0, WeightFormat::Bf16];
            choices.into_iter().find(fits).unwrap_or(WeightFormat::F32)
        }
    };
    Ok((QTensor::quantize(&tensor, dtype(format))?, format))
}

/// Returns the configuration.
fn configuration(model: &Config, name: &str) -> Vec<Entry> {
    let number = |number: usize| Value::U32(number as u32);
    let mut entries = vec![
        (config::ARCHITECTURE, text("qwen3")),
        ("general.name", text(name)),
        ("general.quantization_version", Value::U32(2)),
        (config::LAYERS, number(model.num_hidden_layers)),
        (config::CONTEXT, number(model.max_position_embeddings)),
        (config::HIDDEN, number(model.hidden_size)),
        (config::INTERMEDIATE, number(model.intermediate_size)),
        (config::HEADS, number(model.num_attention_heads)),
        (config::KV_HEADS, number(model.num_key_value_heads)),
        (config::KEY_LENGTH, number(model.head_dim)),
        (config::VALUE_LENGTH, number(model.head_dim)),
        (config::EPSILON, Value::F32(model.rms_norm_eps)),
        (config::ROPE_BASE, Value::F32(model.rope_theta as f32)),
    ];
    entries.extend(model.yarn.iter().flat_map(yarn));
    // The format has one. Readers find the others by their names.
    let eos = model.eos_token_ids.first();
    entries.extend(eos.map(|id| (config::EOS[0], Value::U32(*id))));
    entries
}

/// Returns the scaling of the rotary embedding.
fn yarn(yarn: &Yarn) -> Vec<Entry> {
    let number = |number: f64| Value::F32(number as f32);
    let implied = Yarn::default_attention_factor(yarn.factor, 1.0);
    vec![
        (config::ROPE_SCALING, text("yarn")),
        (config::YARN_FACTOR, number(yarn.factor)),
        (config::YARN_ORIGINAL, Value::U32(yarn.original_max_position_embeddings as u32)),
        (config::YARN_ATTENTION, number(yarn.attention_factor / implied)),
        (config::YARN_BETA_FAST, number(yarn.beta_fast)),
        (config::YARN_BETA_SLOW, number(yarn.beta_slow)),
    ]
}

/// Returns the tokens, their types and the merges. Ids without a token are unused.
fn tokens(file: &Json, rows: usize) -> Result<Vec<Entry>, LoadError> {
    let invalid = |reason: String| LoadError::invalid(TOKENIZER, reason);
    let mut texts: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![tokenizer::UNUSED; rows];
    let mut set = |id: &Json, token: &str, kind: i128| {
        let index = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
        let index = index.ok_or_else(|| {
            invalid(format!("the id of {token:?} is {id}, but the embedding has {rows} rows"))
        })?;
        (texts[index], kinds[index]) = (token.to_owned(), kind);
        Ok(())
    };
    for (token, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
        set(id, token, tokenizer::NORMAL)?;
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        // llama.cpp's converter decides in the same way.
        let looks_special = content.starts_with("<|") && content.ends_with("|>");
        let is_control = looks_special || token["special"] == true;
        set(
            &token["id"],
            content,
            if is_control { tokenizer::CONTROL } else { tokenizer::USER_DEFINED },
        )?;
    }
    let merges = file["model"]["merges"].as_array().into_iter().flatten();
    let merges = merges.map(|merge| match merge {
        Json::String(pair) => Ok(text(pair)),
        pair => match (pair[0].as_str(), pair[1].as_str()) {
            (Some(left), Some(right)) => Ok(text(&format!("{left} {right}"))),
            _ => Err(invalid(format!("{pair} is not a merge"))),
        },
    });
    Ok(vec![
        (tokenizer::MODEL, text("gpt2")),
        (tokenizer::PRE_TOKENIZER, text("qwen2")),
        (tokenizer::TOKENS, Value::Array(texts.iter().map(|token| text(token)).collect())),
        (
            tokenizer::TYPES,
            Value::Array(kinds.into_iter().map(|kind| Value::I32(kind as i32)).collect()),
        ),
        (tokenizer::MERGES, Value::Array(merges.collect::<Result<_, _>>()?)),
        (tokenizer::ADD_BOS, Value::Bool(false)),
    ])
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Writes the file under another name, and renames it when it is whole. Returns its size.
fn write_file(
    out: &Path,
    metadata: &[(&str, &Value)],
    tensors: &[(&str, &QTensor)],
) -> Result<u64, Cause> {
    let mut unfinished = out.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let write = || -> Result<u64, Cause> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
        gguf_file::write(&mut file, metadata, tensors)?;
        let bytes = file.stream_position()?;
        // candle writes version 2. Version 3 differs only in that it allows files of the other byte order.
        file.seek(SeekFrom::Start(4))?;
        file.write_all(&3u32.to_le_bytes())?;
        file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        fs::rename(&unfinished, out)?;
        Ok(bytes)
    };
    write().inspect_err(|_| {
        // The error that matters is the one before.
        let _ = fs::remove_file(&unfinished);
    })
}

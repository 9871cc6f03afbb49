//! Validation of `tokenizer.json`, before and after the tokenizers crate reads it.
//!
//! The crate panics on some invalid files, and accepts settings that make prompts unsafe. The most
//! important rule is that the tokenizer's model cannot produce an added token from plain text
//! ([`TokenizerFile::check_added_tokens`]).

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::LoadError;

/// The name of the file in errors.
const FILE: &str = "tokenizer.json";

const NORMALIZERS: [&str; 10] = [
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Strip",
    "Prepend",
    "Replace",
];
const PRE_TOKENIZERS: [&str; 8] = [
    "Sequence",
    "Split",
    "ByteLevel",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "Metaspace",
];
/// Decoders that decode each token independently of its neighbours.
const DECODERS: [&str; 3] = ["ByteLevel", "Sequence", "Replace"];

/// The largest number of added tokens, and of bytes of one. The largest known tokenizer has 6,400 added tokens.
const MAX_ADDED_TOKENS: usize = 20_000;
const MAX_ADDED_BYTES: usize = 1024;
/// The largest number of bytes of a component, written as JSON. The largest known one has about 2,000.
const MAX_COMPONENT_BYTES: usize = 32 << 10;
/// The largest number of parts of a component, and the largest factor by which they may lengthen a text.
const MAX_PARTS: usize = 32;
const MAX_GROWTH: usize = 64;

/// The regular expression with which Qwen2 and Qwen3 split text before BPE.
pub(crate) const QWEN_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The keys of the file that are checked.
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Model {
    #[serde(rename = "BPE")]
    Bpe(Bpe),
}

/// A byte-pair encoding model (BPE).
#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    unk_token: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge, written as `"left right"` or as `["left", "right"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl TokenizerFile {
    /// Parses the file and checks the values that the tokenizers crate relies on.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, LoadError> {
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|error| LoadError::unparsable(FILE, "it is not a BPE tokenizer", error))?;
        for (name, component, known) in [
            ("normalizer", &file.normalizer, &NORMALIZERS[..]),
            ("pre-tokenizer", &file.pre_tokenizer, &PRE_TOKENIZERS),
            ("decoder", &file.decoder, &DECODERS),
        ] {
            check_component(name, component, known)?;
            check_size(name, component)?;
        }
        if file.added_tokens.len() > MAX_ADDED_TOKENS {
            let reason = format!(
                "it has {} added tokens; the limit is {MAX_ADDED_TOKENS}",
                file.added_tokens.len()
            );
            return Err(LoadError::invalid(FILE, reason));
        }
        let long = file.added_tokens.iter().find(|token| token.content.len() > MAX_ADDED_BYTES);
        if let Some(AddedToken { id, content, .. }) = long {
            let bytes = content.len();
            let reason =
                format!("added token {id} has {bytes} bytes; the limit is {MAX_ADDED_BYTES}");
            return Err(LoadError::invalid(FILE, reason));
        }
        let Model::Bpe(model) = &file.model;
        model.check()?;
        Ok(file)
    }

    /// Builds the tokenizer of the file and checks its added tokens.
    pub(super) fn build(&self, bytes: &[u8]) -> Result<Tokenizer, LoadError> {
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| LoadError::unparsable(FILE, "it is not a valid tokenizer", error))?;
        self.check_added_tokens(&tokenizer)?;
        Ok(tokenizer)
    }

    /// Returns one more than the largest token id.
    pub(super) fn vocab_size(&self) -> usize {
        let Model::Bpe(model) = &self.model;
        let ids =
            model.vocab.values().copied().chain(self.added_tokens.iter().map(|token| token.id));
        ids.max().map_or(0, |largest| largest as usize + 1)
    }

    /// Returns the number of bytes of the longest token, for byte-level BPE.
    pub(super) fn longest_token(&self) -> usize {
        let Model::Bpe(model) = &self.model;
        // Byte-level BPE writes a byte that is not printable as one of these characters.
        let bytes = |character: char| match character {
            '\u{100}'..='\u{143}' => 1,
            other => other.len_utf8(),
        };
        let lengths = model.vocab.keys().map(|token| token.chars().map(bytes).sum());
        lengths.max().unwrap_or(1)
    }

    /// Returns whether the normalizer and the pre-tokenizer are those of Qwen2 and Qwen3.
    pub(super) fn has_qwen_pre_tokenizer(&self) -> bool {
        let is = |value: &Value, expected: &[(&str, Value)]| {
            expected.iter().all(|(pointer, expected)| value.pointer(pointer) == Some(expected))
        };
        let parts = self.pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
        let Some([split, byte_level]) = parts.map(Vec::as_slice) else { return false };
        is(&self.normalizer, &[("/type", "NFC".into())])
            && is(
                split,
                &[
                    ("/type", "Split".into()),
                    ("/pattern/Regex", QWEN_PATTERN.into()),
                    ("/behavior", "Isolated".into()),
                    ("/invert", false.into()),
                ],
            )
            && is(
                byte_level,
                &[
                    ("/type", "ByteLevel".into()),
                    ("/add_prefix_space", false.into()),
                    ("/use_regex", false.into()),
                ],
            )
    }

    /// Checks that the added tokens have the ids of the file, that their options are supported, and
    /// that the model cannot produce them from plain text.
    fn check_added_tokens(&self, tokenizer: &Tokenizer) -> Result<(), LoadError> {
        let Model::Bpe(model) = &self.model;
        let from_text = model.ids_from_text();
        for AddedToken { id, content, single_word, lstrip, rstrip } in &self.added_tokens {
            let refuse = |reason: &str| {
                Err(LoadError::invalid(
                    FILE,
                    format!("the added token {content:?} (id {id}) {reason}"),
                ))
            };
            if content.is_empty() {
                return refuse("is empty");
            }

            if *single_word || *lstrip || *rstrip {
                return refuse("sets single_word, lstrip or rstrip, which is not supported");
            }
            if tokenizer.token_to_id(content) != Some(*id) {
                return refuse(
                    "does not get its id; ids must be unique and follow those of the vocabulary",
                );
            }
            if from_text.contains(id) {
                return refuse("can be produced from plain text, so a document could forge it");
            }
        }
        Ok(())
    }
}

impl Bpe {
    fn check(&self) -> Result<(), LoadError> {
        let refuse = |reason: String| Err(LoadError::invalid(FILE, reason));
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return refuse("its dropout makes tokens random; set it to null".into());
        }
        let affixes = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
            return refuse(
                "continuing_subword_prefix and end_of_word_suffix are not supported".into(),
            );
        }
        if self.vocab.values().collect::<HashSet<_>>().len() != self.vocab.len() {
            return refuse("its vocabulary assigns one id to two tokens".into());
        }
        for merge in &self.merges {
            let Some((left, right)) = merge.pair() else {
                return refuse("one of its merges is not a pair of tokens".into());
            };
            for token in [left, right, &format!("{left}{right}")] {
                if !self.vocab.contains_key(token) {
                    return refuse(format!(
                        "its merges need {token:?}, which its vocabulary lacks"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns the ids that the model can produce: single characters, results of merges, the unknown
    /// token and byte tokens, and with `ignore_merges` the whole vocabulary.
    fn ids_from_text(&self) -> HashSet<u32> {
        let merged = self.merges.iter().filter_map(Merge::pair);
        let merged = merged.map(|(left, right)| format!("{left}{right}"));
        let merged: HashSet<u32> =
            merged.filter_map(|token| self.vocab.get(&token)).copied().collect();
        let others = self.vocab.iter().filter(|(token, _)| {
            self.ignore_merges
                || token.chars().nth(1).is_none()
                || self.unk_token.as_ref() == Some(token)
                || (self.byte_fallback && token.starts_with("<0x"))
        });
        merged.into_iter().chain(others.map(|(_, id)| *id)).collect()
    }
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        }
    }
}

/// Checks that the type of a component is supported. In a sequence, checks all parts.
fn check_component(name: &str, component: &Value, known: &[&str]) -> Result<(), LoadError> {
    if component.is_null() && name != "decoder" {
        return Ok(());
    }
    let kind = component.get("type").and_then(Value::as_str).unwrap_or("(none)");
    if !known.contains(&kind) {
        let reason = format!(
            "a {name} of type {kind} is not supported; supported types: {}",
            known.join(", ")
        );
        return Err(LoadError::invalid(FILE, reason));
    }
    if kind != "Sequence" {
        return Ok(());
    }
    let parts =
        ["normalizers", "pretokenizers", "decoders"].iter().find_map(|key| component.get(key));
    let mut parts = parts.and_then(Value::as_array).into_iter().flatten();
    // ByteLevel is excluded, because a sequence of decoders would replace incomplete characters.
    let known = if name == "decoder" { &["Sequence", "Replace"] } else { known };
    parts.try_for_each(|part| check_component(name, part, known))
}

/// Checks that a component does not need more memory or time than any known one: its size, and the factor by which it
/// lengthens a text.
fn check_size(name: &str, component: &Value) -> Result<(), LoadError> {
    let bytes = component.to_string().len();
    if bytes > MAX_COMPONENT_BYTES {
        let reason = format!("its {name} has {bytes} bytes; the limit is {MAX_COMPONENT_BYTES}");
        return Err(LoadError::invalid(FILE, reason));
    }
    let (parts, growth) = parts_and_growth(component);
    if parts > MAX_PARTS || growth > MAX_GROWTH {
        let reason = format!(
            "its {name} has {parts} parts, which make a text up to {growth} times as long; the limits are {MAX_PARTS} \
             and {MAX_GROWTH}"
        );
        return Err(LoadError::invalid(FILE, reason));
    }
    Ok(())
}

/// Returns the number of parts of a component, and the factor by which they may lengthen a text.
fn parts_and_growth(component: &Value) -> (usize, usize) {
    let parts =
        ["normalizers", "pretokenizers", "decoders"].iter().find_map(|key| component.get(key));
    if let Some(parts) = parts.and_then(Value::as_array) {
        let of_parts = parts.iter().map(parts_and_growth);
        return of_parts.fold((0, 1), |(parts, growth), (more, factor)| {
            (parts + more, growth.saturating_mul(factor))
        });
    }
    let content = component.get("content").and_then(Value::as_str).unwrap_or_default();
    let growth = match component.get("type").and_then(Value::as_str) {
        // A regular expression may match between any two bytes.
        Some("Replace") => match component.pointer("/pattern/String").and_then(Value::as_str) {
            Some(pattern) if !pattern.is_empty() => content.len().div_ceil(pattern.len()),
            _ => content.len() + 1,
        },
        _ => 1,
    };
    (1, growth.max(1))
}

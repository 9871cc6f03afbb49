//! The tokenizer and the chat template of a GGUF file, written as the files of a Hugging Face folder.
//!
//! A GGUF file holds the vocabulary and the merges of a BPE tokenizer. Of its normalizer and its pre-tokenizer,
//! the file holds one name. The name `qwen2` means those of Qwen2 and Qwen3. The built `tokenizer.json` equals
//! Qwen3's own, and the tokenizer's reader checks it like one of a folder.
//!
//! The types of tokens decide which are added tokens:
//!
//! | type | number | here |
//! |---|---|---|
//! | normal | 1 | a token of the BPE model |
//! | control | 3 | an added token that is special, such as `<|im_end|>` |
//! | user-defined | 4 | an added token that is not special, such as `<think>` |
//! | unused | 5 | left out: it fills the vocabulary up to the rows of the embedding |
//!
//! Vocabularies for BPE do not have the types unknown (2) and byte (6), and these are refused.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::error::LoadError;
use crate::tokenizer::QWEN_PATTERN;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

pub(super) const NORMAL: i128 = 1;
pub(super) const CONTROL: i128 = 3;
pub(super) const USER_DEFINED: i128 = 4;
pub(super) const UNUSED: i128 = 5;

/// Keys with the id of a token, and the names of transformers. (`seperator` is how llama.cpp spells it.)
const SPECIAL_TOKENS: [(&str, &str); 7] = [
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.seperator_token_id", "sep_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
    ("tokenizer.ggml.cls_token_id", "cls_token"),
    ("tokenizer.ggml.mask_token_id", "mask_token"),
];

/// The tokenizer of a GGUF file, as files of a Hugging Face folder.
#[derive(Debug, Default)]
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`, or `None` if the file has no tokenizer.
    pub(crate) tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`: the special tokens, and the chat template if the file has one.
    pub(crate) tokenizer_config: Vec<u8>,
    pub(crate) has_chat_template: bool,
}

/// Builds the files from the metadata.
pub(super) fn files(metadata: &Metadata<'_>) -> Result<TokenizerFiles, LoadError> {
    let mut config = Map::new();
    let template = metadata.string(CHAT_TEMPLATE)?;
    if let Some(template) = template {
        config.insert("chat_template".into(), template.into());
    }
    let has_tokenizer = [MODEL, TOKENS].iter().any(|key| metadata.get(key).is_some());
    let mut tokenizer = None;
    if has_tokenizer {
        let vocabulary = Vocabulary::read(metadata)?;
        for (name, text) in vocabulary.special_tokens(metadata)? {
            config.insert(name.into(), text.into());
        }
        tokenizer = Some(to_json(metadata, &vocabulary.file(metadata)?)?);
    }
    Ok(TokenizerFiles {
        tokenizer,
        tokenizer_config: to_json(metadata, &config)?,
        has_chat_template: template.is_some(),
    })
}

fn to_json(metadata: &Metadata<'_>, value: &impl Serialize) -> Result<Vec<u8>, LoadError> {
    serde_json::to_vec(value).map_err(|error| {
        LoadError::unparsable(metadata.file(), "its tokenizer cannot be written as JSON", error)
    })
}

/// The tokens by id, with their types.
struct Vocabulary<'a>(Vec<(&'a str, i128)>);

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self, LoadError> {
        for (key, expected) in [(MODEL, "gpt2"), (PRE_TOKENIZER, "qwen2")] {
            match metadata.string(key)? {
                Some(name) if name == expected => {}
                Some(name) => {
                    let reason = format!("{key} is {name:?}; only {expected:?} is implemented");
                    return Err(metadata.invalid(reason));
                }
                None => return Err(metadata.missing(key)),
            }
        }
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
        let types = metadata.integers(TYPES)?.ok_or_else(|| metadata.missing(TYPES))?;
        if tokens.len() != types.len() {
            return Err(metadata.invalid(format!(
                "{TOKENS} has {} elements, but {TYPES} has {}",
                tokens.len(),
                types.len()
            )));
        }
        Ok(Self(tokens.zip(types).collect()))
    }

    /// Returns the texts of the special tokens, by transformers' names. A `bos_token` counts only if the
    /// tokenizer puts it in front of texts. Qwen's files name one that Qwen's tokenizer does not have.
    fn special_tokens(
        &self,
        metadata: &Metadata<'_>,
    ) -> Result<Vec<(&'static str, &'a str)>, LoadError> {
        let has_bos = metadata.bool(ADD_BOS)?.unwrap_or(false);
        let mut texts = Vec::new();
        for (key, name) in SPECIAL_TOKENS {
            let Some(id) = metadata.integer(key)? else { continue };
            let Some((text, _)) = self.0.get(id) else {
                let reason = format!("{key} is {id}, but {TOKENS} has {} elements", self.0.len());
                return Err(metadata.invalid(reason));
            };
            if name != "bos_token" || has_bos {
                texts.push((name, *text));
            }
        }
        Ok(texts)
    }

    /// Returns the contents of `tokenizer.json`.
    fn file(&self, metadata: &Metadata<'a>) -> Result<TokenizerJson<'a>, LoadError> {
        let mut vocab = BTreeMap::new();
        let mut added_tokens = Vec::new();
        for (id, (text, kind)) in (0_u32..).zip(&self.0) {
            match *kind {
                NORMAL => {
                    if let Some(other) = vocab.insert(*text, id) {
                        let reason = format!("{TOKENS} has {text:?} twice, as {other} and as {id}");
                        return Err(metadata.invalid(reason));
                    }
                }
                CONTROL | USER_DEFINED => {
                    added_tokens.push(AddedToken::new(id, text, *kind == CONTROL));
                }
                UNUSED => {}
                other => {
                    return Err(metadata.invalid(format!(
                        "{TYPES} is {other} for token {id} ({text:?}); normal (1), control (3), \
                         user-defined (4) and unused (5) tokens are read"
                    )));
                }
            }
        }
        let merges = metadata.strings(MERGES)?.ok_or_else(|| metadata.missing(MERGES))?;
        let merges = merges.map(|merge| {
            let pair = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
            pair.ok_or_else(|| {
                metadata.invalid(format!("{MERGES} has {merge:?}, which is not a pair of tokens"))
            })
        });
        Ok(TokenizerJson::new(added_tokens, Bpe::new(vocab, merges.collect::<Result<_, _>>()?)))
    }
}

/// The contents of `tokenizer.json`. The constant parts are those of Qwen3's file.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

impl<'a> TokenizerJson<'a> {
    fn new(added_tokens: Vec<AddedToken<'a>>, model: Bpe<'a>) -> Self {
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        });
        let split = json!({
            "type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": false
        });
        Self {
            version: "1.0",
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens,
            normalizer: json!({"type": "NFC"}),
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [split, byte_level]}),
            post_processor: byte_level.clone(),
            decoder: byte_level,
            model,
        }
    }
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    fn new(id: u32, content: &'a str, special: bool) -> Self {
        let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
        Self { id, content, single_word, lstrip, rstrip, normalized, special }
    }
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: Value,
    unk_token: Value,
    continuing_subword_prefix: &'static str,
    end_of_word_suffix: &'static str,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Bpe<'a> {
    fn new(vocab: BTreeMap<&'a str, u32>, merges: Vec<(&'a str, &'a str)>) -> Self {
        Self {
            r#type: "BPE",
            dropout: Value::Null,
            unk_token: Value::Null,
            continuing_subword_prefix: "",
            end_of_word_suffix: "",
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges,
        }
    }
}

//! The files of a checkpoint: opened from a folder or a GGUF file, downloaded from the hub, or bundled.

pub(crate) mod config;
mod files;
pub(crate) mod gguf;
#[cfg(feature = "hub")]
pub(crate) mod hub;
pub(crate) mod json;
mod keys;
mod recognition;
mod safetensors;
mod shard;
mod warnings;
pub(crate) mod weights;
pub(crate) mod yarn;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use config::Config;
use files::{read, read_optional};
pub use gguf::GgufSummary;
use gguf::{Gguf, ShardName};
pub use recognition::RecognisedPrompt;
use serde::Deserialize;
pub(crate) use shard::Shard;
use weights::Weights;

use crate::error::LoadError;
use crate::tokenizer::PromptTokenizer;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The parts of a model in the layout of the library Sentence Transformers.
const MODULES: &str = "modules.json";
/// The labels of a model that Sentence Transformers reads at the last position, unless [`MODULES`] names another folder.
const LOGIT_SCORE: &str = "1_LogitScore/config.json";
const SAFETENSORS: &str = "model.safetensors";
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";

/// The files of a model: a folder in the layout of the Hugging Face hub, or GGUF files.
///
/// The weights are mapped into memory; the other files are read.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) name: String,
    /// The names by which the prompt is recognised: the name above, and that of the folder which the path leads to.
    prompt_names: Vec<String>,
    format: FileFormat,
    /// Empty if the configuration is in a GGUF file.
    pub(crate) config: Vec<u8>,
    pub(crate) generation_config: Option<Vec<u8>>,
    pub(crate) tokenizer: Option<Vec<u8>>,
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    pub(crate) chat_template: Option<Vec<u8>>,
    /// [`MODULES`], and the configuration of its module that scores logits.
    modules: [Option<Vec<u8>>; 2],
    pub(crate) shards: Vec<Shard>,
}

/// How a checkpoint stores its weights and its configuration.
#[derive(Debug)]
enum FileFormat {
    /// Safetensors files and `config.json`.
    Safetensors {
        /// The files of tensors, as the index names them. Empty without an index.
        weight_map: BTreeMap<String, String>,
        /// Whether the folder has an index beside `model.safetensors`. An index in this place is ignored.
        has_unused_index: bool,
        /// Whether the output projection equals the embedding bit for bit. Empty until the two are compared.
        has_equal_head: OnceLock<bool>,
    },
    /// GGUF files, of which the first one holds the configuration.
    Gguf {
        /// The files of the tokenizer that were built from the metadata.
        built: Vec<&'static str>,
    },
}

impl Checkpoint {
    /// Opens a checkpoint: a folder, or a GGUF file.
    ///
    /// # Folders
    /// The folder holds:
    /// - `config.json`,
    /// - `tokenizer.json`,
    /// - `tokenizer_config.json`, `chat_template.jinja`, or both (optional, if every prompt is
    ///   [whole](erank_core::PromptTemplate::whole)),
    /// - `generation_config.json` (optional),
    /// - `modules.json` and `1_LogitScore/config.json` (optional), which tell a reranker of one pass,
    /// - `model.safetensors`, or else `model.safetensors.index.json` and the shards that it lists.
    ///
    /// A folder without safetensors files may hold one GGUF file instead.
    ///
    /// # GGUF files
    /// A path that ends in `.gguf` is a GGUF file of a dense Qwen3 model. If its name ends in, for example,
    /// `-00001-of-00003.gguf`, the other files of the model are opened from the same folder. Tensors of the types
    /// F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K are read.
    ///
    /// The configuration, the tokenizer and the chat template come from the file's metadata. Only if the file
    /// has no tokenizer, `tokenizer.json` is read from the same folder. Only if it has no chat template,
    /// `chat_template.jinja` and `tokenizer_config.json` are.
    ///
    /// # Mapped files
    /// The weight files are mapped into memory. They must not be changed or truncated until the model is loaded. If one
    /// is found to be shorter, loading returns an error; if it is truncated while a tensor is read, the operating
    /// system ends the process. [`without_mapping`](Self::without_mapping) excludes that.
    ///
    /// # Errors
    /// Returns [`LoadError::Read`] or [`LoadError::Invalid`], which name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let names = names(path);
        let mut checkpoint = if !path.is_dir() && gguf::is_gguf(path) {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            Self::from_gguf(None, &file, &mut |file| Ok(path.with_file_name(file)))?
        } else if path.is_file() {
            let reason = "it is neither a folder nor a GGUF file; give the model's folder";
            return Err(LoadError::invalid(&path.to_string_lossy(), reason));
        } else {
            let files = files::files_in(path);
            match gguf_in(path, &files)? {
                Some(file) => Self::from_gguf(None, &file, &mut |file| Ok(path.join(file)))?,
                None => Self::from_source(&names[0], &files, &mut |file| Ok(path.join(file)))?,
            }
        };
        checkpoint.prompt_names.extend(names);
        Ok(checkpoint)
    }

    /// Reads the weight files into memory instead of mapping them, so that later changes of the files do no harm. Until
    /// the checkpoint is dropped, this takes memory of the files' size in addition to that of the loaded model.
    ///
    /// # Errors
    /// Returns [`LoadError::Read`] if a file cannot be read or does not fit in memory, and [`LoadError::Invalid`] if its
    /// length has changed.
    pub fn without_mapping(mut self) -> Result<Self, LoadError> {
        self.shards.iter_mut().try_for_each(Shard::read)?;
        Ok(self)
    }

    /// Returns the bundled demonstration model.
    #[cfg(feature = "tiny-model")]
    pub fn tiny() -> Self {
        macro_rules! bundled {
            ($file:literal) => {
                include_bytes!(concat!("../../tiny-model/", $file)).as_slice()
            };
        }
        Self {
            name: "erank-tiny".into(),
            prompt_names: Vec::new(),
            format: FileFormat::Safetensors {
                weight_map: BTreeMap::new(),
                has_unused_index: false,
                has_equal_head: OnceLock::new(),
            },
            config: bundled!("config.json").into(),
            generation_config: Some(bundled!("generation_config.json").into()),
            tokenizer: Some(bundled!("tokenizer.json").into()),
            tokenizer_config: Some(bundled!("tokenizer_config.json").into()),
            chat_template: None,
            modules: [None, None],
            shards: vec![Shard::bundled(SAFETENSORS.into(), bundled!("model.safetensors"))],
        }
    }

    /// Reads all files of a checkpoint with these `files`, in its folder and in the folders inside. `locate` returns the
    /// path of one of them; the path of another file does not exist.
    pub(crate) fn from_source(
        name: &str,
        files: &[String],
        locate: &mut dyn FnMut(&str) -> Result<PathBuf, LoadError>,
    ) -> Result<Self, LoadError> {
        let exists = |name: &str| files.iter().any(|file| file == name);
        refuse_files(&exists)?;
        let config = read(CONFIG, &locate(CONFIG)?)?;
        let mut optional = |file| read_optional(file, &locate(file)?);
        let generation_config = optional("generation_config.json")?;
        let tokenizer = optional(TOKENIZER)?;
        let tokenizer_config = optional(TOKENIZER_CONFIG)?;
        let chat_template = optional(CHAT_TEMPLATE)?;
        let modules = optional(MODULES)?;
        let logit_score = optional(&recognition::logit_score_file(modules.as_deref()))?;
        let modules = [modules, logit_score];

        let (has_index, has_whole) = (exists(SAFETENSORS_INDEX), exists(SAFETENSORS));
        if !has_index && !has_whole {
            return Err(no_weights(files));
        }
        let mut weight_map = match has_index {
            true => weight_map(&read(SAFETENSORS_INDEX, &locate(SAFETENSORS_INDEX)?)?),
            false => Ok(BTreeMap::new()),
        };
        let mut has_unused_index = false;
        if has_index && has_whole {
            // transformers, too, reads `model.safetensors` and ignores an index beside it.
            let is_same =
                |map: &BTreeMap<String, String>| map.values().all(|file| file == SAFETENSORS);
            has_unused_index = !weight_map.as_ref().is_ok_and(is_same);
            weight_map = Ok(BTreeMap::new());
        }
        let weight_map = weight_map?;
        let mut shards = Vec::new();
        for file in shard_files(&weight_map)? {
            if !exists(&file) {
                let reason =
                    format!("{SAFETENSORS_INDEX} names it, and it is missing; download it");
                return Err(LoadError::invalid(&file, reason));
            }
            let path = locate(&file)?;
            shards.push(Shard::map(file, &path)?);
        }
        Ok(Self {
            name: name.to_owned(),
            prompt_names: vec![name.to_owned()],
            format: FileFormat::Safetensors {
                weight_map,
                has_unused_index,
                has_equal_head: OnceLock::new(),
            },
            config,
            generation_config,
            tokenizer,
            tokenizer_config,
            chat_template,
            modules,
            shards,
        })
    }

    /// Opens a model of GGUF files, of which `file` is one. `locate` returns the path of a file of the same
    /// folder; the path of an optional file need not exist. The default name is that of the file without its
    /// extension and number.
    fn from_gguf(
        name: Option<&str>,
        file: &str,
        locate: &mut dyn FnMut(&str) -> Result<PathBuf, LoadError>,
    ) -> Result<Self, LoadError> {
        let stem = Path::new(file).file_stem().and_then(OsStr::to_str).unwrap_or(file);
        let stem = ShardName::parse(file).map_or(stem, |shard| shard.stem);
        let shards = gguf::open(file, locate)?;
        let built_files = Gguf::of_shards(&shards)?.tokenizer()?;

        let mut beside = |file| read_optional(file, &locate(file)?);
        let mut built = Vec::new();
        let tokenizer = match built_files.tokenizer {
            Some(tokenizer) => {
                built.push(TOKENIZER);
                Some(tokenizer)
            }
            None => beside(TOKENIZER)?,
        };
        let (mut tokenizer_config, mut chat_template) = (None, None);
        if !built_files.has_chat_template {
            chat_template = beside(CHAT_TEMPLATE)?;
            tokenizer_config = beside(TOKENIZER_CONFIG)?;
        }
        if tokenizer_config.is_none() {
            built.push(TOKENIZER_CONFIG);
            tokenizer_config = Some(built_files.tokenizer_config);
        }
        Ok(Self {
            name: name.unwrap_or(stem).to_owned(),
            prompt_names: vec![name.unwrap_or(stem).to_owned()],
            format: FileFormat::Gguf { built },
            config: Vec::new(),
            generation_config: None,
            tokenizer,
            tokenizer_config,
            chat_template,
            modules: [None, None],
            shards,
        })
    }

    /// Parses the configuration and the headers of the weight files. If there are an embedding and an output projection
    /// that the configuration says are the same, the first call compares them.
    ///
    /// # Errors
    /// Returns an error that names the file and the key or tensor that is wrong.
    pub(crate) fn config_and_weights(&self) -> Result<(Config, Weights<'_>), LoadError> {
        self.shards.iter().try_for_each(Shard::check_length)?;
        match &self.format {
            FileFormat::Safetensors { weight_map, has_equal_head, .. } => {
                let generation_config = self.generation_config.as_deref();
                let mut config = Config::from_json(&self.config, generation_config)?;
                let weights =
                    safetensors::weights(&self.shards, weight_map, has_equal_head, &mut config)?;
                Ok((config, weights))
            }
            FileFormat::Gguf { .. } => {
                let gguf = Gguf::of_shards(&self.shards)?;
                Ok((gguf.config()?, gguf.weights(&self.shards)?))
            }
        }
    }

    /// Replaces the file that an error names by the GGUF file, if it was built from the metadata.
    pub(crate) fn name_built_file(&self, error: LoadError) -> LoadError {
        match (error, &self.format, &self.shards[..]) {
            (
                LoadError::Invalid { file, reason, source },
                FileFormat::Gguf { built },
                [shard, ..],
            ) if built.contains(&&*file) => LoadError::Invalid {
                reason: format!("{file}, built from its metadata: {reason}"),
                file: shard.file.clone(),
                source,
            },
            (error, ..) => error,
        }
    }

    /// Returns the model's configuration. Of the weights, at most the embedding and the output projection are read, to
    /// compare them: the first time, and only if the configuration says that they are the same and the files have both.
    ///
    /// # Errors
    /// Returns an error that names the file and the key or tensor that is wrong.
    pub fn config(&self) -> Result<Config, LoadError> {
        Ok(self.config_and_weights()?.0)
    }

    /// Returns the tokenizer with the chat template. The weights are not read.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file that is missing, invalid or not supported.
    pub fn tokenizer(&self) -> Result<PromptTokenizer, LoadError> {
        let missing = || {
            let reason = "the checkpoint does not have it; load the tokenizer with transformers, and save it with \
                          save_pretrained";
            LoadError::invalid(TOKENIZER, reason)
        };
        let tokenizer = self.tokenizer.as_deref().ok_or_else(missing)?;
        PromptTokenizer::new(
            tokenizer,
            self.tokenizer_config.as_deref(),
            self.chat_template.as_deref(),
        )
        .map_err(|error| self.name_built_file(error))
    }

    /// Returns the model's name: that of the folder, of the GGUF file without its extension, or on the hub.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the model is in GGUF files.
    pub fn is_gguf(&self) -> bool {
        matches!(self.format, FileFormat::Gguf { .. })
    }

    /// Returns the names of the files with weights, and their bytes.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.shards.iter().map(|shard| (&*shard.file, shard.bytes().len()))
    }

    /// Computes a checksum that distinguishes checkpoints of the same name.
    ///
    /// The checksum is a CRC-32 of the configuration, the tokenizer, the chat template, the index's map from tensors to
    /// files, and 256 samples of each weight file, so it takes little time even for large models. Use it, for
    /// example, to check that stored scores came from the same model. It detects mistakes, not
    /// deliberate collisions.
    pub fn fingerprint(&self) -> u32 {
        const SAMPLES: usize = 256;
        const SAMPLE_BYTES: usize = 4096;
        let mut hasher = crc32fast::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(&self.config);
        let files = [&self.generation_config, &self.tokenizer, &self.tokenizer_config];
        for file in files.into_iter().chain([&self.chat_template]) {
            add(file.as_deref().unwrap_or_default());
        }
        // If a tensor is in several files, the map says which one counts.
        if let FileFormat::Safetensors { weight_map, .. } = &self.format {
            for (tensor, file) in weight_map {
                add(tensor.as_bytes());
                add(file.as_bytes());
            }
        }
        for shard in &self.shards {
            let bytes = shard.bytes();
            add(&(bytes.len() as u64).to_le_bytes());
            let step = (bytes.len() / SAMPLES).max(SAMPLE_BYTES);
            bytes.chunks(step).for_each(|chunk| add(&chunk[..chunk.len().min(SAMPLE_BYTES)]));
        }
        hasher.finalize()
    }
}

/// Returns the name of the model at `path`, and the name of the folder or file that the path leads to. They differ for
/// paths such as `.`, and for links. A folder of the hub's cache has the model's name on the hub.
fn names(path: &Path) -> [String; 2] {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let target_name = name_of(&target).unwrap_or_else(|| path.to_string_lossy().into_owned());
    let folder = target.parent().filter(|folder| folder.ends_with("snapshots"));
    let hub_name = folder.and_then(Path::parent).and_then(name_of);
    let hub_name =
        hub_name.and_then(|name| Some(name.strip_prefix("models--")?.replace("--", "/")));
    match hub_name {
        Some(name) => [name.clone(), name],
        None => [name_of(path).unwrap_or_else(|| target_name.clone()), target_name],
    }
}

/// Returns the GGUF file of a folder with these `files`, or the first of several files of one model. Returns `None` if
/// the folder has none, or has safetensors files.
fn gguf_in(folder: &Path, files: &[String]) -> Result<Option<String>, LoadError> {
    if has_safetensors(files) {
        return Ok(None);
    }
    let files = files.iter().filter(|file| gguf::is_model_file(file)).cloned();
    match &gguf::one_per_set(files.collect())[..] {
        [] => Ok(None),
        [file] => Ok(Some(file.clone())),
        several => {
            let reason =
                format!("it holds several models, {}; give the path of one", several.join(", "));
            Err(LoadError::invalid(&folder.to_string_lossy(), reason))
        }
    }
}

/// Refuses folders with files that change the model, and that are not read.
fn refuse_files(exists: &dyn Fn(&str) -> bool) -> Result<(), LoadError> {
    const QUANTISATION: [&str; 3] =
        ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];
    const ADAPTER: &str = "adapter_config.json";
    if exists(ADAPTER) {
        let reason = "the folder holds an adapter (LoRA), which is not applied; merge it into its base model, for \
                      example with PEFT's merge_and_unload, and give the folder of the result";
        return Err(LoadError::invalid(ADAPTER, reason));
    }
    match QUANTISATION.iter().find(|file| exists(file)) {
        Some(file) => {
            let reason = "the weights beside it are quantised, which is not read; use the model's BF16 or F32 \
                          safetensors files, or a GGUF file of it";
            Err(LoadError::invalid(file, reason))
        }
        None => Ok(()),
    }
}

/// Returns whether a folder with these `files` has weights in safetensors files.
pub(crate) fn has_safetensors(files: &[String]) -> bool {
    files.iter().any(|file| file == SAFETENSORS || file == SAFETENSORS_INDEX)
}

/// Returns the error of a folder whose `files` have no weights that are read. It names a file of other weights.
fn no_weights(files: &[String]) -> LoadError {
    const UNFINISHED: [&str; 4] = [".incomplete", ".part", ".aria2", ".crdownload"];
    const OTHERS: [&str; 10] = [
        ".safetensors",
        ".bin",
        ".bin.index.json",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".npz",
    ];
    let ends_with = |endings: &'static [&str]| {
        move |file: &&String| endings.iter().any(|ending| file.ends_with(ending))
    };
    if let Some(file) = files.iter().find(ends_with(&UNFINISHED)) {
        return LoadError::invalid(file, "its download is not complete; download the model again");
    }
    if let Some(file) = files.iter().find(ends_with(&OTHERS)) {
        let reason = format!(
            "weights are read from {SAFETENSORS} or the files of {SAFETENSORS_INDEX}; load the model with \
             transformers and save it with save_pretrained"
        );
        return LoadError::invalid(file, reason);
    }
    let inside = files.iter().find_map(|file| file.strip_suffix(&format!("/{CONFIG}")));
    let advice = match inside {
        Some(folder) => format!("the folder {folder} holds a model; give its path"),
        None => "the download may not be complete; download the model again".into(),
    };
    let reason = format!("it is missing, and so are {SAFETENSORS_INDEX} and GGUF files; {advice}");
    LoadError::invalid(SAFETENSORS, reason)
}

/// Parses a safetensors index. Returns the files of the tensors.
fn weight_map(index: &[u8]) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = json::parse(SAFETENSORS_INDEX, index)?;
    if index.weight_map.is_empty() {
        return Err(LoadError::invalid(SAFETENSORS_INDEX, "weight_map is empty"));
    }
    Ok(index.weight_map)
}

/// Returns the files with weights, sorted, without duplicates.
fn shard_files(weight_map: &BTreeMap<String, String>) -> Result<Vec<String>, LoadError> {
    if weight_map.is_empty() {
        return Ok(vec![SAFETENSORS.to_owned()]);
    }
    let mut files: Vec<String> = weight_map.values().cloned().collect();
    files.sort_unstable();
    files.dedup();
    // Shards lie in the same folder as the index. Names that lead to other folders are refused.
    let is_file_name =
        |file: &String| Path::new(file).file_name().is_some_and(|name| name == file.as_str());
    match files.iter().find(|file| !is_file_name(file)) {
        Some(file) => {
            let reason = format!("weight_map names {file:?}, which is not a plain file name");
            Err(LoadError::invalid(SAFETENSORS_INDEX, reason))
        }
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shard_files_returns_each_plain_file_name_once() {
        let index = &br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}"#[..];
        let files = |index| weight_map(index).and_then(|map| shard_files(&map));
        assert_eq!(files(index).expect("valid index"), ["m-1.safetensors"]);
        for bad in [
            r#"{"weight_map": {"a": "../m.safetensors"}}"#,
            r#"{"weight_map": {"a": "/m.safetensors"}}"#,
            r#"{"weight_map": {"a": ".."}}"#,
            r#"{"weight_map": {"a": ""}}"#,
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": 3}"#,
            "{",
        ] {
            assert!(files(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn fingerprint_depends_on_all_files_and_all_parts_of_the_weights() {
        let checkpoint = |weights: &[u8], template: Option<&str>| {
            let folder = tempfile::tempdir().expect("temporary folder");
            std::fs::write(folder.path().join("config.json"), "{}").expect("file written");
            std::fs::write(folder.path().join(SAFETENSORS), weights).expect("file written");
            if let Some(template) = template {
                let path = folder.path().join("chat_template.jinja");
                std::fs::write(path, template).expect("file written");
            }
            Checkpoint::open(folder.path()).expect("checkpoint opened").fingerprint()
        };
        let weights = vec![7; 10_000_000];
        let fingerprint = checkpoint(&weights, None);
        assert_eq!(checkpoint(&weights, None), fingerprint);
        assert_ne!(checkpoint(&weights, Some("{{ x }}")), fingerprint);
        assert_ne!(checkpoint(&weights[1..], None), fingerprint);
        // Training changes all parts of the weights; here a change covers 1 % of the file.
        for part in 0..4 {
            let mut trained = weights.clone();
            trained[part * 2_500_000..][..100_000].fill(8);
            assert_ne!(checkpoint(&trained, None), fingerprint, "quarter {part}");
        }
    }

    #[test]
    fn fingerprint_depends_on_the_map_of_the_index() {
        let fingerprint = |file: &str| {
            let folder = tempfile::tempdir().expect("temporary folder");
            let index =
                json!({"weight_map": {"a": file, "b": "1.safetensors", "c": "2.safetensors"}});
            for (name, content) in [
                (CONFIG, "{}".to_owned()),
                (SAFETENSORS_INDEX, index.to_string()),
                ("1.safetensors", "1".to_owned()),
                ("2.safetensors", "2".to_owned()),
            ] {
                fs::write(folder.path().join(name), content).expect("file written");
            }
            Checkpoint::open(folder.path()).expect("checkpoint opened").fingerprint()
        };
        assert_eq!(fingerprint("1.safetensors"), fingerprint("1.safetensors"));
        assert_ne!(fingerprint("1.safetensors"), fingerprint("2.safetensors"));
    }

    #[test]
    fn open_reports_name_of_missing_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let error = Checkpoint::open(folder.path()).expect_err("empty folder").to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}

//! The files of a checkpoint: opened from a folder, downloaded from the hub, or bundled.

pub(crate) mod config;
#[cfg(feature = "hub")]
mod hub;
pub(crate) mod safetensors;
mod shard;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
pub(crate) use shard::Shard;

use crate::error::LoadError;

const SAFETENSORS: &str = "model.safetensors";
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";

/// The files of a model in the layout of the Hugging Face hub, not yet interpreted.
///
/// The weights are mapped into memory; the other files are read.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) name: String,
    pub(crate) config: Vec<u8>,
    pub(crate) generation_config: Option<Vec<u8>>,
    pub(crate) tokenizer: Option<Vec<u8>>,
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    pub(crate) chat_template: Option<Vec<u8>>,
    pub(crate) shards: Vec<Shard>,
}

impl Checkpoint {
    /// Opens a checkpoint folder.
    ///
    /// The folder holds:
    /// - `config.json`,
    /// - `tokenizer.json`,
    /// - `tokenizer_config.json`, `chat_template.jinja`, or both,
    /// - `generation_config.json` (optional),
    /// - `model.safetensors`, or `model.safetensors.index.json` and the shards that it lists.
    ///
    /// The weight files are mapped into memory. They must not be changed or truncated until the
    /// model is loaded.
    ///
    /// # Errors
    /// Returns [`LoadError::Read`] or [`LoadError::Invalid`], which name the file.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        Self::from_source(&name.to_string_lossy(), &mut |file| Ok(folder.join(file)))
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
            config: bundled!("config.json").into(),
            generation_config: Some(bundled!("generation_config.json").into()),
            tokenizer: Some(bundled!("tokenizer.json").into()),
            tokenizer_config: Some(bundled!("tokenizer_config.json").into()),
            chat_template: None,
            shards: vec![Shard::bundled(SAFETENSORS.into(), bundled!("model.safetensors"))],
        }
    }

    /// Reads all files of a checkpoint. `locate` returns the path of a file, given its name; the
    /// path of an optional file need not exist.
    pub(crate) fn from_source(
        name: &str,
        locate: &mut dyn FnMut(&str) -> Result<PathBuf, LoadError>,
    ) -> Result<Self, LoadError> {
        let config = read(&locate("config.json")?)?;
        let mut optional = |file| read_optional(&locate(file)?);
        let generation_config = optional("generation_config.json")?;
        let tokenizer = optional("tokenizer.json")?;
        let tokenizer_config = optional("tokenizer_config.json")?;
        let chat_template = optional("chat_template.jinja")?;

        let files = match read_optional(&locate(SAFETENSORS_INDEX)?)? {
            Some(index) => shard_files(&index)?,
            None => vec![SAFETENSORS.to_owned()],
        };
        let mut shards = Vec::with_capacity(files.len());
        for file in files {
            let path = locate(&file)?;
            shards.push(Shard::map(file, &path)?);
        }
        let name = name.to_owned();
        Ok(Self {
            name,
            config,
            generation_config,
            tokenizer,
            tokenizer_config,
            chat_template,
            shards,
        })
    }

    /// Returns the model's name: the folder's name, or the repository's name on the hub.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Computes a checksum that distinguishes checkpoints of the same name.
    ///
    /// The checksum is a CRC-32 of the configuration, the tokenizer, the chat template, and 256
    /// samples of each weight file, so it takes little time even for large models. Use it, for
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
        for shard in &self.shards {
            let bytes = shard.bytes();
            add(&(bytes.len() as u64).to_le_bytes());
            let step = (bytes.len() / SAMPLES).max(SAMPLE_BYTES);
            bytes.chunks(step).for_each(|chunk| add(&chunk[..chunk.len().min(SAMPLE_BYTES)]));
        }
        hasher.finalize()
    }
}

/// Parses a safetensors index and returns the names of its shards, sorted, without duplicates.
fn shard_files(index: &[u8]) -> Result<Vec<String>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| LoadError::unparsable(SAFETENSORS_INDEX, "cannot be parsed", error))?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() {
        return Err(LoadError::invalid(SAFETENSORS_INDEX, "weight_map is empty"));
    }
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

/// Reads a file of at most 256 MiB; the largest known `tokenizer.json` has about 30 MB.
fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    const MAX_BYTES: u64 = 256 << 20;
    let error = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(error)?.take(MAX_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 256 MiB")));
    }
    Ok(bytes)
}

/// Reads a file, or returns `None` if it does not exist.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match read(path) {
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_files_returns_each_plain_file_name_once() {
        let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}"#;
        assert_eq!(shard_files(index).expect("valid index"), ["m-1.safetensors"]);
        for bad in [
            r#"{"weight_map": {"a": "../m.safetensors"}}"#,
            r#"{"weight_map": {"a": "/m.safetensors"}}"#,
            r#"{"weight_map": {"a": ".."}}"#,
            r#"{"weight_map": {"a": ""}}"#,
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": 3}"#,
            "{",
        ] {
            assert!(shard_files(bad.as_bytes()).is_err(), "{bad}");
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
    fn open_reports_name_of_missing_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let error = Checkpoint::open(folder.path()).expect_err("empty folder").to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}

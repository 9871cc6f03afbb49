//! A checkpoint's files: from a folder, from the model hub, or bundled.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use serde::Deserialize;

use crate::error::LoadError;

const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The files of a model in the layout of Hugging Face's hub, read but not yet interpreted.
///
/// Weights are mapped into memory, not read.
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

/// One file of weights in safetensors' format.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) file: String,
    bytes: ShardBytes,
}

#[derive(Debug)]
enum ShardBytes {
    Mapped(Mmap),
    #[cfg(feature = "tiny-model")]
    Bundled(&'static [u8]),
}

impl Shard {
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            ShardBytes::Mapped(map) => map,
            #[cfg(feature = "tiny-model")]
            ShardBytes::Bundled(bytes) => bytes,
        }
    }

    #[cfg(unix)]
    fn mapped(&self) -> Option<&Mmap> {
        match &self.bytes {
            ShardBytes::Mapped(map) => Some(map),
            #[cfg(feature = "tiny-model")]
            ShardBytes::Bundled(_) => None,
        }
    }

    /// Gives the memory of `part`, which is read for now, back to the system. Reading it again would
    /// read the file again.
    #[expect(unsafe_code, reason = "advice that could change what is mapped")]
    pub(crate) fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(map) = self.mapped() {
            let range = map.as_ptr_range();
            let start = part.as_ptr() as usize;
            if range.contains(&part.as_ptr()) && start + part.len() <= range.end as usize {
                let offset = start - range.start as usize;
                // SAFETY: what is mapped must not change by it. The pages of a file that is mapped
                // for reading come back as the file has them. No advice can fail in a way that
                // matters: then the memory stays.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len())
                };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json`, `tokenizer.json`, `tokenizer_config.json` and/or
    /// `chat_template.jinja`, optionally `generation_config.json`, and `model.safetensors` or
    /// `model.safetensors.index.json` with its shards.
    ///
    /// The files must not be changed or cut while the model is loading: its weights are mapped.
    ///
    /// # Errors
    /// [`LoadError`] names the file that is missing or unreadable.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        Self::from_source(&name.to_string_lossy(), &mut |file| Ok(folder.join(file)))
    }

    /// The bundled demonstration model.
    #[cfg(feature = "tiny-model")]
    pub fn tiny() -> Self {
        macro_rules! bundled {
            ($file:literal) => {
                include_bytes!(concat!("../tiny-model/", $file)).as_slice()
            };
        }
        Self {
            name: "erank-tiny".into(),
            config: bundled!("config.json").into(),
            generation_config: Some(bundled!("generation_config.json").into()),
            tokenizer: Some(bundled!("tokenizer.json").into()),
            tokenizer_config: Some(bundled!("tokenizer_config.json").into()),
            chat_template: None,
            shards: vec![Shard {
                file: WEIGHTS.into(),
                bytes: ShardBytes::Bundled(bundled!("model.safetensors")),
            }],
        }
    }

    /// Reads every file that `locate` finds. `locate` gives a file's path, which need not exist
    /// unless the file is required.
    pub(crate) fn from_source(
        name: &str,
        locate: &mut dyn FnMut(&str) -> Result<std::path::PathBuf, LoadError>,
    ) -> Result<Self, LoadError> {
        let config = read(&locate("config.json")?)?;
        let mut optional = |file| read_optional(&locate(file)?);
        let generation_config = optional("generation_config.json")?;
        let tokenizer = optional("tokenizer.json")?;
        let tokenizer_config = optional("tokenizer_config.json")?;
        let chat_template = optional("chat_template.jinja")?;

        let files = match read_optional(&locate(WEIGHTS_INDEX)?)? {
            Some(index) => shard_files(&index)?,
            None => vec![WEIGHTS.to_owned()],
        };
        let shards = files
            .into_iter()
            .map(|file| Ok(Shard { bytes: ShardBytes::Mapped(map(&locate(&file)?)?), file }))
            .collect::<Result<_, LoadError>>()?;
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

    /// The model's name: its folder's, or its name on the hub.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number by which to tell this checkpoint from another of the same name, for instance before
    /// its scores are used again: a CRC-32 of the configuration, the tokenizer, the templates, and of
    /// 256 places in each file of weights, so that it takes no time.
    ///
    /// It protects against mistakes, not against somebody who means to deceive.
    pub fn fingerprint(&self) -> u32 {
        const PLACES: usize = 256;
        const PLACE_BYTES: usize = 4096;
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
            let step = (bytes.len() / PLACES).max(PLACE_BYTES);
            bytes.chunks(step).for_each(|chunk| add(&chunk[..chunk.len().min(PLACE_BYTES)]));
        }
        hasher.finalize()
    }
}

/// The files that an index of sharded weights names, each once.
fn shard_files(index: &[u8]) -> Result<Vec<String>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|source| LoadError::unparsable(WEIGHTS_INDEX, "not the expected JSON", source))?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() {
        return Err(LoadError::invalid(WEIGHTS_INDEX, "it names no file"));
    }
    // A shard lies beside the index: a name that leads elsewhere is not followed.
    let plain =
        |file: &String| Path::new(file).file_name().is_some_and(|name| name == file.as_str());
    match files.iter().find(|file| !plain(file)) {
        Some(file) => Err(LoadError::invalid(WEIGHTS_INDEX, format!("{file:?} is no file name"))),
        None => Ok(files),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    // The largest real tokenizers have some 30 MB.
    const LARGEST: u64 = 256 << 20;
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(fail)?.take(LARGEST + 1);
    file.read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > LARGEST {
        return Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, "over 256 MiB")));
    }
    Ok(bytes)
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match read(path) {
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[expect(unsafe_code, reason = "mapping a file")]
fn map(path: &Path) -> Result<Mmap, LoadError> {
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    // SAFETY: the mapped bytes must not change while they are borrowed. Nothing in a program can
    // make sure of that for a file; `open` states it as its caller's obligation, as every loader of
    // mapped weights does. The bytes are only ever read as plain numbers, and copied while loading.
    unsafe { Mmap::map(&file) }.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_plain_files_once() {
        let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}"#;
        assert_eq!(shard_files(index).expect("valid"), ["m-1.safetensors"]);
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
    fn a_fingerprint_sees_every_file_and_all_over_the_weights() {
        let checkpoint = |weights: &[u8], template: Option<&str>| {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("config.json"), "{}").expect("written");
            std::fs::write(folder.path().join(WEIGHTS), weights).expect("written");
            if let Some(template) = template {
                let path = folder.path().join("chat_template.jinja");
                std::fs::write(path, template).expect("written");
            }
            Checkpoint::open(folder.path()).expect("readable").fingerprint()
        };
        let weights = vec![7; 10_000_000];
        let fingerprint = checkpoint(&weights, None);
        assert_eq!(checkpoint(&weights, None), fingerprint);
        assert_ne!(checkpoint(&weights, Some("{{ x }}")), fingerprint);
        assert_ne!(checkpoint(&weights[1..], None), fingerprint);
        // What changes by training changes everywhere, and so at one of the places.
        for part in 0..4 {
            let mut trained = weights.clone();
            trained[part * 2_500_000..][..100_000].fill(8);
            assert_ne!(checkpoint(&trained, None), fingerprint, "{part}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Checkpoint::open(folder.path()).expect_err("nothing is there").to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}

//! Broken model folders. Model folders are untrusted. Each defect must give an error that names the file or
//! the tensor, and never a panic.

use std::fs;
use std::path::Path;

use erank_candle::{CandleBackend, CandleSettings, Checkpoint, LoadError};
use erank_core::{Request, Reranker};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

/// Copies the bundled model's folder to a temporary folder.
fn folder() -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in fs::read_dir(source).expect("the bundled model") {
        let file = file.expect("the bundled model");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    folder
}

/// Loads a model with a small KV cache, because the tests load many models.
fn load(folder: &Path) -> Result<CandleBackend, LoadError> {
    let mut settings = CandleSettings::default();
    settings.kv_cache_memory_bytes = Some(4 << 20);
    CandleBackend::load(&Checkpoint::open(folder)?, &settings)
}

/// Returns the message of the error with all its causes, as a program would print it. The error is that of loading the
/// model, or else that of the first job: a checkpoint without a chat template can serve some prompts.
fn error(folder: &Path, what: &str) -> String {
    let backend = match load(folder) {
        Ok(backend) => backend,
        Err(error) => return erank_core::error::chain(&error),
    };
    let reranker = Reranker::builder(backend).build().expect("valid");
    let error = reranker.rerank(&Request::new("jet noise", ["bread"])).expect_err(what);
    let message = erank_core::error::chain(&error);
    assert!(message.contains("no chat template"), "{what}: {message}");
    message
}

#[test]
fn load_copied_folder_ranks_like_the_bundled_model() {
    let folder = folder();
    let request = Request::new("jet noise", ["bread", "The noise of jets.", "noise"]);
    let rank = |backend: CandleBackend| {
        let reranker = Reranker::builder(backend).build().expect("valid");
        reranker.rerank(&request).expect("a ranking").documents
    };
    let bundled = rank(CandleBackend::tiny().expect("the bundled model"));
    assert_eq!(rank(load(folder.path()).expect("a whole folder")), bundled);
}

#[test]
fn load_names_missing_empty_truncated_and_garbled_files() {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let folder = folder();
        let path = folder.path().join(file);
        let whole = fs::read(&path).expect("the file");

        fs::remove_file(&path).expect("removed");
        // Only the chat template is needed, and the error asks for its own file.
        let named = match file {
            "tokenizer_config.json" => "chat_template.jinja",
            file => file,
        };
        let message = error(folder.path(), file);
        assert!(message.contains(named), "missing {file}: {message}");

        let half = &whole[..whole.len() / 2];
        let beginning = &whole[..whole.len().min(3)];
        let garbled: Vec<u8> = whole.iter().map(|byte| byte ^ 0x5a).collect();
        for bytes in [&[], beginning, half, &garbled, b"null", b"[]", b"{}"] {
            fs::write(&path, bytes).expect("written");
            let named = if bytes == b"{}" { named } else { file };
            let message = error(folder.path(), file);
            assert!(message.contains(named), "{file}: {message}");
        }
    }
    let folder = folder();
    let path = folder.path().join("generation_config.json");
    fs::write(&path, "{\"eos_token_id\": \"x\"}").expect("written");
    assert!(error(folder.path(), "eos").contains("generation_config.json"));
}

#[test]
fn load_rejects_header_that_contradicts_the_file_size() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).expect("the weights");
    for (what, bytes) in [
        ("a header longer than the file", [&u64::MAX.to_le_bytes(), &whole[8..]].concat()),
        ("data cut by one byte", whole[..whole.len() - 1].to_vec()),
        ("data too long by one byte", [&whole[..], b"x"].concat()),
    ] {
        fs::write(&path, bytes).expect("written");
        let message = error(folder.path(), what);
        assert!(message.contains("model.safetensors"), "{what}: {message}");
    }
}

/// A mapped file that another program truncates is an error, not the end of the process. A file that was read into memory
/// may change.
#[test]
fn load_survives_a_file_that_is_truncated_meanwhile() {
    for with_mapping in [true, false] {
        let folder = folder();
        let mut checkpoint = Checkpoint::open(folder.path()).expect("opened");
        if !with_mapping {
            checkpoint = checkpoint.without_mapping().expect("read");
        }
        let path = folder.path().join("model.safetensors");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("the weights");
        file.set_len(1000).expect("truncated");
        let loaded = CandleBackend::load(&checkpoint, &CandleSettings::default());
        match loaded {
            Ok(_) => assert!(!with_mapping),
            Err(error) => {
                let message = erank_core::error::chain(&error);
                assert!(with_mapping && message.contains("changed its length"), "{message}");
            }
        }
    }
    // Replacing a file by renaming a new one over it leaves the mapped one intact.
    let folder = folder();
    let checkpoint = Checkpoint::open(folder.path()).expect("opened");
    let other = folder.path().join("other");
    fs::write(&other, "x").expect("written");
    fs::rename(other, folder.path().join("model.safetensors")).expect("renamed");
    CandleBackend::load(&checkpoint, &CandleSettings::default()).expect("the old file");
}

/// A tensor's dtype, shape and bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Rewrites the folder's weights. `change` maps each tensor to its new contents, or to `None` to
/// remove it.
fn rewrite(
    folder: &Path,
    mut change: impl FnMut(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<Tensor>,
) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).expect("the weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let changed: Vec<(String, Tensor)> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| {
            let tensor = change(&name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
            tensor.map(|tensor| (name, tensor))
        })
        .collect();
    let views = changed.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("a file");
    fs::write(path, bytes).expect("written");
}

#[test]
fn load_names_missing_and_mismatched_tensors() {
    const NAME: &str = "model.layers.2.mlp.down_proj.weight";

    let missing = folder();
    rewrite(missing.path(), |name, dtype, shape, data| {
        (name != NAME).then_some((dtype, shape, data))
    });
    let message = error(missing.path(), "a missing tensor");
    assert!(message.contains(NAME) && message.contains("missing"), "{message}");

    let reshaped = folder();
    rewrite(reshaped.path(), |name, dtype, mut shape, data| {
        if name == NAME {
            shape.reverse();
        }
        Some((dtype, shape, data))
    });
    let message = error(reshaped.path(), "another shape");
    assert!(message.contains(NAME) && message.contains("shape"), "{message}");

    let retyped = folder();
    rewrite(retyped.path(), |name, dtype, shape, data| {
        Some((if name == NAME { Dtype::I16 } else { dtype }, shape, data))
    });
    let message = error(retyped.path(), "another dtype");
    assert!(message.contains(NAME) && message.contains("I16"), "{message}");
}

#[test]
fn rerank_says_that_weights_are_no_numbers() {
    // 0x7F80 is infinity in BF16, and 0xFFFF is NaN.
    for (number, tensor) in [
        ([0xff, 0xff], "model.norm.weight"),
        ([0x80, 0x7f], "model.norm.weight"),
        ([0xff, 0xff], "model.embed_tokens.weight"),
        ([0x80, 0x7f], "model.layers.1.mlp.down_proj.weight"),
    ] {
        let folder = folder();
        rewrite(folder.path(), |name, dtype, shape, mut data| {
            if name == tensor {
                data.as_chunks_mut().0.iter_mut().for_each(|value| *value = number);
            }
            Some((dtype, shape, data))
        });
        let backend = load(folder.path()).expect("the shapes are right");
        let error = backend.most_probable(&[1, 2, 3], 2).expect_err("no numbers");
        let message = erank_core::error::chain(&error);
        assert!(message.contains("NaN or infinite"), "{message}");
        for answer_only in [true, false] {
            let builder = Reranker::builder(&backend).max_tokens(20);
            let builder = if answer_only { builder.answer_only() } else { builder };
            let reranker = builder.build().expect("valid");
            let ranking = reranker.rerank(&Request::new("jet", ["a jet"])).expect("a ranking");
            assert!(ranking.documents.is_empty());
            let reason = erank_core::error::chain(&ranking.unscored[0].error);
            assert!(reason.contains("weights are damaged"), "{reason}");
            assert!(!reason.contains("correct the backend"), "{reason}");
        }
    }
}

/// A file with random changes either loads or gives an error. It never causes a panic.
#[test]
fn load_never_panics_on_random_byte_changes() {
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let folder = folder();
        let path = folder.path().join(file);
        let whole = fs::read(&path).expect("the file");
        for _ in 0..25 {
            let mut bytes = whole.clone();
            // For the weights, only the header is changed.
            let reach = if file == "model.safetensors" { 4000 } else { bytes.len() };
            for _ in 0..=random(3) {
                bytes[random(reach)] = random(256) as u8;
            }
            fs::write(&path, bytes).expect("written");
            let _ = load(folder.path());
        }
    }
}

//! GGUF files give the results of the folders that they were made from, bit for bit.

use std::fs;
use std::path::{Path, PathBuf};

use erank_candle::internals::{BlockAllocator, Row, load};
use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Device, WeightFormat};
use erank_core::{Request, Reranker};
use erank_tests::gguf::{Matrices, write};
use erank_tests::random_model::{Layout, RandomModel};
use serde_json::json;
use tempfile::{TempDir, tempdir};

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model")
}

/// Writes the bundled model as a GGUF file, with its tokenizer beside the file: a GGUF file cannot hold it.
fn tiny(matrices: Matrices) -> TempDir {
    let folder = tempdir().expect("a temporary folder");
    write(&bundled(), &folder.path().join("tiny.gguf"), matrices);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(bundled().join(file), folder.path().join(file)).expect("a copy");
    }
    folder
}

fn settings(device: Device, weights: Option<WeightFormat>) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.kv_cache_memory_bytes = Some(4 << 20);
    settings.device = device;
    settings.weights = weights;
    settings
}

/// Returns the logits of all tokens of a prompt.
fn logits(path: &Path, settings: &CandleSettings, vocab_size: u32) -> Vec<u32> {
    let model =
        load(&Checkpoint::open(path).expect("a checkpoint"), settings).expect("whole").model;
    let tokens: Vec<u32> = (0..75).map(|i| (40 + i * 11 % 200) % vocab_size).collect();
    let mut allocator = BlockAllocator::new(tokens.len().div_ceil(16));
    let cache = model.new_cache(allocator.blocks()).expect("a cache");
    let blocks: Vec<_> = std::iter::from_fn(|| allocator.allocate()).collect();
    let row = Row { tokens: &tokens, position: 0, blocks: &blocks, logits: tokens.len() };
    let logits = model.forward(&[row], &cache).expect("a forward pass");
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn logits_equal_those_of_the_folder() {
    use WeightFormat::{Bf16, F32, Q8_0};
    for (matrices, device, weights) in [
        (Matrices::F32, Device::Cpu, Some(F32)),
        (Matrices::F32, Device::Cpu, Some(Bf16)),
        (Matrices::F32, Device::Cpu, Some(Q8_0)),
        (Matrices::F32, Device::CpuCandle, Some(Bf16)),
        (Matrices::Bf16, Device::Cpu, None),
        (Matrices::Bf16, Device::CpuCandle, None),
    ] {
        let settings = settings(device, weights);
        let expected = logits(&bundled(), &settings, 10_000);
        let folder = tiny(matrices);
        assert!(
            logits(&folder.path().join("tiny.gguf"), &settings, 10_000) == expected,
            "{matrices:?} in the file, {weights:?} in memory, {device:?}"
        );
    }
}

#[test]
fn logits_of_a_model_that_is_not_tied_equal_those_of_the_folder() {
    let config = json!({
        "model_type": "qwen3", "vocab_size": 300, "hidden_size": 96, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": false
    });
    let folder = tempdir().expect("a temporary folder");
    let model = RandomModel::new(config).expect("all sizes");
    model.write(folder.path(), Layout::OneFile).expect("written");
    let file = folder.path().join("m.gguf");
    write(folder.path(), &file, Matrices::Bf16);
    let settings = settings(Device::Cpu, None);
    assert!(logits(&file, &settings, 300) == logits(folder.path(), &settings, 300));
}

#[test]
fn ranking_equals_that_of_the_folder() {
    let request = Request::new("jet noise", ["bread", "The noise of jets.", "noise", ""]);
    let rank = |path: &Path| {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        let settings = settings(Device::Cpu, None);
        let backend = CandleBackend::load(&checkpoint, &settings).expect("a whole checkpoint");
        let description = backend.description();
        let reranker = Reranker::builder(backend).build().expect("valid");
        (reranker.rerank(&request).expect("a ranking").documents, description)
    };
    let folder = tiny(Matrices::Bf16);
    assert_eq!(rank(folder.path()), rank(&bundled()));
}

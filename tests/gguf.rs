//! GGUF files give the results of the folders that they were made from, bit for bit, and quantised files give
//! nearly the results of their dequantised weights.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use candle_core::quantized::gguf_file;
use candle_transformers::models::quantized_qwen3::ModelWeights;
use erank_candle::internals::{BlockAllocator, Row, load};
use erank_candle::{
    CandleBackend, CandleSettings, Checkpoint, Device, KvCacheFormat, WeightFormat,
};
use erank_core::{Request, Reranker};
use erank_tests::random_model::{Layout, RandomModel};
use half::bf16;
use serde_json::json;
use tempfile::{TempDir, tempdir};

/// Largest root mean square of errors from rounding activations, relative to the largest logit.
const QUANTISED_RMS_BOUND: f64 = 5e-2;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model")
}

/// Writes a folder's model as a GGUF file.
fn write(folder: &Path, file: &Path, matrices: WeightFormat) {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    checkpoint.write_gguf(file, matrices, &mut |_, _| ()).expect("written");
}

/// Writes the bundled model as a GGUF file, with its tokenizer beside the file: a GGUF file cannot hold it.
fn tiny(matrices: WeightFormat) -> TempDir {
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

fn prompt(vocab_size: u32) -> Vec<u32> {
    (0..75).map(|i| (40 + i * 11 % 200) % vocab_size).collect()
}

/// Returns the logits of all tokens of a prompt.
fn logits(path: &Path, settings: &CandleSettings, vocab_size: u32) -> Vec<f32> {
    let model =
        load(&Checkpoint::open(path).expect("a checkpoint"), settings).expect("whole").model;
    let tokens = prompt(vocab_size);
    let mut allocator = BlockAllocator::new(tokens.len().div_ceil(16));
    let cache = model.new_cache(allocator.blocks()).expect("a cache");
    let blocks: Vec<_> = std::iter::from_fn(|| allocator.allocate()).collect();
    let row = Row { tokens: &tokens, position: 0, blocks: &blocks, logits: tokens.len() };
    let logits = model.forward(&[row], &cache).expect("a forward pass");
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits
}

#[test]
fn logits_equal_those_of_the_folder() {
    use WeightFormat::{Bf16, F32, Q8_0};
    for (matrices, device, weights) in [
        (F32, Device::Cpu, Some(F32)),
        (F32, Device::Cpu, Some(Bf16)),
        (F32, Device::Cpu, Some(Q8_0)),
        (F32, Device::CpuCandle, Some(Bf16)),
        (Bf16, Device::Cpu, None),
        (Bf16, Device::CpuCandle, None),
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
    write(folder.path(), &file, WeightFormat::Bf16);
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
    let folder = tiny(WeightFormat::Bf16);
    assert_eq!(rank(folder.path()), rank(&bundled()));
}

/// The root mean square of differences, relative to the largest expected number.
fn relative_error(actual: &[f32], expected: &[f32]) -> f64 {
    let squares = actual.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2));
    let mean = squares.sum::<f64>() / expected.len() as f64;
    mean.sqrt() / f64::from(expected.iter().fold(0f32, |largest, x| largest.max(x.abs())))
}

/// Returns the logits after the last token of the prompt, from candle's own quantised Qwen3.
fn logits_of_candle(file: &Path, vocab_size: u32) -> Vec<f32> {
    let mut reader = fs::File::open(file).expect("a file");
    let content = gguf_file::Content::read(&mut reader).expect("a GGUF file");
    let cpu = candle_core::Device::Cpu;
    let mut model = ModelWeights::from_gguf(content, &mut reader, &cpu).expect("a whole model");
    let tokens = Tensor::new(&prompt(vocab_size)[..], &cpu).and_then(|ids| ids.unsqueeze(0));
    let logits = model.forward(&tokens.expect("a tensor"), 0).expect("a forward pass");
    logits.flatten_all().and_then(|logits| logits.to_vec1()).expect("numbers")
}

/// Every format, on random models with and without outlier channels: three channels of keys that are 20 times
/// larger than others, and two inputs of `down_proj` that are 50 times larger. The weights of both sides are the
/// same, so the difference comes from rounding activations.
#[test]
fn logits_of_quantised_files_are_close_to_those_of_their_dequantised_weights() {
    let vocab_size = 512;
    let config = json!({
        "model_type": "qwen3", "vocab_size": vocab_size, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": false
    });
    let model = RandomModel::new(config).expect("all sizes");
    println!("format, outliers: this crate's error, candle's error");
    for outliers in [false, true] {
        let folder = tempdir().expect("a temporary folder");
        let enlarge = |weights: &mut [bf16], factor: f32| {
            weights.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * factor));
        };
        model
            .write_changed(folder.path(), |name, weight| {
                if outliers && name.contains("k_norm") {
                    enlarge(&mut weight.values[5..8], 20.0);
                } else if outliers && name.contains("up_proj") {
                    enlarge(&mut weight.values[9 * 256..11 * 256], 50.0);
                }
            })
            .expect("written");
        for format in [
            WeightFormat::Q8_0,
            WeightFormat::Q4_0,
            WeightFormat::Q4K,
            WeightFormat::Q5K,
            WeightFormat::Q6K,
        ] {
            let file = folder.path().join(format!("{format}.gguf"));
            write(folder.path(), &file, format);
            // A cache in F32, as candle's own model has.
            let mut own = settings(Device::Cpu, None);
            own.kv_cache = Some(KvCacheFormat::F32);
            let actual = logits(&file, &own, vocab_size);
            let exact = logits(&file, &settings(Device::Cpu, Some(WeightFormat::F32)), vocab_size);
            let error = relative_error(&actual, &exact);
            let last = &exact[exact.len() - vocab_size as usize..];
            let of_last = relative_error(&actual[actual.len() - last.len()..], last);
            let of_candle = relative_error(&logits_of_candle(&file, vocab_size), last);
            println!("{format:5} {outliers:5}: {error:.1e} (last {of_last:.1e}), {of_candle:.1e}");
            if format == WeightFormat::Q8_0 {
                // A cache in 8 bits loses less than these weights do.
                let mut cached = settings(Device::Cpu, Some(WeightFormat::F32));
                cached.kv_cache = Some(KvCacheFormat::Int8);
                let of_cache = relative_error(&logits(&file, &cached, vocab_size), &exact);
                println!("8-bit cache {outliers:5}: {of_cache:.1e}");
                assert!(of_cache < error, "{outliers}: {of_cache:e}, Q8_0 weights {error:e}");
            }
            assert!(error < QUANTISED_RMS_BOUND, "{format} {outliers}: {error:e}");
            assert!(of_last < 2.0 * of_candle, "{format} {outliers}: {of_last:e} {of_candle:e}");
        }
    }
}

//! Compares YaRN with Python's transformers. `golden/yarn.py` made the golden file.

use std::fs;
use std::path::Path;

use erank_candle::internals::{RotaryEmbedding, load};
use erank_candle::{CandleSettings, Checkpoint, Config, Device, WeightFormat};
use erank_tests::local::last_logits;
use erank_tests::random_model::{Layout, RandomModel, checksum};
use serde::Deserialize;
use serde_json::Value;

/// Largest error of an F32 logit, relative to the largest logit.
const F32_BOUND: f64 = 1e-5;

#[derive(Deserialize)]
struct GoldenFile {
    models: Vec<GoldenModel>,
    rotations: Vec<Rotation>,
}

#[derive(Deserialize)]
struct GoldenModel {
    weights_checksum: String,
    config: Value,
    cases: Vec<Case>,
}

/// The logits after a prompt of `length` tokens, by transformers' F32 and BF16 runs.
#[derive(Deserialize)]
struct Case {
    length: usize,
    f32: Vec<f32>,
    bf16: Vec<f32>,
}

/// The cosines and sines at some positions, `[positions, head_dim / 2]` each.
#[derive(Deserialize)]
struct Rotation {
    config: Value,
    positions: Vec<usize>,
    cos: Vec<Vec<f32>>,
    sin: Vec<Vec<f32>>,
}

fn golden() -> GoldenFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/yarn.json");
    let file = fs::read(path).expect("the golden file is in the repository");
    serde_json::from_slice(&file).expect("valid JSON")
}

fn read(config: &Value) -> Config {
    Config::from_json(config.to_string().as_bytes(), None).expect("valid")
}

/// Returns the same configuration as version 4 of transformers writes it.
fn as_version_4(config: &Value) -> Value {
    let mut config = config.clone();
    let mut rope = config["rope_parameters"].take();
    config["rope_theta"] = rope["rope_theta"].take();
    rope["type"] = rope["rope_type"].clone();
    let rope = rope.as_object_mut().expect("an object");
    rope.remove("rope_theta");
    config["rope_scaling"] = Value::Object(rope.clone());
    config
}

/// Returns the largest error and the sum of the squares of errors, relative to the largest expected number.
fn errors(actual: &[f32], expected: &[f32]) -> (f64, f64) {
    assert_eq!(actual.len(), expected.len());
    let scale = f64::from(expected.iter().fold(0_f32, |largest, x| largest.max(x.abs())));
    let errors = actual.iter().zip(expected);
    let errors = errors.map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs() / scale);
    errors.fold((0.0, 0.0), |(largest, sum), error| (largest.max(error), sum + error * error))
}

/// The errors of BF16 weights are at most those of transformers' own BF16 run, both against its F32 run.
#[test]
fn logits_equal_transformers_at_short_and_long_positions() {
    let golden = golden();
    assert_eq!(golden.models.len(), 3);
    for GoldenModel { weights_checksum, config, cases } in golden.models {
        let of_version_4 = as_version_4(&config);
        assert_eq!(read(&of_version_4), read(&config));
        let yarn = read(&config).yarn.expect("scaled");
        for config in [config, of_version_4] {
            let model = RandomModel::new(config).expect("all sizes");
            assert_eq!(checksum(&model.weights()), weights_checksum);
            let folder = tempfile::tempdir().expect("a temporary folder");
            model.write(folder.path(), Layout::OneFile).expect("written");
            let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
            for device in [Device::Cpu, Device::CpuCandle] {
                let load = |weights| {
                    let mut settings = CandleSettings::default();
                    settings.weights = Some(weights);
                    settings.device = device;
                    load(&checkpoint, &settings).expect("a whole checkpoint").model
                };
                let (f32, bf16) = (load(WeightFormat::F32), load(WeightFormat::Bf16));
                let (mut squares, mut their_squares) = (0.0, 0.0);
                for case in &cases {
                    let tokens = model.tokens(case.length);
                    let (largest, _) = errors(&last_logits(&*f32, &tokens), &case.f32);
                    println!(
                        "{:?}, factor {}, {}: {largest:.1e}",
                        device, yarn.factor, case.length
                    );
                    assert!(largest <= F32_BOUND, "{} tokens: {largest:e}", case.length);
                    squares += errors(&last_logits(&*bf16, &tokens), &case.f32).1;
                    their_squares += errors(&case.bf16, &case.f32).1;
                }
                assert!(squares <= their_squares, "{device:?}: {squares:e}, {their_squares:e}");
            }
        }
    }
}

/// A frequency below 1 may differ in its last bit, by 2⁻²⁴ at most, because the powers of F32 numbers do. At a position
/// of 131,071, an angle then differs by 0.008, a unit in the last place of the largest angles.
#[test]
fn rotations_equal_transformers_up_to_the_last_position() {
    let golden = golden();
    assert_eq!(golden.rotations.len(), 5);
    for Rotation { config, positions, cos, sin } in golden.rotations {
        let embedding = RotaryEmbedding::new(&read(&config));
        let mut differing = 0;
        for (position, (their_cos, their_sin)) in positions.iter().zip(cos.iter().zip(&sin)) {
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            embedding.rotate(*position, &mut cos, &mut sin);
            assert_eq!((cos.len(), sin.len()), (their_cos.len(), their_sin.len()));
            let pairs = cos.iter().zip(their_cos).chain(sin.iter().zip(their_sin));
            for (ours, theirs) in pairs {
                let difference = (ours - theirs).abs();
                assert!(difference < 1e-2, "position {position}: {ours}, not {theirs}");
                differing += usize::from(difference > 1e-6);
            }
        }
        println!("{differing} numbers differ by more than 1e-6");
        assert!(differing <= 8, "{differing} numbers differ");
    }
}

/// A GGUF file that is written from a folder has the same scaling.
#[test]
fn gguf_files_keep_the_scaling() {
    for GoldenModel { config, .. } in golden().models {
        let config = read(&config).yarn.map(|yarn| (yarn, config)).expect("scaled");
        let (yarn, config) = config;
        let model = RandomModel::new(config).expect("all sizes");
        let folder = tempfile::tempdir().expect("a temporary folder");
        model.write(folder.path(), Layout::OneFile).expect("written");
        let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
        let file = folder.path().join("m.gguf");
        let written = checkpoint.write_gguf(&file, WeightFormat::Bf16, &mut |_, _| {});
        if !yarn.truncate {
            let error = written.expect_err("cannot be written").to_string();
            assert!(error.contains("truncate"), "{error}");
            continue;
        }
        written.expect("written");
        let read = Checkpoint::open(&file).and_then(|checkpoint| checkpoint.config());
        let read = read.expect("a GGUF file");
        let read_yarn = read.yarn.expect("scaled");
        assert!((read_yarn.attention_factor - yarn.attention_factor).abs() < 1e-6);
        assert_eq!(
            read.max_position_embeddings,
            checkpoint.config().expect("valid").max_position_embeddings
        );
        let rest = |yarn: &erank_candle::Yarn| {
            (yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.original_max_position_embeddings)
        };
        assert_eq!(rest(&read_yarn), rest(&yarn));
    }
}

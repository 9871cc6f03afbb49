//! Compares the forward pass with Python's transformers, on small random Qwen3 models.
//!
//! `golden/parity.py` made the golden files; `erank_tests::random_model` makes the same weights. This prints
//! the table of errors: `cargo test -p erank-tests --test parity -- --nocapture table`.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3 as theirs;
use erank_candle::internals::{Model, Row, instruction_sets};
use erank_candle::{CandleSettings, Device, KvCacheFormat, WeightFormat};
use erank_tests::parity::{
    Compared, Errors, F32_BOUND, Golden, Logits, Plan, cache_for, chunked, continuous, errors,
    forward, one_by_one, ragged, run, token_by_token, with_a_shared_prefix,
};
use erank_tests::random_model::{RandomModel, checksum};

/// Largest root mean square of the errors of logits with Q8_0 weights, relative to the largest logit.
const Q8_0_RMS_BOUND: f64 = 2.2e-2;

/// All golden files. All tests share the checkpoints, which are written once.
static GOLDENS: LazyLock<Vec<Golden>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/parity");
    Golden::read_all(&folder, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity"))
});

/// Loads a model with the kernels of an instruction set, or of the best one.
fn load(golden: &Golden, weights: WeightFormat, set: Option<&str>) -> Arc<dyn Model> {
    golden.load(&settings(weights, set))
}

/// Loads a model with a KV cache in 8 bits.
fn load_with_8_bit_cache(golden: &Golden, weights: WeightFormat, set: &str) -> Arc<dyn Model> {
    let mut settings = settings(weights, Some(set));
    settings.kv_cache = Some(KvCacheFormat::Int8);
    golden.load(&settings)
}

/// Loads a model for candle's own operations, which other devices run.
fn load_without_kernels(golden: &Golden, weights: WeightFormat) -> Arc<dyn Model> {
    golden.load_on(Device::CpuCandle, weights)
}

fn settings(weights: WeightFormat, set: Option<&str>) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.weights = Some(weights);
    settings.instruction_set = set.map(str::to_owned);
    settings
}

#[test]
fn random_model_equals_the_weights_and_tokens_of_python() {
    for golden in GOLDENS.iter() {
        assert_eq!(checksum(&golden.model.weights()), golden.weights_checksum, "{}", golden.name);
        for case in &golden.cases {
            let tokens = golden.model.tokens(case.length);
            assert_eq!(tokens.last(), Some(&case.last_token), "{}", golden.name);
        }
    }
}

#[test]
fn table_of_errors_stays_within_the_bounds_with_kernels() {
    println!("errors relative to the largest logit: the largest / the root mean square");
    println!("{:18} length  F32      BF16               transformers' BF16", "model");
    for set in instruction_sets() {
        println!("kernels: {set}");
        for golden in GOLDENS.iter() {
            check_errors(golden, set, one_by_one, |weights| load(golden, weights, Some(set)));
        }
    }
}

/// The bits of candle's own operations depend on the distribution of tokens over steps, so two plans are run.
#[test]
fn table_of_errors_stays_within_the_bounds_without_kernels() {
    let plans: [(&str, Plan); 2] =
        [("one by one", one_by_one), ("continuous batching", continuous)];
    for (name, plan) in plans {
        println!("candle's operations, {name}");
        for golden in GOLDENS.iter() {
            check_errors(golden, name, plan, |dtype| load_without_kernels(golden, dtype));
        }
    }
}

/// The weights of these models are integers of 8 bits times a power of two, so nearly all of the error comes from
/// rounding the activations. The bound is twice the largest error that was measured.
#[test]
fn table_of_errors_of_q8_0_stays_within_the_bound() {
    println!("{:18} Q8_0: largest / root mean square", "model");
    for set in instruction_sets() {
        println!("kernels: {set}");
        for golden in GOLDENS.iter() {
            let errors = errors(golden, &*load(golden, WeightFormat::Q8_0, Some(set)));
            println!("{:18} {:.1e} / {:.1e}", golden.name, errors.largest, errors.rms);
            assert!(errors.rms <= Q8_0_RMS_BOUND, "{set}, {}: {:e}", golden.name, errors.rms);
        }
    }
}

/// The cache in 8 bits loses less than Q8_0 weights do.
#[test]
fn table_of_errors_of_8_bit_cache_stays_within_those_of_q8_0() {
    println!("{:18} F32 and BF16 weights with an 8-bit cache; Q8_0 weights", "model");
    for set in instruction_sets() {
        println!("kernels: {set}");
        for golden in GOLDENS.iter() {
            let with_cache =
                |weights| errors(golden, &*load_with_8_bit_cache(golden, weights, set));
            let q8_0 = errors(golden, &*load(golden, WeightFormat::Q8_0, Some(set)));
            let [f32, bf16] = [WeightFormat::F32, WeightFormat::Bf16].map(with_cache);
            let pair = |errors: Errors| format!("{:.1e} / {:.1e}", errors.largest, errors.rms);
            println!("{:18} {}   {}   {}", golden.name, pair(f32), pair(bf16), pair(q8_0));
            assert!(f32.rms <= q8_0.rms && bf16.rms <= q8_0.rms, "{set}, {}", golden.name);
        }
    }
}

#[test]
fn logits_have_the_same_bits_with_any_plan() {
    let sets = instruction_sets();
    for golden in GOLDENS.iter() {
        let of_every_set = |format| sets.iter().map(move |set| (format, *set));
        let formats = of_every_set(WeightFormat::Bf16).chain(of_every_set(WeightFormat::Q8_0));
        let loaded = formats
            .chain([(WeightFormat::F32, sets[0])])
            .map(|(dtype, set)| (load(golden, dtype, Some(set)), format!("{dtype:?}, {set}")));
        let with_8_bit_cache = load_with_8_bit_cache(golden, WeightFormat::Bf16, sets[0]);
        let with_8_bit_cache = (with_8_bit_cache, "BF16 with an 8-bit cache".to_owned());
        for (model, what) in loaded.chain([with_8_bit_cache]) {
            let prompts = golden.prompts();
            let whole = run(&*model, &prompts, &one_by_one(&prompts));
            for (plan_name, plan) in [
                ("token by token", token_by_token(&prompts)),
                ("chunks, then decoding", chunked(&prompts)),
                ("all in one step", ragged(&prompts)),
                ("continuous batching", continuous(&prompts)),
            ] {
                let what = format!("{} in {what}, {plan_name}", golden.name);
                assert_same_bits(&run(&*model, &prompts, &plan), &whole, &what);
            }
        }
    }
}

#[test]
fn logits_have_the_same_bits_with_any_thread_count() {
    for golden in GOLDENS.iter() {
        let model = load(golden, WeightFormat::Bf16, None);
        let prompts = golden.prompts();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| run(&*model, &prompts, &ragged(&prompts)))
        };
        assert_same_bits(&with(3), &with(1), &golden.name);
    }
}

/// The prefix is computed once, as for the documents of one query.
#[test]
fn logits_have_the_same_bits_after_a_shared_prefix() {
    for golden in GOLDENS.iter() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
            let model = load(golden, dtype, None);
            let (together, alone) = with_a_shared_prefix(golden, &*model, &*model);
            assert_same_bits(&[together], &[alone], &format!("{} in {dtype:?}", golden.name));
        }
        let (model, kernels) = (
            load_without_kernels(golden, WeightFormat::F32),
            load(golden, WeightFormat::F32, None),
        );
        let (together, alone) = with_a_shared_prefix(golden, &*model, &*kernels);
        let errors = Errors::of(&together, &alone);
        assert!(errors.largest <= F32_BOUND, "{}: {:e}", golden.name, errors.largest);
    }
}

#[test]
fn forward_returns_the_requested_logits_in_the_order_of_the_rows() {
    let golden = &GOLDENS[0];
    let prompts = golden.prompts()[1..4].to_vec();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let wanted = [prompts[0].len(), 0, 2];
    let expected_of = |model: &dyn Model| {
        let whole = run(model, &prompts, &one_by_one(&prompts));
        [&whole[0][..], &whole[2][whole[2].len() - 2..]].concat()
    };
    let wanted_of = |model: &dyn Model| {
        let (cache, blocks) = cache_for(model, &lengths);
        let rows: Vec<Row<'_>> = prompts
            .iter()
            .zip(&blocks)
            .zip(wanted)
            .map(|((tokens, blocks), logits)| Row { tokens, position: 0, blocks, logits })
            .collect();
        forward(model, &rows, &cache)
    };
    for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
        let model = load(golden, dtype, None);
        assert_eq!(wanted_of(&*model), expected_of(&*model), "{dtype:?}");
    }
    let candles = wanted_of(&*load_without_kernels(golden, WeightFormat::F32));
    let errors = Errors::of(&candles, &expected_of(&*load(golden, WeightFormat::F32, None)));
    assert!(errors.largest <= F32_BOUND, "{:e}", errors.largest);
}

/// candle-transformers is an implementation independent of erank and of the golden files.
#[test]
fn logits_equal_candle_transformers_in_f32() {
    for golden in GOLDENS.iter() {
        let prompts = golden.prompts();
        let ours = run(&*load(golden, WeightFormat::F32, None), &prompts, &one_by_one(&prompts));
        let mut theirs = candles_model(&golden.model);
        for (prompt, ours) in prompts.iter().zip(&ours) {
            theirs.clear_kv_cache();
            let ids =
                Tensor::new(vec![prompt.clone()], &candle_core::Device::Cpu).expect("token ids");
            let logits = theirs.forward(&ids, 0).expect("a forward pass");
            let logits = logits.squeeze(1).and_then(|l| l.to_vec2()).expect("[1, 1, vocab_size]");
            let errors = Errors::of(&ours[prompt.len() - 1..], &logits);
            assert!(errors.largest <= F32_BOUND, "{}: {:e}", golden.name, errors.largest);
        }
    }
}

fn candles_model(model: &RandomModel) -> theirs::ModelForCausalLM {
    let config = serde_json::from_value(model.config().clone()).expect("candle's configuration");
    let tensors = model.weights().into_iter().map(|(name, weight)| {
        let tensor = Tensor::from_vec(weight.values, weight.shape, &candle_core::Device::Cpu);
        (name, tensor.and_then(|tensor| tensor.to_dtype(DType::F32)).expect("a weight"))
    });
    let weights =
        VarBuilder::from_tensors(tensors.collect(), DType::F32, &candle_core::Device::Cpu);
    theirs::ModelForCausalLM::new(&config, weights).expect("candle's model")
}
/// Prints the errors of a model, and asserts their bounds.
fn check_errors(
    golden: &Golden,
    what: &str,
    plan: Plan,
    load: impl Fn(WeightFormat) -> Arc<dyn Model>,
) {
    let (cases, all) = Compared::run(golden, plan, load);
    for (case, errors) in golden.cases.iter().zip(&cases) {
        print_row(&golden.name, &case.length.to_string(), errors);
    }
    print_row(&golden.name, "all", &all);
    all.assert_bounds(&format!("{what}, {}", golden.name));
}

fn print_row(name: &str, length: &str, errors: &Compared) {
    let pair = |errors: Errors| format!("{:.1e} / {:.1e}", errors.largest, errors.rms);
    let Compared { f32, bf16, bf16_sdpa } = errors;
    println!(
        "{name:18} {length:>6}  {:.1e}   {}    {}",
        f32.largest,
        pair(*bf16),
        pair(*bf16_sdpa)
    );
}

fn assert_same_bits(actual: &[Vec<Logits>], expected: &[Vec<Logits>], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (sequence, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(actual.len(), expected.len(), "{what}, sequence {sequence}");
        for (position, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            assert!(actual == expected, "{what}, sequence {sequence}, position {position}");
        }
    }
}

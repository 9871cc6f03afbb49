//! Proves or disproves a device that runs candle's own operations, and measures its speed.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin device --features cuda -- [cuda|cpu-candle] [0.6B|4B|14B|32B]…
//! ```
//!
//! `device.sh` builds the program without a GPU, and runs it on a machine that has a GPU and no cargo. Run it from the
//! root of the repository, because it reads the golden files of `tests`. `cpu-candle`, the default, runs the same
//! operations on the CPU. Without a shape, nothing is measured.
//!
//! Standard output gets a line of JSON for each check and each figure, and a verdict at the end. The exit status is 1 if
//! a check or a measurement failed. The checks:
//!
//! - `logits`: eight random models in F32 and BF16 against transformers, one sequence after another and in ragged
//!   batches;
//! - `shared prefix`: the prompts of a batch share cached blocks;
//! - `conformance`: the contract of a backend, with stopping; afterwards, all blocks are free;
//! - `preemption`: answers equal those of the CPU's kernels, also with a cache that is too small for the batch;
//! - `memory`: the cache stays within its budget.
//!
//! Figures are medians of three runs after one unmeasured run. `limit` is the throughput at the longer of two times:
//! reading the weights and the cache once at the device's bandwidth, or doing all multiplications at its peak. The
//! bandwidth is that of copying a tensor on the device (each byte is read and written), and the peak is that of a product
//! of two large square matrices in BF16, each the best of ten runs.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Tensor};
use erank_benches::checkpoint::{Behaviour, Shape};
use erank_benches::median;
use erank_benches::words::Words;
use erank_candle::internals::{BLOCK_TOKENS, BlockAllocator, BlockId, LoadedModel, Row, load};
use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Device, WeightFormat};
use erank_core::{Document, Mode, Request, Reranker, ScoringOptions};
use erank_tests::local::{
    BLOCK_BYTES, DOCUMENTS, REASON, conformance_without_kernels, idle, long_query, options,
    samples, tiny_with,
};
use erank_tests::parity::{
    Compared, Errors, F32_BOUND, Golden, Plan, continuous, one_by_one, with_a_shared_prefix,
};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Runs of a figure.
const RUNS: usize = 3;
/// Tokens of each sequence.
const CONTEXT: usize = 512;

fn main() -> Result<ExitCode> {
    let mut device = Device::CpuCandle;
    let mut shapes = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "cuda" => device = Device::Cuda { ordinal: 0 },
            "cpu-candle" => device = Device::CpuCandle,
            name => shapes.push(Shape::of(name).ok_or("the shapes are 0.6B, 4B, 14B and 32B")?),
        }
    }
    // Without the device, every check would fail with the same message.
    CandleBackend::load(&Checkpoint::tiny(), &settings(device))?;

    let mut has_passed = check(device);
    for shape in shapes {
        if let Err(error) = measure(device, shape) {
            println!("{}", json!({"shape": shape.name, "error": error.to_string()}));
            has_passed = false;
        }
    }
    let verdict = if has_passed { "passed" } else { "FAILED" };
    println!("{}", json!({"device": device.to_string(), "verdict": verdict}));
    Ok(if has_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn settings(device: Device) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.device = device;
    settings
}

// The checks

/// Runs all checks. Returns whether all passed.
fn check(device: Device) -> bool {
    let checkpoints = std::env::temp_dir().join("erank-parity");
    let goldens = Golden::read_all(Path::new("tests/golden/parity"), &checkpoints);
    let plans: [(&str, Plan); 2] = [("one by one", one_by_one), ("ragged batches", continuous)];
    let mut has_passed = true;
    let mut run = |name: &str, check: &dyn Fn() -> Value| has_passed &= report(name, check);
    for golden in &goldens {
        for (what, plan) in plans {
            run("logits", &|| logits(golden, device, what, plan));
        }
        run("shared prefix", &|| shared_prefix(golden, device));
    }
    run("conformance", &|| conformance(device));
    run("preemption", &|| preemption(device));
    run("memory", &|| memory(device));
    has_passed
}

/// Runs a check, prints its findings, and returns whether it passed. A check that does not pass panics.
fn report(name: &str, check: &dyn Fn() -> Value) -> bool {
    let begin = Instant::now();
    let found = catch_unwind(AssertUnwindSafe(check));
    let has_passed = found.is_ok();
    let found = found.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        json!(message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())))
    });
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"check": name, "passed": has_passed, "found": found, "seconds": seconds})
    );
    has_passed
}

fn logits(golden: &Golden, device: Device, what: &str, plan: Plan) -> Value {
    let (_, all) = Compared::run(golden, plan, |weights| golden.load_on(device, weights));
    all.assert_bounds(&format!("{}, {what}", golden.name));
    json!({
        "model": golden.name,
        "plan": what,
        "f32_largest": all.f32.largest,
        "bf16_largest": all.bf16.largest,
        "bf16_rms": all.bf16.rms,
        "transformers_bf16_largest": all.bf16_sdpa.largest,
        "transformers_bf16_rms": all.bf16_sdpa.rms,
    })
}

fn shared_prefix(golden: &Golden, device: Device) -> Value {
    let [model, kernels] = [device, Device::Cpu].map(|d| golden.load_on(d, WeightFormat::F32));
    let (together, alone) = with_a_shared_prefix(golden, &*model, &*kernels);
    let errors = Errors::of(&together, &alone);
    assert!(errors.largest <= F32_BOUND, "{}: F32 error {:e}", golden.name, errors.largest);
    json!({"model": golden.name, "f32_largest": errors.largest})
}

fn conformance(device: Device) -> Value {
    let backend = tiny_with(|settings| settings.device = device);
    let report = conformance_without_kernels(&backend);
    assert!(report.is_conformant(), "{report}");
    idle(&backend);
    json!(report.to_string().lines().collect::<Vec<_>>())
}

fn preemption(device: Device) -> Value {
    let with = |device: Device, blocks: usize| {
        tiny_with(|settings| {
            settings.weights = Some(WeightFormat::F32);
            settings.device = device;
            settings.kv_cache_memory_bytes = Some(blocks * 2 * BLOCK_BYTES);
        })
    };
    let answers = |backend: &CandleBackend| {
        samples(backend, &long_query(), &DOCUMENTS, options(REASON)).concat()
    };
    let expected = answers(&with(Device::Cpu, 1000));
    let mut preemptions = Vec::new();
    for blocks in [16, 1000] {
        let backend = with(device, blocks);
        for (found, expected) in answers(&backend).iter().zip(&expected) {
            assert_eq!(found.text, expected.text, "with {blocks} blocks");
        }
        preemptions.push(idle(&backend).preemptions);
    }
    assert!(preemptions[0] > 0, "16 blocks were enough for all documents");
    json!({"preemptions": preemptions})
}

fn memory(device: Device) -> Value {
    let budget = 1000 * BLOCK_BYTES;
    let backend = tiny_with(|settings| {
        settings.device = device;
        settings.kv_cache_memory_bytes = Some(budget);
    });
    let blocks = backend.statistics().total_blocks;
    assert!(blocks * BLOCK_BYTES <= budget, "{blocks} blocks");
    json!({"blocks": blocks, "budget_bytes": budget})
}

// The figures

/// A device's limits, in units per second.
struct Limits {
    bytes: f64,
    operations: f64,
}

fn measure(device: Device, shape: Shape) -> Result<()> {
    let begin = Instant::now();
    let checkpoint = shape.checkpoint(Behaviour::Random, None)?;
    let model = load(&checkpoint, &settings(device))?;
    println!(
        "{}",
        json!({"shape": shape.name, "name": "loading", "value": begin.elapsed().as_secs_f64(), "unit": "s"})
    );
    let limits = limits(device)?;
    let many = if device == Device::CpuCandle { 4 } else { 64 };
    for (name, rows, tokens) in [
        ("prefill, 1 row", 1, CONTEXT),
        ("decode, 1 row", 1, 1),
        ("decode, 8 rows", 8, 1),
        ("decode, many rows", many, 1),
    ] {
        step(&shape, &model, &limits, name, rows, tokens)?;
    }
    drop(model);
    documents(device, &shape, &checkpoint, many)
}

/// Measures one step: rows of `tokens` tokens each, after [`CONTEXT`] tokens if it is one token.
fn step(
    shape: &Shape,
    loaded: &LoadedModel,
    limits: &Limits,
    name: &str,
    rows: usize,
    tokens: usize,
) -> Result<()> {
    let model = &*loaded.model;
    let each = (CONTEXT + 1).div_ceil(BLOCK_TOKENS);
    let cache = model.new_cache(rows * each)?;
    let mut allocator = BlockAllocator::new(cache.blocks());
    let blocks: Vec<BlockId> = std::iter::from_fn(|| allocator.allocate()).collect();
    let ids: Vec<u32> = (0..CONTEXT as u32).map(|i| i * 7 % 1000).collect();
    let (tokens, position) = if tokens == 1 { (&ids[..1], CONTEXT) } else { (&ids[..], 0) };
    let rows: Vec<Row<'_>> =
        blocks.chunks(each).map(|blocks| Row { tokens, position, blocks, logits: 1 }).collect();
    if position > 0 {
        for row in &rows {
            model.forward(&[Row { tokens: &ids, position: 0, logits: 0, ..*row }], &cache)?;
        }
    }
    let seconds = repeat(|| model.forward(&rows, &cache).map(drop))?;

    let computed = rows.len() * tokens.len();
    let cached = rows.len() * position * model.shape().block_bytes / BLOCK_TOKENS;
    let bytes = shape.bytes_of_step() + cached;
    let positions = rows.len() * (1..=tokens.len()).map(|token| position + token).sum::<usize>();
    let operations = shape.operations(computed, rows.len()) + shape.attention_operations(positions);
    let (reading, computing) = (bytes as f64 / limits.bytes, operations / limits.operations);
    println!(
        "{}",
        json!({
            "shape": shape.name,
            "name": name,
            "rows": rows.len(),
            "value": computed as f64 / seconds,
            "unit": "tokens/s",
            "limit": computed as f64 / reading.max(computing),
            "fraction": reading.max(computing) / seconds,
            "bound": if reading > computing { "memory" } else { "arithmetic" },
            "bandwidth_gbytes": limits.bytes / 1e9,
            "peak_gflops": limits.operations / 1e9,
        })
    );
    Ok(())
}

/// Measures whole documents: an answer alone, and after a thought of 64 tokens.
fn documents(device: Device, shape: &Shape, checkpoint: &Checkpoint, count: usize) -> Result<()> {
    let mut settings = settings(device);
    settings.max_num_batched_tokens = 2048.try_into()?;
    settings.kv_cache_memory_bytes = Some(if count > 8 { 16 << 30 } else { 1 << 30 });
    let backend = CandleBackend::load(checkpoint, &settings)?;
    let mut words = Words::of(backend.tokenizer())?;
    for mode in [Mode::AnswerOnly, Mode::Reason { max_tokens: 64 }] {
        let mut options = ScoringOptions::default();
        options.mode = mode;
        let reranker = Reranker::builder(&backend).options(options).build()?;
        let seconds = repeat(|| {
            let documents: Vec<_> =
                (0..count).map(|_| Document::new(words.text(CONTEXT - 150))).collect();
            let ranking = reranker.rerank(&Request::new(words.text(20), documents))?;
            assert_eq!(ranking.documents.len(), count, "{:?}", ranking.unscored);
            Ok(())
        })?;
        println!(
            "{}",
            json!({
                "shape": shape.name,
                "name": format!("{mode:?}"),
                "documents": count,
                "value": count as f64 / seconds,
                "unit": "documents/s",
            })
        );
    }
    Ok(())
}

/// Returns the median of the seconds that `work` takes. It begins and ends with nothing queued on the device.
fn repeat(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let begin = Instant::now();
        work()?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}

fn limits(device: Device) -> Result<Limits> {
    let (device, bytes, side) = match device {
        Device::Cuda { ordinal } => (candle_core::Device::new_cuda(ordinal)?, 4usize << 30, 8192),
        _ => (candle_core::Device::Cpu, 256 << 20, 512),
    };
    let best = |work: &dyn Fn() -> candle_core::Result<Tensor>| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            device.synchronize()?;
            let begin = Instant::now();
            let result = work()?;
            device.synchronize()?;
            best = best.min(begin.elapsed().as_secs_f64());
            drop(result);
        }
        Ok(best)
    };
    let numbers = Tensor::zeros(bytes / 4, DType::F32, &device)?;
    let copying = best(&|| numbers.copy())?;
    let matrix = Tensor::ones((side, side), DType::BF16, &device)?;
    let multiplying = best(&|| matrix.matmul(&matrix))?;
    Ok(Limits {
        bytes: 2.0 * bytes as f64 / copying,
        operations: 2.0 * (side as f64).powi(3) / multiplying,
    })
}

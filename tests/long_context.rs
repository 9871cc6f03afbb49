//! Compares logits at positions up to 40,959, the last one of ERank's context, with Python's transformers.
//! `golden/long_context.py` made the golden file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use erank_candle::internals::{BLOCK_TOKENS, BlockAllocator, BlockId, Model, Row, load};
use erank_candle::{CandleBackend, CandleSettings, Checkpoint, KvCacheFormat, WeightFormat};
use erank_core::Mode;
use erank_tests::local::{completions, options};
use erank_tests::random_model::{Layout, RandomModel, checksum};
use serde::Deserialize;
use serde_json::Value;

/// Largest error of an F32 logit, relative to the largest logit.
const F32_BOUND: f64 = 1e-5;

/// Tokens of a step.
const CHUNK: usize = 512;

#[derive(Deserialize)]
struct Golden {
    weights_checksum: String,
    config: Value,
    length: usize,
    positions: Vec<usize>,
    /// The logits of transformers in F32, `[positions, vocab_size]`.
    f32: Vec<Vec<f32>>,
    /// The errors of transformers' own BF16 run.
    bf16: Errors,
}

/// Errors relative to the largest logit.
#[derive(Debug, Deserialize)]
struct Errors {
    largest: f64,
    /// The root mean square.
    rms: f64,
}

impl Errors {
    fn of(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> Self {
        let (actual, expected) = (actual.concat(), expected.concat());
        assert_eq!(actual.len(), expected.len());
        let scale = expected.iter().fold(0_f32, |largest, logit| largest.max(logit.abs()));
        let errors = actual.iter().zip(&expected);
        let errors: Vec<f64> =
            errors.map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs() / f64::from(scale)).collect();
        let squares: f64 = errors.iter().map(|error| error * error).sum();
        Self {
            largest: errors.iter().copied().fold(0.0, f64::max),
            rms: (squares / errors.len() as f64).sqrt(),
        }
    }
}

/// Computes the prompt in chunks and returns the logits at these positions. Then computes the last tokens again, one by
/// one, as another sequence that shares all blocks but the last, and asserts that the logits have the same bits.
fn logits(model: &dyn Model, tokens: &[u32], positions: &[usize]) -> Vec<Vec<f32>> {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let cache = model.new_cache(blocks + 1).expect("a cache");
    let mut allocator = BlockAllocator::new(blocks + 1);
    let mut all: Vec<BlockId> = std::iter::from_fn(|| allocator.allocate()).collect();
    let last_block = all.pop().expect("a block");
    let mut ends: Vec<usize> = (CHUNK..tokens.len()).step_by(CHUNK).collect();
    ends.extend(positions.iter().map(|position| position + 1));
    ends.push(tokens.len());
    ends.sort_unstable();
    ends.dedup();

    let mut logits = Vec::new();
    let mut start = 0;
    for end in ends {
        let wanted = usize::from(positions.contains(&(end - 1)));
        let row =
            Row { tokens: &tokens[start..end], position: start, blocks: &all, logits: wanted };
        let computed = model.forward(&[row], &cache).expect("a forward pass");
        logits.extend((wanted > 0).then_some(computed));
        start = end;
    }

    let shared = (blocks - 1) * BLOCK_TOKENS;
    *all.last_mut().expect("a block") = last_block;
    for position in shared..tokens.len() {
        let row = Row { tokens: &tokens[position..=position], position, blocks: &all, logits: 1 };
        let computed = model.forward(&[row], &cache).expect("a forward pass");
        if let Some(index) = positions.iter().position(|of| *of == position) {
            assert_eq!(computed, logits[index], "position {position}");
        }
    }
    logits
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/long_context.json");
    let file = fs::read(path).expect("the golden file is in the repository");
    serde_json::from_slice(&file).expect("valid JSON")
}

#[test]
fn logits_equal_transformers_up_to_the_last_position() {
    let golden = golden();
    assert_eq!(golden.positions.last(), Some(&40_959));
    let model = RandomModel::new(golden.config).expect("all sizes");
    assert_eq!(checksum(&model.weights()), golden.weights_checksum);
    let folder = tempfile::tempdir().expect("a temporary folder");
    model.write(folder.path(), Layout::OneFile).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let tokens = model.tokens(golden.length);
    let errors = |weights, kv_cache| {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings.kv_cache = kv_cache;
        let model: Arc<dyn Model> = load(&checkpoint, &settings).expect("a whole model").model;
        Errors::of(&logits(&*model, &tokens, &golden.positions), &golden.f32)
    };

    let f32 = errors(WeightFormat::F32, None);
    let bf16 = errors(WeightFormat::Bf16, None);
    let int8 = errors(WeightFormat::Bf16, Some(KvCacheFormat::Int8));
    println!("F32 {f32:?}\nBF16 {bf16:?}\nBF16, cache in 8 bits {int8:?}");
    println!("transformers in BF16 {:?}", golden.bf16);
    assert!(f32.largest <= F32_BOUND, "{f32:?}");
    assert!(bf16.largest <= golden.bf16.largest && bf16.rms <= golden.bf16.rms, "{bf16:?}");
    assert!(int8.rms <= golden.bf16.rms, "{int8:?}");
}

/// Two thoughts about one document, whose prompt leaves no more of the context than a thought. The smaller cache holds
/// the prompt and one thought, but not both.
#[test]
fn preempted_samples_of_the_whole_context_give_the_same_completions() {
    const THOUGHT_TOKENS: usize = 64;
    /// The tokens of the forced answer.
    const ANSWER_TOKENS: usize = 8;
    /// Keys and values of one head of 128 dimensions in BF16.
    const BLOCK_BYTES: usize = BLOCK_TOKENS * 2 * 128 * 2;

    let mut config = golden().config;
    let context = config["max_position_embeddings"].as_u64().expect("a number") as usize;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(name), folder.path().join(name)).expect("copied");
    }
    config["vocab_size"] = 10_240.into();
    let model = RandomModel::new(config).expect("all sizes");
    model.write(folder.path(), Layout::OneFile).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");

    let document = "The noise of jets. ".repeat(30_000);
    let mut options = options(Mode::Reason { max_tokens: THOUGHT_TOKENS });
    let prompt_tokens = context - THOUGHT_TOKENS - ANSWER_TOKENS;
    options.samples = 2;
    options.sampling.temperature = 1.0;
    options.max_document_tokens = context;
    options.max_prompt_tokens = Some(prompt_tokens);
    let score = |blocks: usize| {
        let mut settings = CandleSettings::default();
        settings.kv_cache_memory_bytes = Some(blocks * BLOCK_BYTES);
        let backend = CandleBackend::load(&checkpoint, &settings).expect("a whole model");
        let completions = completions(&backend, &[&document], options);
        (completions, backend.statistics().preemptions)
    };
    let (expected, preemptions) = score(2 * context.div_ceil(BLOCK_TOKENS));
    assert_eq!((expected[0].usage.prompt, preemptions), (prompt_tokens, 0));
    assert_ne!(expected[0].text, expected[1].text);
    let (found, preemptions) = score(context.div_ceil(BLOCK_TOKENS) + 2);
    assert!(preemptions > 0);
    assert_eq!(found, expected);
}

//! Compares the forward pass with Python's transformers, on small random Qwen3 models.
//!
//! `golden/parity.py` made the golden files; `erank_tests::random_model` makes the same weights. This prints
//! the table of errors: `cargo test -p erank-tests --test parity -- --nocapture table`.

use std::path::{Path, PathBuf};

use std::sync::{Arc, LazyLock};
use std::{fs, io};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3 as theirs;
use erank_candle::internals::{
    BLOCK_TOKENS, BlockAllocator, BlockId, KvCache, Model, Row, instruction_sets, load,
};
use erank_candle::{CandleSettings, Checkpoint, Device, KvCacheFormat, WeightFormat};
use erank_tests::random_model::{Layout, RandomModel, checksum};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Largest error of an F32 logit, relative to the largest logit.
const F32_BOUND: f64 = 1e-4;

/// Largest root mean square of the errors of logits with Q8_0 weights, relative to the largest logit.
const Q8_0_RMS_BOUND: f64 = 2.2e-2;

/// The only model whose checkpoint is written as two files.
const SHARDED: &str = "g8_d128_l3_tied";

/// The logits of one token, `[vocab_size]`.
type Logits = Vec<f32>;

// Golden files

/// A JSON file that `golden/parity.py` writes for one model.
#[derive(Deserialize)]
struct GoldenFile {
    weights_checksum: String,
    config: serde_json::Value,
    cases: Vec<Case>,
}

/// One prompt, with transformers' F32 logits at some of its positions.
#[derive(Deserialize)]
struct Case {
    length: usize,
    last_token: u32,
    positions: Vec<usize>,
    /// Errors of transformers' own BF16 run at these positions, with sdpa, its default attention.
    bf16_sdpa: Errors,
    /// F32 logits in the order of `positions`.
    #[serde(skip)]
    logits: Vec<Logits>,
}

struct Golden {
    name: String,
    model: RandomModel,
    /// A folder with the model's weights.
    checkpoint: PathBuf,
    weights_checksum: String,
    cases: Vec<Case>,
}

/// All golden files, in the order of their names. All tests share the checkpoints, which are written once.
static GOLDENS: LazyLock<Vec<Golden>> = LazyLock::new(Golden::read_all);

impl Golden {
    fn read_all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/parity");
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .expect("golden/parity is readable")
            .map(|entry| entry.expect("golden/parity is readable").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.sort();
        assert_eq!(paths.len(), 8, "golden/parity.py writes eight models");
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let name = path.file_stem().expect("a file's name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("golden/parity is readable");
        let file: GoldenFile = serde_json::from_str(&text).expect("a golden file");
        let model = RandomModel::new(file.config).expect("Qwen3's configuration");

        let mut rows = read_rows(&path.with_extension("safetensors"), model.vocab_size());
        let mut cases = file.cases;
        for case in &mut cases {
            case.logits = rows.drain(..case.positions.len()).collect();
        }
        assert!(rows.is_empty(), "{name}: more logits than the cases name");

        let layout = if name == SHARDED { Layout::TwoShards } else { Layout::OneFile };
        let checkpoint = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity").join(&name);
        write_checkpoint(&model, layout, &checkpoint).expect("the checkpoint fits on disk");
        Self { name, model, checkpoint, weights_checksum: file.weights_checksum, cases }
    }

    /// Loads the model from a checkpoint folder, with the best instruction set.
    fn load(&self, weights: WeightFormat) -> Arc<dyn Model> {
        self.load_for(weights, None)
    }

    fn load_for(&self, weights: WeightFormat, instruction_set: Option<&str>) -> Arc<dyn Model> {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings.instruction_set = instruction_set.map(str::to_owned);
        load(&self.checkpoint(), &settings).expect("a whole checkpoint").model
    }

    /// Loads the model with a KV cache in 8 bits.
    fn load_with_8_bit_cache(&self, weights: WeightFormat, set: &str) -> Arc<dyn Model> {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings.kv_cache = Some(KvCacheFormat::Int8);
        settings.instruction_set = Some(set.to_owned());
        load(&self.checkpoint(), &settings).expect("a whole checkpoint").model
    }

    /// Loads the model for candle's own operations, which other devices run.
    fn load_without_kernels(&self, weights: WeightFormat) -> Arc<dyn Model> {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings.device = Device::CpuCandle;
        load(&self.checkpoint(), &settings).expect("a whole checkpoint").model
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.checkpoint).expect("a checkpoint")
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        self.cases.iter().map(|case| self.model.tokens(case.length)).collect()
    }
}

/// Writes a checkpoint and then moves its files to `folder`, where another test process may have mapped the same
/// files.
fn write_checkpoint(model: &RandomModel, layout: Layout, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let written = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    model.write(written.path(), layout)?;
    for file in fs::read_dir(written.path())? {
        let file = file?;
        fs::rename(file.path(), folder.join(file.file_name()))?;
    }
    Ok(())
}

fn read_rows(path: &Path, vocab_size: usize) -> Vec<Logits> {
    let bytes = fs::read(path).expect("golden/parity is readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let numbers = tensors.tensor("logits").expect("golden logits").data().as_chunks().0;
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    numbers.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect()
}

// Forward passes

/// A part of a step: the index of a sequence, and the number of its next tokens to compute.
type Part = (usize, usize);

/// Runs `sequences` in the steps of `plan`, and returns the logits of every token by sequence.
fn run(model: &dyn Model, sequences: &[Vec<u32>], plan: &[Vec<Part>]) -> Vec<Vec<Logits>> {
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let (cache, blocks) = cache_for(model, &lengths);
    let mut logits = vec![Vec::new(); sequences.len()];
    for step in plan {
        let row = |&(sequence, count): &Part| {
            let position = logits[sequence].len();
            Row {
                tokens: &sequences[sequence][position..position + count],
                position,
                blocks: &blocks[sequence],
                logits: count,
            }
        };
        let rows: Vec<Row<'_>> = step.iter().map(row).collect();
        let mut computed = forward(model, &rows, &cache).into_iter();
        for &(sequence, count) in step {
            logits[sequence].extend(computed.by_ref().take(count));
        }
    }
    logits
}

fn forward(model: &dyn Model, rows: &[Row<'_>], cache: &KvCache) -> Vec<Logits> {
    let logits = model.forward(rows, cache).expect("a forward pass");
    logits.chunks_exact(model.shape().logits).map(<[f32]>::to_vec).collect()
}

/// Returns a cache for sequences of these lengths, and the blocks of each sequence. A sequence's blocks are in
/// descending order and interleaved with those of other sequences, as in a cache after some use.
fn cache_for(model: &dyn Model, lengths: &[usize]) -> (KvCache, Vec<Vec<BlockId>>) {
    let needed: Vec<usize> = lengths.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).collect();
    let total = needed.iter().sum();
    let cache = model.new_cache(total).expect("a cache");
    let mut allocator = BlockAllocator::new(total);
    let mut free: Vec<BlockId> =
        (0..total).map(|_| allocator.allocate().expect("as many as requested")).collect();
    let mut blocks = vec![Vec::new(); lengths.len()];
    while !free.is_empty() {
        for (blocks, needed) in blocks.iter_mut().zip(&needed) {
            if blocks.len() < *needed {
                blocks.extend(free.pop());
            }
        }
    }
    (cache, blocks)
}

/// Distributes sequences over steps.
type Plan = fn(&[Vec<u32>]) -> Vec<Vec<Part>>;

/// Makes one step for each sequence.
fn one_by_one(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    sequences.iter().enumerate().map(|(index, tokens)| vec![(index, tokens.len())]).collect()
}

/// Makes one step for all sequences.
fn ragged(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    vec![one_by_one(sequences).concat()]
}

/// Computes each sequence by itself. Each step has one token until past the fourth block, and the last step
/// has the rest.
fn token_by_token(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    const SINGLE: usize = 4 * BLOCK_TOKENS + 1;
    let of = |(index, tokens): (usize, &Vec<u32>)| {
        let mut steps = vec![vec![(index, 1)]; tokens.len().min(SINGLE)];
        steps.extend((tokens.len() > SINGLE).then(|| vec![(index, tokens.len() - SINGLE)]));
        steps
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// Computes each sequence by itself. First the prompt is prefilled in chunks, then tokens are decoded.
fn chunked(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    let of = |(index, tokens): (usize, &Vec<u32>)| {
        chunks(tokens.len()).into_iter().map(move |count| vec![(index, count)])
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// Computes all sequences together. Each starts two steps after the previous one. Most steps hold prefill
/// chunks and decodes, and sequences start and end at different steps.
fn continuous(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    let mut steps = Vec::new();
    for (index, tokens) in sequences.iter().enumerate() {
        for (step, count) in chunks(tokens.len()).into_iter().enumerate() {
            let step = 2 * index + step;
            steps.resize(steps.len().max(step + 1), Vec::new());
            steps[step].push((index, count));
        }
    }
    steps
}

/// Divides two thirds of a prompt into chunks that cross block boundaries in different ways, and the rest into
/// single tokens.
fn chunks(length: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut left = length;
    for count in [7, 16, 16, 1, 24, 33].into_iter().cycle() {
        if left < count + length / 3 {
            break;
        }
        counts.push(count);
        left -= count;
    }
    counts.extend(vec![1; left]);
    counts
}

// Errors of logits

/// Errors relative to the largest logit of the reference: the largest, and the root mean square.
#[derive(Clone, Copy, Deserialize)]
struct Errors {
    largest: f64,
    rms: f64,
}

impl Errors {
    fn of(actual: &[Logits], reference: &[Logits]) -> Self {
        let shape = |rows: &[Logits]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(shape(actual), shape(reference));
        let scale = reference.iter().flatten().fold(0_f32, |max, logit| max.max(logit.abs()));
        let errors: Vec<f64> = actual
            .iter()
            .flatten()
            .zip(reference.iter().flatten())
            .map(|(a, r)| (f64::from(*a) - f64::from(*r)).abs() / f64::from(scale))
            .collect();
        assert!(errors.iter().all(|error| error.is_finite()), "a logit is not finite");
        Self {
            largest: errors.iter().copied().fold(0.0, f64::max),
            rms: root_mean_square(errors.iter().map(|error| (*error, 1))),
        }
    }

    /// Combines the errors of several cases, each given with its number of rows.
    fn together(cases: &[(Self, usize)]) -> Self {
        Self {
            largest: cases.iter().map(|(errors, _)| errors.largest).fold(0.0, f64::max),
            rms: root_mean_square(cases.iter().map(|(errors, rows)| (errors.rms, *rows))),
        }
    }
}

/// Returns the root mean square of numbers, each given with its multiplicity.
fn root_mean_square(numbers: impl Iterator<Item = (f64, usize)>) -> f64 {
    let sum = numbers.fold((0.0, 0), |(sum, count), (number, times)| {
        (sum + number * number * times as f64, count + times)
    });
    (sum.0 / sum.1 as f64).sqrt()
}

fn at_positions(logits: &[Logits], case: &Case) -> Vec<Logits> {
    case.positions.iter().map(|position| logits[*position].clone()).collect()
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

// The tests

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

/// The F32 errors of every prompt are within the bound. The BF16 errors of each model's prompts together are at
/// most those of transformers' BF16, by the largest error and by the root mean square. (The largest error of one
/// prompt's few hundred logits is a matter of chance.)
#[test]
fn table_of_errors_stays_within_the_bounds_with_kernels() {
    println!("errors relative to the largest logit: the largest / the root mean square");
    println!("{:18} length  F32      BF16               transformers' BF16", "model");
    for set in instruction_sets() {
        println!("kernels: {set}");
        for golden in GOLDENS.iter() {
            check_errors(golden, set, one_by_one, |dtype| golden.load_for(dtype, Some(set)));
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
            check_errors(golden, name, plan, |dtype| golden.load_without_kernels(dtype));
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
            let errors = errors(golden, &*golden.load_for(WeightFormat::Q8_0, Some(set)));
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
            let with_cache = |weights| errors(golden, &*golden.load_with_8_bit_cache(weights, set));
            let q8_0 = errors(golden, &*golden.load_for(WeightFormat::Q8_0, Some(set)));
            let [f32, bf16] = [WeightFormat::F32, WeightFormat::Bf16].map(with_cache);
            let pair = |errors: Errors| format!("{:.1e} / {:.1e}", errors.largest, errors.rms);
            println!("{:18} {}   {}   {}", golden.name, pair(f32), pair(bf16), pair(q8_0));
            assert!(f32.rms <= q8_0.rms && bf16.rms <= q8_0.rms, "{set}, {}", golden.name);
        }
    }
}

/// Returns the errors of all stored positions together.
fn errors(golden: &Golden, model: &dyn Model) -> Errors {
    let prompts = golden.prompts();
    let logits = run(model, &prompts, &one_by_one(&prompts));
    let cases = golden.cases.iter().zip(&logits).map(|(case, logits)| {
        (Errors::of(&at_positions(logits, case), &case.logits), case.positions.len())
    });
    Errors::together(&cases.collect::<Vec<_>>())
}

fn check_errors(
    golden: &Golden,
    what: &str,
    plan: Plan,
    load: impl Fn(WeightFormat) -> Arc<dyn Model>,
) {
    let prompts = golden.prompts();
    let run = |dtype| run(&*load(dtype), &prompts, &plan(&prompts));
    let (f32, bf16) = (run(WeightFormat::F32), run(WeightFormat::Bf16));
    let mut rows = Vec::new();
    for (case, (f32, bf16)) in golden.cases.iter().zip(f32.iter().zip(&bf16)) {
        let f32 = Errors::of(&at_positions(f32, case), &case.logits);
        let bf16 = Errors::of(&at_positions(bf16, case), &case.logits);
        print_row(&golden.name, &case.length.to_string(), f32, bf16, case.bf16_sdpa);
        rows.push((f32, bf16, case.bf16_sdpa, case.positions.len()));
    }
    let f32 = Errors::together(&rows.iter().map(|row| (row.0, row.3)).collect::<Vec<_>>());
    let bf16 = Errors::together(&rows.iter().map(|row| (row.1, row.3)).collect::<Vec<_>>());
    let theirs = Errors::together(&rows.iter().map(|row| (row.2, row.3)).collect::<Vec<_>>());
    print_row(&golden.name, "all", f32, bf16, theirs);
    assert!(f32.largest <= F32_BOUND, "{what}, {}: F32 error {:e}", golden.name, f32.largest);
    assert!(bf16.largest <= theirs.largest, "{what}, {}: largest BF16 error", golden.name);
    assert!(bf16.rms <= theirs.rms, "{what}, {}: root mean square of BF16 errors", golden.name);
}

fn print_row(name: &str, length: &str, f32: Errors, bf16: Errors, theirs: Errors) {
    let pair = |errors: Errors| format!("{:.1e} / {:.1e}", errors.largest, errors.rms);
    println!("{name:18} {length:>6}  {:.1e}   {}    {}", f32.largest, pair(bf16), pair(theirs));
}

#[test]
fn logits_have_the_same_bits_with_any_plan() {
    let sets = instruction_sets();
    for golden in GOLDENS.iter() {
        let of_every_set = |format| sets.iter().map(move |set| (format, *set));
        let formats = of_every_set(WeightFormat::Bf16).chain(of_every_set(WeightFormat::Q8_0));
        let loaded = formats
            .chain([(WeightFormat::F32, sets[0])])
            .map(|(dtype, set)| (golden.load_for(dtype, Some(set)), format!("{dtype:?}, {set}")));
        let with_8_bit_cache = golden.load_with_8_bit_cache(WeightFormat::Bf16, sets[0]);
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
        let model = golden.load(WeightFormat::Bf16);
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
            let model = golden.load(dtype);
            let (together, alone) = with_a_shared_prefix(golden, &*model, &*model);
            assert_same_bits(&[together], &[alone], &format!("{} in {dtype:?}", golden.name));
        }
        let (model, kernels) =
            (golden.load_without_kernels(WeightFormat::F32), golden.load(WeightFormat::F32));
        let (together, alone) = with_a_shared_prefix(golden, &*model, &*kernels);
        let errors = Errors::of(&together, &alone);
        assert!(errors.largest <= F32_BOUND, "{}: {:e}", golden.name, errors.largest);
    }
}

/// Returns the logits after a prefix of three blocks that the prompts share, and the logits at the same
/// positions from another model that computes each prompt as a whole.
fn with_a_shared_prefix(
    golden: &Golden,
    model: &dyn Model,
    other: &dyn Model,
) -> (Vec<Logits>, Vec<Logits>) {
    const PREFIX: usize = 3 * BLOCK_TOKENS;
    let prefix = golden.model.tokens(300)[..PREFIX].to_vec();
    let prompts: Vec<Vec<u32>> =
        [15, 17, 64].map(|length| [prefix.clone(), golden.model.tokens(length)].concat()).into();
    let whole = run(other, &prompts, &one_by_one(&prompts));

    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let (cache, mut blocks) = cache_for(model, &lengths);
    let shared = blocks[0][..3].to_vec();
    let row = |tokens, position, blocks, logits| Row { tokens, position, blocks, logits };
    let prefill = row(&prefix[..], 0, &shared[..], 0);
    assert!(forward(model, &[prefill], &cache).is_empty());
    for blocks in &mut blocks {
        blocks[..3].copy_from_slice(&shared);
    }
    let rows: Vec<Row<'_>> = prompts
        .iter()
        .zip(&blocks)
        .map(|(prompt, blocks)| row(&prompt[PREFIX..], PREFIX, blocks, prompt.len() - PREFIX))
        .collect();
    let rest = whole.iter().flat_map(|logits| logits[PREFIX..].to_vec()).collect();
    (forward(model, &rows, &cache), rest)
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
        let model = golden.load(dtype);
        assert_eq!(wanted_of(&*model), expected_of(&*model), "{dtype:?}");
    }
    let candles = wanted_of(&*golden.load_without_kernels(WeightFormat::F32));
    let errors = Errors::of(&candles, &expected_of(&*golden.load(WeightFormat::F32)));
    assert!(errors.largest <= F32_BOUND, "{:e}", errors.largest);
}

/// candle-transformers is an implementation independent of erank and of the golden files.
#[test]
fn logits_equal_candle_transformers_in_f32() {
    for golden in GOLDENS.iter() {
        let prompts = golden.prompts();
        let ours = run(&*golden.load(WeightFormat::F32), &prompts, &one_by_one(&prompts));
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

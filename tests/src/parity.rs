//! The forward pass beside Python's transformers, on small random Qwen3 models.
//!
//! `golden/parity.py` made the golden files; [`random_model`](crate::random_model) makes the same weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use erank_candle::internals::{BLOCK_TOKENS, BlockAllocator, BlockId, KvCache, Model, Row, load};
use erank_candle::{CandleSettings, Checkpoint, Device, WeightFormat};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::random_model::{Layout, RandomModel};

/// Largest error of an F32 logit, relative to the largest logit.
pub const F32_BOUND: f64 = 1e-4;

/// The only model whose checkpoint is written as two files.
const SHARDED: &str = "g8_d128_l3_tied";

/// The logits of one token, `[vocab_size]`.
pub type Logits = Vec<f32>;

/// A JSON file that `golden/parity.py` writes for one model.
#[derive(Deserialize)]
struct GoldenFile {
    weights_checksum: String,
    config: serde_json::Value,
    cases: Vec<Case>,
}

/// One prompt, with transformers' F32 logits at some of its positions.
#[derive(Deserialize)]
pub struct Case {
    /// Tokens of the prompt.
    pub length: usize,
    /// The last token of the prompt.
    pub last_token: u32,
    /// The positions that have logits.
    pub positions: Vec<usize>,
    /// Errors of transformers' own BF16 run at these positions, with sdpa, its default attention.
    pub bf16_sdpa: Errors,
    /// F32 logits in the order of `positions`.
    #[serde(skip)]
    pub logits: Vec<Logits>,
}

/// One model with its golden files.
pub struct Golden {
    /// The name of its golden files.
    pub name: String,
    /// The model.
    pub model: RandomModel,
    /// A folder with the model's weights.
    checkpoint: PathBuf,
    /// The checksum of the weights that transformers ran.
    pub weights_checksum: String,
    /// The prompts.
    pub cases: Vec<Case>,
}

impl Golden {
    /// Reads the golden files of `folder`, in the order of their names, and writes the checkpoints of their models to
    /// `checkpoints`.
    ///
    /// # Panics
    /// Panics if a file cannot be read or written.
    pub fn read_all(folder: &Path, checkpoints: &Path) -> Vec<Self> {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .expect("golden/parity is readable")
            .map(|entry| entry.expect("golden/parity is readable").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.sort();
        assert_eq!(paths.len(), 8, "golden/parity.py writes eight models");
        paths.iter().map(|path| Self::read(path, checkpoints)).collect()
    }

    fn read(path: &Path, checkpoints: &Path) -> Self {
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
        let checkpoint = checkpoints.join(&name);
        write_checkpoint(&model, layout, &checkpoint).expect("the checkpoint fits on disk");
        Self { name, model, checkpoint, weights_checksum: file.weights_checksum, cases }
    }

    /// Loads the model.
    ///
    /// # Panics
    /// Panics if this machine or build cannot serve the settings.
    pub fn load(&self, settings: &CandleSettings) -> Arc<dyn Model> {
        let checkpoint = Checkpoint::open(&self.checkpoint).expect("a checkpoint");
        load(&checkpoint, settings).expect("a whole checkpoint").model
    }

    /// Loads the model for a device, with weights in this format.
    ///
    /// # Panics
    /// Panics if this machine or build has no such device.
    pub fn load_on(&self, device: Device, weights: WeightFormat) -> Arc<dyn Model> {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings.device = device;
        self.load(&settings)
    }

    /// Returns the tokens of each case.
    pub fn prompts(&self) -> Vec<Vec<u32>> {
        self.cases.iter().map(|case| self.model.tokens(case.length)).collect()
    }
}

/// Writes a checkpoint and then moves its files to `folder`, where another test process may have mapped the same
/// files.
fn write_checkpoint(model: &RandomModel, layout: Layout, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let written = tempfile::tempdir_in(folder)?;
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
pub type Part = (usize, usize);

/// Runs `sequences` in the steps of `plan`, and returns the logits of every token by sequence.
pub fn run(model: &dyn Model, sequences: &[Vec<u32>], plan: &[Vec<Part>]) -> Vec<Vec<Logits>> {
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

/// Runs one step, and returns the logits of every token that wants them.
///
/// # Panics
/// Panics if the model fails.
pub fn forward(model: &dyn Model, rows: &[Row<'_>], cache: &KvCache) -> Vec<Logits> {
    let logits = model.forward(rows, cache).expect("a forward pass");
    logits.chunks_exact(model.shape().logits).map(<[f32]>::to_vec).collect()
}

/// Returns a cache for sequences of these lengths, and the blocks of each sequence. A sequence's blocks are in
/// descending order and interleaved with those of other sequences, as in a cache after some use.
pub fn cache_for(model: &dyn Model, lengths: &[usize]) -> (KvCache, Vec<Vec<BlockId>>) {
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
pub type Plan = fn(&[Vec<u32>]) -> Vec<Vec<Part>>;

/// Makes one step for each sequence.
pub fn one_by_one(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    sequences.iter().enumerate().map(|(index, tokens)| vec![(index, tokens.len())]).collect()
}

/// Makes one step for all sequences.
pub fn ragged(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    vec![one_by_one(sequences).concat()]
}

/// Computes each sequence by itself. Each step has one token until past the fourth block, and the last step
/// has the rest.
pub fn token_by_token(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    const SINGLE: usize = 4 * BLOCK_TOKENS + 1;
    let of = |(index, tokens): (usize, &Vec<u32>)| {
        let mut steps = vec![vec![(index, 1)]; tokens.len().min(SINGLE)];
        steps.extend((tokens.len() > SINGLE).then(|| vec![(index, tokens.len() - SINGLE)]));
        steps
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// Computes each sequence by itself. First the prompt is prefilled in chunks, then tokens are decoded.
pub fn chunked(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
    let of = |(index, tokens): (usize, &Vec<u32>)| {
        chunks(tokens.len()).into_iter().map(move |count| vec![(index, count)])
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// Computes all sequences together. Each starts two steps after the previous one. Most steps hold prefill
/// chunks and decodes, and sequences start and end at different steps.
pub fn continuous(sequences: &[Vec<u32>]) -> Vec<Vec<Part>> {
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
pub struct Errors {
    /// The largest error.
    pub largest: f64,
    /// The root mean square.
    pub rms: f64,
}

impl Errors {
    /// Compares logits with those of a reference, which has the same shape.
    ///
    /// # Panics
    /// Panics if the shapes differ or a logit is not finite.
    pub fn of(actual: &[Logits], reference: &[Logits]) -> Self {
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

/// Returns the errors of all stored positions together.
pub fn errors(golden: &Golden, model: &dyn Model) -> Errors {
    let prompts = golden.prompts();
    let logits = run(model, &prompts, &one_by_one(&prompts));
    let cases = golden.cases.iter().zip(&logits).map(|(case, logits)| {
        (Errors::of(&at_positions(logits, case), &case.logits), case.positions.len())
    });
    Errors::together(&cases.collect::<Vec<_>>())
}

/// The errors of a model in F32 and in BF16, and transformers' own in BF16.
pub struct Compared {
    /// F32 weights.
    pub f32: Errors,
    /// BF16 weights.
    pub bf16: Errors,
    /// BF16 weights in transformers.
    pub bf16_sdpa: Errors,
}

impl Compared {
    /// Runs a model, which `load` loads, in the steps of `plan`. Returns the errors of each case, and of all together.
    ///
    /// # Panics
    /// Panics if the model fails, or a logit is not finite.
    pub fn run(
        golden: &Golden,
        plan: Plan,
        load: impl Fn(WeightFormat) -> Arc<dyn Model>,
    ) -> (Vec<Self>, Self) {
        let prompts = golden.prompts();
        let run = |weights| run(&*load(weights), &prompts, &plan(&prompts));
        let (f32, bf16) = (run(WeightFormat::F32), run(WeightFormat::Bf16));
        let of_case = |(case, (f32, bf16)): (&Case, (&Vec<Logits>, &Vec<Logits>))| Self {
            f32: Errors::of(&at_positions(f32, case), &case.logits),
            bf16: Errors::of(&at_positions(bf16, case), &case.logits),
            bf16_sdpa: case.bf16_sdpa,
        };
        let cases: Vec<Self> =
            golden.cases.iter().zip(f32.iter().zip(&bf16)).map(of_case).collect();
        let together = |errors: fn(&Self) -> Errors| {
            let rows = golden.cases.iter().map(|case| case.positions.len());
            Errors::together(&cases.iter().map(errors).zip(rows).collect::<Vec<_>>())
        };
        let all = Self {
            f32: together(|case| case.f32),
            bf16: together(|case| case.bf16),
            bf16_sdpa: together(|case| case.bf16_sdpa),
        };
        (cases, all)
    }

    /// Asserts the bounds of all cases together. The F32 error is at most [`F32_BOUND`]. The BF16 errors are at most
    /// those of transformers' BF16, by the largest error and by the root mean square. (The largest error of one prompt's
    /// few hundred logits is a matter of chance.)
    ///
    /// # Panics
    /// Panics if an error exceeds its bound.
    pub fn assert_bounds(&self, what: &str) {
        let Self { f32, bf16, bf16_sdpa } = self;
        assert!(f32.largest <= F32_BOUND, "{what}: F32 error {:e}", f32.largest);
        assert!(bf16.largest <= bf16_sdpa.largest, "{what}: largest BF16 error {:e}", bf16.largest);
        assert!(
            bf16.rms <= bf16_sdpa.rms,
            "{what}: root mean square of BF16 errors {:e}",
            bf16.rms
        );
    }
}

/// Returns the logits after a prefix of three blocks that the prompts share, and the logits at the same
/// positions from another model that computes each prompt as a whole.
pub fn with_a_shared_prefix(
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

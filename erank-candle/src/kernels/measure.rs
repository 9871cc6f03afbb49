//! What the kernels reach and what this machine can do at most, measured by the kernels' own means.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::linear::multiply;
use super::{Ahead, Element, InstructionSet, LANES, PackedWeights};
use crate::error::LoadError;

/// Floating-point operations per second of the instruction set's tile for BF16 weights, with
/// everything it reads in the nearest cache, on all of rayon's current threads.
///
/// # Errors
/// If the machine does not have the set.
pub fn matrix_peak(instruction_set: Option<&str>, time: Duration) -> Result<f64, LoadError> {
    const INPUTS: usize = 256;
    let set = InstructionSet::choose(instruction_set)?;
    let rows = set.tallest_tile();
    let panel = vec![bf16::ONE; INPUTS * LANES];
    let singles = vec![[1.0; 2]; INPUTS / 2 * rows];
    let pairs = vec![[bf16::ONE; 2]; INPUTS / 2 * rows];
    let product = 2.0 * (rows * LANES * INPUTS) as f64;
    let multiply = |sums: &mut [[f32; LANES]]| {
        let (panel, pairs) = (black_box(&panel), black_box(&pairs));
        if set.multiplies_tiles() {
            set.exercise_tiles(INPUTS)
        } else if set.multiplies_pairs() {
            set.tiles_of_pairs(pairs, &[panel, panel], rows, sums, Ahead::NOTHING);
            2.0 * product
        } else {
            let singles = black_box(&singles);
            set.tiles_of_singles(singles, &[panel], rows, sums, Ahead::NOTHING);
            product
        }
    };
    let begin = Instant::now();
    let operations: f64 = (0..rayon::current_num_threads())
        .into_par_iter()
        .map(|_| {
            let mut sums = vec![[0.0; LANES]; 2 * rows];
            let mut operations = 0.0;
            while begin.elapsed() < time {
                operations += (0..100).map(|_| multiply(&mut sums)).sum::<f64>();
            }
            black_box(sums);
            operations
        })
        .sum();
    Ok(operations / begin.elapsed().as_secs_f64())
}

/// Memory to measure reading with: more than caches hold.
pub struct Memory(Buffer<u64>);

impl Memory {
    /// So many bytes, written once.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut numbers = Buffer::zeroed(bytes / 8)?;
        numbers.fill(1);
        Ok(Self(numbers))
    }

    /// Bytes per second that all of rayon's current threads read, each four neighbouring streams at once.
    pub fn read_bandwidth(&self) -> f64 {
        let begin = Instant::now();
        let sum: u64 = self
            .0
            .par_chunks(PART)
            .map(|part| {
                let streams: [&[[u64; LANES]]; STREAMS] = std::array::from_fn(|i| {
                    part[i * part.len() / STREAMS..][..part.len() / STREAMS].as_chunks().0
                });
                add(streams, part.len() / STREAMS / LANES)
            })
            .sum();
        let seconds = begin.elapsed().as_secs_f64();
        assert!(sum.abs_diff(self.0.len() as u64) <= self.0.len() as u64 / 1000);
        self.0.len() as f64 * 8.0 / seconds
    }
}

const STREAMS: usize = 4;
/// Numbers that a thread reads at a time: a quarter of a megabyte.
const PART: usize = 1 << 15;

/// The sum of what the streams hold.
#[inline(always)]
fn add(streams: [&[[u64; LANES]]; STREAMS], length: usize) -> u64 {
    let streams = streams.map(|stream| &stream[..length]);
    let mut sums = [[0u64; LANES]; STREAMS];
    for place in 0..length {
        for (sums, stream) in sums.iter_mut().zip(streams) {
            for (sum, number) in sums.iter_mut().zip(&stream[place]) {
                *sum = sum.wrapping_add(*number);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

/// Several projections of the same shape, so that together they do not fit into caches.
pub struct Projections {
    set: InstructionSet,
    matrices: Vec<PackedWeights>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Projections {
    /// BF16 matrices of `outputs × inputs` with at least `bytes` in all, and `rows` rows to multiply
    /// with them.
    ///
    /// # Errors
    /// If the machine does not have the instruction set, or no room.
    pub fn new(
        instruction_set: Option<&str>,
        rows: usize,
        (inputs, outputs): (usize, usize),
        bytes: usize,
    ) -> Result<Self, LoadError> {
        let set = InstructionSet::choose(instruction_set)?;
        let count = bytes.div_ceil(inputs * outputs * 2).max(1);
        let element = |output, input| bf16::round(Self::number(output * inputs + input));
        Ok(Self {
            set,
            matrices: (0..count)
                .map(|_| PackedWeights::bf16(set, outputs, inputs, element))
                .collect::<Result<_, _>>()
                .map_err(|error| LoadError::Setting(error.to_string()))?,
            x: (0..rows * inputs).map(|index| Self::number(index + 7)).collect(),
            y: vec![0.0; rows * outputs],
        })
    }

    fn number(index: usize) -> f32 {
        (index as u32).wrapping_mul(0x9E37_79B9).cast_signed() as f32 / 2f32.powi(31)
    }

    /// How many matrices there are.
    pub fn count(&self) -> usize {
        self.matrices.len()
    }

    /// Multiplies with each matrix; how long it took.
    pub fn run(&mut self) -> Duration {
        let begin = Instant::now();
        for matrix in &self.matrices {
            multiply(
                self.set,
                &self.x,
                None,
                matrix,
                &mut self.y,
                #[inline(always)]
                |y, product| *y = product,
            );
        }
        begin.elapsed()
    }
}

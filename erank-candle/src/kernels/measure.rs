//! Measures the limits of this machine with the kernels' own code. These are the peak of the micro-kernel and
//! the bandwidth of memory. Also measures projections alone, to compare them with these limits.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::arch::InstructionSet;
use super::buffer::Buffer;
use super::formats::{self, WeightFormat};
use super::micro_kernel::{KernelVisitor, MicroKernel};
use super::projection::Projection;
use super::stored::{StoredMatrix, StoredRow};
use crate::error::LoadError;

/// Returns the multiplications and additions per second of the instruction set's micro-kernel for weights of a
/// format, with all operands in the nearest cache, on all of rayon's current threads.
///
/// # Errors
/// Returns an error if the machine does not have the set.
pub fn matrix_peak(
    instruction_set: Option<&str>,
    format: WeightFormat,
    time: Duration,
) -> Result<f64, LoadError> {
    let set = InstructionSet::choose(instruction_set, false)?;
    let begin = Instant::now();
    let operations: f64 = (0..rayon::current_num_threads())
        .into_par_iter()
        .map(|_| {
            let mut operations = 0.0;
            while begin.elapsed() < time {
                operations += formats::with_kernel(format, set, Exercise(100));
            }
            operations
        })
        .sum();
    Ok(operations / begin.elapsed().as_secs_f64())
}

/// Multiplies with a micro-kernel this number of times.
struct Exercise(usize);

impl KernelVisitor for Exercise {
    type Output = f64;

    fn visit<K: MicroKernel>(self, kernel: K) -> f64 {
        kernel.exercise(self.0)
    }
}

/// Memory for measuring the read bandwidth. It must be larger than the caches.
pub struct Memory(Buffer<u64>);

impl Memory {
    /// Allocates and writes `bytes` bytes.
    ///
    /// # Errors
    /// Returns an error if the system cannot provide the memory.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut numbers = Buffer::zeroed(bytes / 8)?;
        numbers.fill(1);
        Ok(Self(numbers))
    }

    /// Returns the bytes per second that all of rayon's current threads read, with the best of several patterns:
    /// each thread reads one, two or four streams at once, in long or short parts, with the widest loads of the
    /// machine.
    pub fn read_bandwidth(&self) -> f64 {
        let long = self.0.len() / rayon::current_num_threads();
        let patterns = [
            self.read::<1>(long),
            self.read::<1>(PART),
            self.read::<2>(PART),
            self.read::<4>(PART),
        ];
        patterns.into_iter().fold(0.0, f64::max)
    }

    /// Returns the bytes per second of reading parts of `length` numbers, in `STREAMS` streams each.
    fn read<const STREAMS: usize>(&self, length: usize) -> f64 {
        let begin = Instant::now();
        let sum: u64 = self
            .0
            .par_chunks(length)
            .map(|part| {
                let length = part.len() / STREAMS;
                let streams = std::array::from_fn(|i| part[i * length..][..length].as_chunks().0);
                InstructionSet::best().run(
                    #[inline(always)]
                    || add::<STREAMS>(streams, length / SUMS),
                )
            })
            .sum();
        let seconds = begin.elapsed().as_secs_f64();
        assert!(sum.abs_diff(self.0.len() as u64) <= self.0.len() as u64 / 1000);
        self.0.len() as f64 * 8.0 / seconds
    }
}

/// Sums of a stream, which the compiler vectorises. With as many as one register holds, it gathered numbers of several
/// steps instead, which read a seventh of the bandwidth.
const SUMS: usize = 64;
/// Number of numbers in a short part, a quarter of a megabyte.
const PART: usize = 1 << 15;

/// Adds up the numbers of all streams.
#[inline(always)]
fn add<const STREAMS: usize>(streams: [&[[u64; SUMS]]; STREAMS], length: usize) -> u64 {
    let streams = streams.map(|stream| &stream[..length]);
    let mut sums = [[0u64; SUMS]; STREAMS];
    for index in 0..length {
        for (sums, stream) in sums.iter_mut().zip(streams) {
            for (sum, number) in sums.iter_mut().zip(&stream[index]) {
                *sum = sum.wrapping_add(*number);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

/// Several projections of the same shape, whose weights together do not fit into caches.
pub struct Projections {
    matrices: Vec<Projection>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Projections {
    /// Makes matrices of a format, `outputs × inputs`, with at least `weights` weights in all, and `rows` rows to
    /// multiply with them. Formats that are only read from files get blocks of zeros, which take as long to
    /// multiply as other blocks.
    ///
    /// # Errors
    /// Returns an error if the machine does not have the instruction set, or the system cannot provide the
    /// memory.
    pub fn new(
        instruction_set: Option<&str>,
        format: WeightFormat,
        rows: usize,
        (inputs, outputs): (usize, usize),
        weights: usize,
    ) -> Result<Self, LoadError> {
        let set = InstructionSet::choose(instruction_set, false)?;
        let count = weights.div_ceil(inputs * outputs).max(1);
        let numbers: Vec<[u8; 4]> =
            (0..outputs * inputs).map(|index| number(index).to_le_bytes()).collect();
        let zeros;
        let stored = match format.block_type() {
            Some(block_type) => {
                zeros = vec![0; outputs * inputs / block_type.values() * block_type.bytes()];
                StoredRow::Blocks(block_type, &zeros)
            }
            None => StoredRow::F32(&numbers),
        };
        let pack = || Projection::pack(&[(format, StoredMatrix::new([stored], inputs))], set);
        Ok(Self {
            matrices: (0..count)
                .map(|_| pack())
                .collect::<Result<_, _>>()
                .map_err(|error| LoadError::Setting(error.to_string()))?,
            x: (0..rows * inputs).map(|index| number(index + 7)).collect(),
            y: vec![0.0; rows * outputs],
        })
    }

    /// Returns the number of matrices.
    pub fn count(&self) -> usize {
        self.matrices.len()
    }

    /// Multiplies with each matrix. Returns the time that it took.
    pub fn run(&mut self) -> Duration {
        let begin = Instant::now();
        for matrix in &self.matrices {
            matrix.project(&self.x, None, &mut self.y);
        }
        begin.elapsed()
    }
}

/// Returns a repeatable number between −1 and 1.
fn number(index: usize) -> f32 {
    (index as u32).wrapping_mul(0x9E37_79B9).cast_signed() as f32 / 2f32.powi(31)
}

//! What this machine can do at most, measured with the kernels' own means, to compare them with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use rayon::prelude::*;

use super::{InstructionSet, LANES};
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
    let (singles, pairs) = (vec![1.0; INPUTS * rows], vec![[bf16::ONE; 2]; INPUTS / 2 * rows]);
    let begin = Instant::now();
    let products: usize = (0..rayon::current_num_threads())
        .into_par_iter()
        .map(|_| {
            let mut sums = [[[0.0; LANES]; 8]; 2];
            let mut count = 0;
            while begin.elapsed() < time {
                for _ in 0..100 {
                    let [a, b] = &mut sums;
                    let (panel, pairs) = (black_box(&panel), black_box(&pairs));
                    if set.multiplies_pairs() {
                        set.tile_pairs(pairs, [panel, panel], [&mut a[..rows], &mut b[..rows]]);
                        count += 2;
                    } else {
                        set.tile(black_box(&singles), panel, &mut a[..rows]);
                        count += 1;
                    }
                }
            }
            black_box(sums);
            count
        })
        .sum();
    let operations = 2.0 * (products * rows * LANES * INPUTS) as f64;
    Ok(operations / begin.elapsed().as_secs_f64())
}

/// Bytes per second that all of rayon's current threads read from memory, each from a part of
/// `bytes` of its own.
pub fn read_bandwidth(bytes: usize, time: Duration) -> f64 {
    let buffer = vec![1u64; bytes / 8];
    let part = buffer.len().div_ceil(rayon::current_num_threads());
    let (mut read, begin) = (0, Instant::now());
    while begin.elapsed() < time {
        let sum: u64 = buffer
            .par_chunks(part)
            .map(|part| part.iter().fold(0u64, |sum, number| sum.wrapping_add(*number)))
            .sum();
        assert_eq!(sum, buffer.len() as u64);
        read += buffer.len() * 8;
    }
    read as f64 / begin.elapsed().as_secs_f64()
}

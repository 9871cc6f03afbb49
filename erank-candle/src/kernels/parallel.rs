//! A parallel loop that is compiled once for all types.
//!
//! An instance of rayon's own adapters is several thousand lines of intermediate code, and the kernels would need
//! one for each weight format and instruction set. In this way, they share one.

use bytemuck::Pod;
use rayon::prelude::*;

/// Calls `work(index, chunk)` for every `size` elements of a slice, on rayon's current threads. The last chunk
/// may be shorter.
pub(super) fn par_chunks_mut<T: Pod>(
    slice: &mut [T],
    size: usize,
    work: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let bytes = bytemuck::cast_slice_mut(slice);
    par_byte_chunks_mut(bytes, size * size_of::<T>(), &|index, bytes| {
        work(index, bytemuck::cast_slice_mut(bytes));
    });
}

fn par_byte_chunks_mut(bytes: &mut [u8], size: usize, work: &(dyn Fn(usize, &mut [u8]) + Sync)) {
    bytes.par_chunks_mut(size.max(1)).enumerate().for_each(|(index, bytes)| work(index, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn par_chunks_mut_visits_every_element_once() {
        for (length, size) in [(0, 1), (1, 1), (10, 3), (64, 64), (1000, 7)] {
            let mut numbers = vec![0u64; length];
            par_chunks_mut(&mut numbers, size, &|index, chunk| {
                for (i, number) in chunk.iter_mut().enumerate() {
                    *number += (index * size + i) as u64 + 1;
                }
            });
            assert!(numbers.iter().zip(1..).all(|(number, expected)| *number == expected));
        }
    }
}

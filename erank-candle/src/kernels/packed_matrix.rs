//! A matrix of weights in panels, with the micro-kernel that it is packed for.

use std::io;

use super::arch::Isa;
use super::buffer::Buffer;
use super::micro_kernel::MicroKernel;
use super::parallel::par_chunks_mut;
use super::stored::{StoredMatrix, StoredRow};
use super::tile::NR;

/// A matrix of `outputs × inputs`, for `y = x · Wᵀ`. It consists of panels of 16 outputs, each `[blocks]`.
/// The last panel, and the last block of each panel, are padded with zeros.
#[derive(Debug)]
pub(crate) struct PackedMatrix<K: MicroKernel> {
    kernel: K,
    outputs: usize,
    inputs: usize,
    panels: Buffer<K::Block>,
}

impl<K: MicroKernel> PackedMatrix<K> {
    /// Returns the number of blocks that a stored matrix is packed into.
    pub(super) fn block_count(matrix: &StoredMatrix<'_>) -> usize {
        matrix.outputs().div_ceil(NR) * matrix.inputs().div_ceil(K::BLOCK_K)
    }

    /// Packs a stored matrix on rayon's current threads.
    ///
    /// # Errors
    /// Returns an error if the system cannot provide the memory.
    pub(crate) fn pack(kernel: K, matrix: &StoredMatrix<'_>) -> io::Result<Self> {
        let (outputs, inputs) = (matrix.outputs(), matrix.inputs());
        let blocks = inputs.div_ceil(K::BLOCK_K);
        let mut panels = Buffer::zeroed(Self::block_count(matrix))?;
        par_chunks_mut(&mut panels, blocks, &|index, panel| {
            let outputs = index * NR..outputs.min((index + 1) * NR);
            let mut rows = [StoredRow::F32(&[]); NR];
            let rows = &mut rows[..outputs.len()];
            // Blocks of other types are dequantised.
            let mut dequantised = [const { Vec::new() }; NR];
            for ((row, output), numbers) in rows.iter_mut().zip(outputs).zip(&mut dequantised) {
                *row = matrix.row(output);
                if row.block_type().is_some_and(|block_type| K::BLOCK_TYPE != Some(block_type)) {
                    *numbers = row.to_le_bytes();
                    *row = StoredRow::F32(numbers);
                }
            }
            kernel.isa().run(
                #[inline(always)]
                || K::pack_rows(rows, panel),
            );
        });
        Ok(Self { kernel, outputs, inputs, panels })
    }

    /// Returns the same matrix with its panels between guard pages.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn guarded(&self, place: super::tests::guard_pages::Place) -> Self {
        Self { panels: self.panels.guarded(place), ..*self }
    }

    pub(crate) fn kernel(&self) -> K {
        self.kernel
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns panel `index`, `[blocks]`.
    pub(crate) fn panel(&self, index: usize) -> &[K::Block] {
        let blocks = self.inputs.div_ceil(K::BLOCK_K);
        &self.panels[index * blocks..(index + 1) * blocks]
    }

    /// Writes the weights of one output, dequantised to F32.
    pub(crate) fn unpack_row(&self, output: usize, out: &mut [f32]) {
        K::unpack_row(self.panel(output / NR), output % NR, &mut out[..self.inputs]);
    }
}

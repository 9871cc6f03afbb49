//! The trait of a micro-kernel: one weight format on one instruction set.

use std::fmt::Debug;
use std::hint::black_box;

use bytemuck::Pod;

use super::arch::Isa;
use super::ggml::BlockType;
use super::stored::StoredRow;
use super::tile::{NR, Prefetch, TileRows};

/// Multiplies packed rows of activations (the lhs) with panels of 16 packed outputs (the rhs).
///
/// A value contains a proof that the machine has the instruction set. A packed matrix stores its
/// micro-kernel, so no other kernel can multiply it.
pub(crate) trait MicroKernel: Copy + Debug + Send + Sync + 'static {
    /// The instruction set.
    type Isa: Isa;
    /// The heights of tile.
    type Rows: TileRows;
    /// The inputs of one row that are multiplied with a block. The packed lhs is `[blocks][mr]` of these.
    type Lhs: Pod + Send + Sync;
    /// One step of a panel, `BLOCK_K` inputs of 16 outputs. A panel is `[blocks]` of these.
    type Block: Pod + Debug + Send + Sync;
    /// Number of inputs of a block. A panel is padded with zeros to a whole number of blocks.
    const BLOCK_K: usize;
    /// The type of blocks that [`pack_rows`](Self::pack_rows) reads as they are.
    const BLOCK_TYPE: Option<BlockType> = None;
    /// Whether [`pack_rows`](Self::pack_rows) reads numbers. If not, it only reads blocks.
    const FROM_NUMBERS: bool = true;
    /// Number of inputs to multiply at a time, a multiple of `BLOCK_K`. The panels' part of these inputs
    /// stays in a near cache while several tiles of rows are multiplied with it.
    const KC: usize;
    /// Number of inputs to multiply at a time if there is only one tile.
    const KC_OF_ONE_TILE: usize = Self::KC;
    /// The prefetch of a projection that multiplies each weight once.
    const PREFETCH: Prefetch;
    /// Whether a projection that multiplies each weight once ignores [`PREFETCH`](Self::PREFETCH), and prefetches the
    /// next part of the inputs while it multiplies a part.
    const PREFETCHES_PARTS: bool = false;
    /// Numbers of the largest lhs that is multiplied at once. A larger one would be read from memory again for each
    /// block of columns.
    const MAX_LHS_NUMBERS: usize = usize::MAX;
    /// With up to this number of tiles, each block of columns prefetches all of the next one. With more, and by
    /// default, each part of the inputs prefetches the next part.
    const MAX_TILES_OF_A_PREFETCH: usize = 0;

    /// Returns the token of the instruction set.
    fn isa(self) -> Self::Isa;

    /// Returns the highest tile whose accumulators stay in registers.
    fn max_mr(self) -> Self::Rows;

    /// Returns the number of panels to multiply at once with many rows. The accumulators of all of them stay in
    /// registers.
    fn panels(self) -> usize;

    /// Returns the number of panels of a block of columns with many rows, a multiple of [`panels`](Self::panels) up
    /// to 4.
    fn panels_of_block(self) -> usize {
        self.panels()
    }

    /// Packs rows of `k` numbers, rounded as the weights are, as `[blocks][mr]`. `lhs` must be all zeros. The
    /// places of numbers past `k` stay 0. If there are fewer than `mr` rows, the places of the missing rows
    /// in `lhs` are not written.
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [Self::Lhs]);

    /// Packs up to 16 rows of a stored matrix into a panel that is all zeros. The rows consist of numbers, or of
    /// blocks of the type [`BLOCK_TYPE`](Self::BLOCK_TYPE).
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Self::Block]);

    /// Writes the first `out.len()` weights of one output of a panel, dequantised to F32.
    fn unpack_row(panel: &[Self::Block], column: usize, out: &mut [f32]);

    /// Adds the product of the lhs and each panel to `sums`, `[panels][mr][16]`. Each sum adds one block
    /// after another, in the order of k.
    fn multiply(
        self,
        lhs: &[Self::Lhs],
        panels: &[&[Self::Block]],
        mr: Self::Rows,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    );

    /// Multiplies parts of several tiles' rows with the same part of the panels, one after another. A tile's first part
    /// replaces its sums, and the others are added to them.
    fn multiply_tiles<'a>(
        self,
        tiles: impl Iterator<Item = TilePart<'a, Self>>,
        panels: &[&[Self::Block]],
    ) {
        for TilePart { lhs, mr, sums, is_first, prefetch } in tiles {
            if is_first {
                sums.fill([0.0; NR]);
            }
            self.multiply(lhs, panels, mr, sums, prefetch);
        }
    }

    /// Gives up registers that the micro-kernel keeps between products. It is called after each block of columns.
    #[inline(always)]
    fn release(self) {}

    /// Returns a row of activations as [`pack_lhs`](Self::pack_lhs) rounds it, for the oracle. Most kernels round to
    /// BF16.
    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        use super::element::Element;
        row.iter().map(|number| <half::bf16 as Element>::round(*number).widen()).collect()
    }

    /// Returns a row of weights as the kernel rounds it, for the oracle, or `None` if it multiplies the numbers as they
    /// are stored.
    #[cfg(test)]
    fn round_weights(_: &[f32]) -> Option<Vec<f32>> {
        None
    }

    /// Multiplies the highest tile `count` times with operands from the nearest cache. Returns the number of
    /// floating-point operations.
    fn exercise(self, count: usize) -> f64 {
        const K: usize = 256;
        let mr = self.max_mr();
        let panel: Vec<Self::Block> = bytemuck::zeroed_vec(K / Self::BLOCK_K);
        let panels = vec![panel.as_slice(); self.panels()];
        let lhs: Vec<Self::Lhs> = bytemuck::zeroed_vec(K / Self::BLOCK_K * mr.rows());
        let mut sums = vec![[0.0; NR]; self.panels() * mr.rows()];
        for _ in 0..count {
            self.multiply(black_box(&lhs), black_box(&panels), mr, &mut sums, Prefetch::NONE);
        }
        black_box(sums);
        (count * 2 * self.panels() * mr.rows() * NR * K) as f64
    }
}

/// A part of the inputs of one tile of rows.
pub(crate) struct TilePart<'a, K: MicroKernel> {
    /// `[blocks][mr]`.
    pub(crate) lhs: &'a [K::Lhs],
    pub(crate) mr: K::Rows,
    /// `[panels][mr][16]`.
    pub(crate) sums: &'a mut [[f32; NR]],
    /// Whether this is the first part of the inputs.
    pub(crate) is_first: bool,
    pub(crate) prefetch: Prefetch,
}

/// Work for any type of micro-kernel. It is a trait because closures cannot be generic.
pub(crate) trait KernelVisitor {
    type Output;

    /// Does the work with a micro-kernel in its own type.
    fn visit<K: MicroKernel>(self, kernel: K) -> Self::Output;
}

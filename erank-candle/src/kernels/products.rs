//! How numbers are multiplied: singly, or BF16 numbers in pairs, or in tiles of pairs.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::bf16;

use super::{Ahead, Element, InstructionSet, LANES};

/// Both sides of a product: rows on the left, panels of 16 columns on the right.
pub(crate) trait Products: Send + Sync + 'static {
    /// What the left side is made of: `DEPTH` numbers.
    type Left: Pod + Default + Send + Sync;
    /// What panels are made of.
    type Right: Element;
    /// Numbers of a column that lie together in a panel.
    const DEPTH: usize;
    /// Numbers of a column are filled up with zeros to a multiple of this.
    const BLOCK: usize = Self::DEPTH;
    /// Panels to multiply at once with many rows: those whose sums are in registers.
    const PANELS: usize = 2;
    /// Inputs to multiply at a time, a multiple of `BLOCK`: so many that the panels' part of them stays
    /// in a near cache while several tiles of rows are multiplied with it.
    const INPUTS: usize = 256;
    /// What a projection has fetched while it multiplies with each weight once.
    const AHEAD_OF_WEIGHTS: Ahead = Ahead::NOTHING;
    /// What attention has fetched while it goes through the cache.
    const AHEAD_OF_CACHE: Ahead = Ahead::NOTHING;

    /// Rows of the tallest tile.
    fn tallest(set: InstructionSet) -> usize {
        set.tallest_tile()
    }

    /// Writes rows of `length` numbers as the left side, `[length / DEPTH][height]` or, of tiles,
    /// `[length / BLOCK][height][BLOCK / DEPTH]`, rounded as the right side is. Rows that are missing
    /// to `height`, and numbers to a multiple of `BLOCK`, are left as they are: 0.
    fn interleave(rows: &[f32], length: usize, height: usize, left: &mut [Self::Left]);

    /// Adds the product of the left side with each panel, `[k / DEPTH][16][DEPTH]`, to sums as
    /// `[panels][height][16]`.
    ///
    /// The height is a power of two up to the tallest tile's; with another one, nothing is added.
    fn multiply(
        set: InstructionSet,
        left: &[Self::Left],
        panels: &[&[Self::Right]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    );

    /// Adds the product of rows of 16 weights, rounded as the right side is, with consecutive panels
    /// `[16 / DEPTH][16][DEPTH]` to sums as `[panels][height][16]`. Weights from number `seen` on are
    /// 0, and what stands there in the panels is left aside as far as it can be.
    ///
    /// The height is one that `multiply` takes.
    fn weigh(
        set: InstructionSet,
        weights: &[[f32; LANES]],
        panels: &[Self::Right],
        seen: usize,
        sums: &mut [[f32; LANES]],
    );
}

/// Where number `k` of column `lane` lies in a panel of this depth.
pub(super) fn place(depth: usize, k: usize, lane: usize) -> usize {
    (k / depth * LANES + lane) * depth + k % depth
}

/// One number at a time, in F32.
#[derive(Debug)]
pub(crate) struct Singles<E>(PhantomData<E>);

impl<E: Element + 'static> Products for Singles<E> {
    type Left = E::Left;
    type Right = E;
    const DEPTH: usize = E::DEPTH;
    const PANELS: usize = 1;
    const INPUTS: usize = 1024;
    const AHEAD_OF_CACHE: Ahead = Ahead { bytes: 4096, step: 64 };

    #[inline(always)]
    fn interleave(rows: &[f32], length: usize, height: usize, left: &mut [E::Left]) {
        for (r, row) in rows.chunks_exact(length).enumerate() {
            for (slots, values) in left.chunks_exact_mut(height).zip(row.chunks(E::DEPTH)) {
                for (slot, value) in slots[r].as_mut().iter_mut().zip(values) {
                    *slot = E::round(*value).widen();
                }
            }
        }
    }

    fn multiply(
        set: InstructionSet,
        left: &[E::Left],
        panels: &[&[E]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        set.tiles_of_singles(left, panels, height, sums, ahead);
    }

    #[inline(always)]
    fn weigh(
        set: InstructionSet,
        weights: &[[f32; LANES]],
        panels: &[E],
        seen: usize,
        sums: &mut [[f32; LANES]],
    ) {
        let mut left = [E::Left::default(); LANES * LANES];
        let left = &mut left[..LANES / E::DEPTH * weights.len()];
        Self::interleave(weights.as_flattened(), LANES, weights.len(), left);
        let left = &left[..seen.div_ceil(E::DEPTH) * weights.len()];
        // One panel at a time, so that memory is read in order.
        let panels = panels.chunks_exact(LANES * LANES);
        for (panel, sums) in panels.zip(sums.chunks_exact_mut(weights.len())) {
            set.tiles_of_singles(left, &[panel], weights.len(), sums, Self::AHEAD_OF_CACHE);
        }
    }
}

/// Two BF16 numbers at a time, for sets that multiply them so.
#[derive(Debug)]
pub(crate) struct Pairs;

impl Products for Pairs {
    type Left = [bf16; 2];
    type Right = bf16;
    const DEPTH: usize = 2;
    const AHEAD_OF_WEIGHTS: Ahead = Ahead { bytes: 2048, step: 64 };

    #[inline(always)]
    fn interleave(rows: &[f32], length: usize, height: usize, left: &mut [[bf16; 2]]) {
        for (r, row) in rows.chunks_exact(length).enumerate() {
            let (pairs, last) = row.as_chunks::<2>();
            for (slots, [first, second]) in left.chunks_exact_mut(height).zip(pairs) {
                slots[r] = [Element::round(*first), Element::round(*second)];
            }
            if let ([last], Some(slots)) = (last, left.chunks_exact_mut(height).nth(pairs.len())) {
                slots[r] = [Element::round(*last), bf16::ZERO];
            }
        }
    }

    fn multiply(
        set: InstructionSet,
        left: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        set.tiles_of_pairs(left, panels, height, sums, ahead);
    }

    #[inline(always)]
    fn weigh(
        set: InstructionSet,
        weights: &[[f32; LANES]],
        panels: &[bf16],
        seen: usize,
        sums: &mut [[f32; LANES]],
    ) {
        let mut rounded = [[bf16::ZERO; LANES]; LANES];
        let rounded = &mut rounded[..weights.len()];
        for (rounded, weights) in rounded.iter_mut().zip(weights) {
            for (rounded, weight) in rounded.iter_mut().zip(weights) {
                *rounded = Element::round(*weight);
            }
        }
        set.weigh(rounded, panels, seen, sums);
    }
}

/// Pairs of BF16 numbers in tiles of 32 numbers of up to 16 rows, for sets that multiply them so.
#[derive(Debug)]
pub(crate) struct Tiles;

impl Products for Tiles {
    type Left = [bf16; 2];
    type Right = bf16;
    const DEPTH: usize = 2;
    const BLOCK: usize = 32;
    const INPUTS: usize = 512;
    const AHEAD_OF_WEIGHTS: Ahead = Ahead { bytes: 2048, step: 64 };

    fn tallest(set: InstructionSet) -> usize {
        set.tallest_of_tiles()
    }

    #[inline(always)]
    fn interleave(rows: &[f32], length: usize, height: usize, left: &mut [[bf16; 2]]) {
        let blocks = left.chunks_exact_mut(height * Self::BLOCK / Self::DEPTH);
        for (index, block) in blocks.enumerate() {
            let block = block.as_flattened_mut().chunks_exact_mut(Self::BLOCK);
            for (out, row) in block.zip(rows.chunks_exact(length)) {
                let numbers = &row[length.min(index * Self::BLOCK)..];
                out.iter_mut()
                    .zip(numbers)
                    .for_each(|(out, number)| *out = Element::round(*number));
            }
        }
    }

    fn multiply(
        set: InstructionSet,
        left: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        set.tiles(left, panels, height, sums, ahead);
    }

    fn weigh(
        set: InstructionSet,
        weights: &[[f32; LANES]],
        panels: &[bf16],
        seen: usize,
        sums: &mut [[f32; LANES]],
    ) {
        Pairs::weigh(set, weights, panels, seen, sums);
    }
}

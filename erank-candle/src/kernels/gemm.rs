//! Projections: rows of activations times packed weights, on rayon's current threads.
//!
//! ```text
//! for each block of columns (in parallel), each row:
//!     y[row][column] = epilogue(Σ_k norm(x[row])[k] · weights[column][k])
//! ```
//!
//! The code differs from that in these points:
//!
//! 1. Rows are normalised, rounded and packed once, before the columns are computed. They form the lhs, in
//!    tiles of up to MR rows.
//! 2. The inputs are divided into parts of KC. The panels' part stays in the nearer caches while it is
//!    multiplied with several tiles of rows. During these products, the next part is prefetched.
//! 3. Several panels are multiplied at once, and share each load of the lhs. With few rows, more panels are
//!    multiplied at once, because each has fewer accumulators.
//! 4. The panels of two matrices can be multiplied side by side, and the epilogue gets both sums.
//! 5. Rows that are too many for a near cache are multiplied in several passes.
//! 6. Large outputs are written past the caches. Outputs that are added to are prefetched during the last part.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use bytemuck::Zeroable;

use super::arch::{Isa, features};
use super::column_blocks::{ColumnBlock, Columns, par_column_blocks};
use super::micro_kernel::{MicroKernel, TilePart};
use super::norm::{Norm, silu};
use super::packed_matrix::PackedMatrix;
use super::parallel::par_chunks_mut;
use super::tile::{NR, Prefetch, SumRow, TileRows};

/// From this number of rows on, `MicroKernel::panels` are multiplied at once.
const MANY_ROWS: usize = 8;
/// Panels that are multiplied at once with fewer rows, and panels of the widest block of columns.
const MAX_PANELS: usize = 4;
/// Tiles of rows that are multiplied with a part of the panels while it is in a near cache.
const TILES_AT_ONCE: usize = 8;
/// Outputs of more bytes are written past the caches, which do not hold them until they are read.
const UNCACHED_BYTES: usize = 1 << 22;

/// A packed matrix of any format. The code above the formats uses matrices only through this trait.
///
/// `x` is `[rows][inputs]`, and `y` has one column for each output of the matrix. Each method is one virtual
/// call for a whole projection.
pub(super) trait PackedWeights: Any + Debug + Send + Sync {
    fn outputs(&self) -> usize;

    fn inputs(&self) -> usize;

    /// Writes the weights of one output, dequantised to F32.
    fn unpack_row(&self, output: usize, out: &mut [f32]);

    /// Computes `y = norm(x) · Wᵀ`, or `y = x · Wᵀ` without a norm.
    fn project(&self, x: &[f32], norm: Option<&Norm>, y: Columns<'_>);

    /// Computes `y += x · Wᵀ`.
    fn project_add(&self, x: &[f32], y: Columns<'_>);

    /// Computes `y = silu(norm(x) · Wᵀ) · (norm(x) · Upᵀ)` in one pass, if `up` has the micro-kernel and
    /// the shape of this matrix. Returns whether it did.
    fn gate_up(&self, up: &dyn PackedWeights, x: &[f32], norm: &Norm, y: Columns<'_>) -> bool;
}

impl<K: MicroKernel> PackedWeights for PackedMatrix<K> {
    fn outputs(&self) -> usize {
        self.outputs()
    }

    fn inputs(&self) -> usize {
        self.inputs()
    }

    fn unpack_row(&self, output: usize, out: &mut [f32]) {
        self.unpack_row(output, out);
    }

    fn project(&self, x: &[f32], norm: Option<&Norm>, y: Columns<'_>) {
        multiply(x, norm, &[self], y, Epilogue::Assign);
    }

    fn project_add(&self, x: &[f32], y: Columns<'_>) {
        multiply(x, None, &[self], y, Epilogue::Add);
    }

    fn gate_up(&self, up: &dyn PackedWeights, x: &[f32], norm: &Norm, y: Columns<'_>) -> bool {
        let up: &dyn Any = up;
        let Some(up) = up.downcast_ref::<Self>() else { return false };
        if (up.outputs(), up.inputs()) != (self.outputs(), self.inputs()) {
            return false;
        }
        multiply(x, Some(norm), &[self, up], y, Epilogue::SwiGlu);
        true
    }
}

/// The operation that a projection applies to its sums.
#[derive(Debug, Clone, Copy)]
pub(super) enum Epilogue {
    /// `y = sum` of one matrix.
    Assign,
    /// `y += sum` of one matrix.
    Add,
    /// `y = silu(gate) · up` of two matrices, the gate and the up projection.
    SwiGlu,
}

/// Multiplies with one or two matrices of the same shape, as many as the epilogue takes.
///
/// # Panics
/// Panics if the number of columns of `y` is not the number of outputs of a matrix.
pub(super) fn multiply<K: MicroKernel>(
    x: &[f32],
    norm: Option<&Norm>,
    matrices: &[&PackedMatrix<K>],
    y: Columns<'_>,
    epilogue: Epilogue,
) {
    let Some(first) = matrices.first() else { return };
    let (outputs, inputs) = (first.outputs(), first.inputs());
    assert_eq!(y.range.len(), outputs, "columns and outputs");
    let rows = x.len() / inputs;
    // An lhs that exceeds a near cache would be read from memory again for each block of columns.
    let tile = first.kernel().max_mr().rows();
    let most_rows = (K::MAX_LHS_NUMBERS / inputs / tile * tile).max(tile);
    let passes = rows.div_ceil(most_rows).max(1);
    let height = rows.div_ceil(passes).next_multiple_of(tile);
    let Columns { matrix, stride, range } = y;
    let is_uncached = size_of_val(matrix) > UNCACHED_BYTES;
    let parts = x.chunks(height * inputs).zip(matrix.chunks_mut(height * stride));
    for (x, matrix) in parts {
        let y = Columns { matrix, stride, range: range.clone() };
        multiply_at_once(x, norm, matrices, y, epilogue, is_uncached);
    }
}

/// Multiplies rows whose lhs is small enough for a near cache. `is_uncached` says whether outputs are written past the
/// caches.
fn multiply_at_once<K: MicroKernel>(
    x: &[f32],
    norm: Option<&Norm>,
    matrices: &[&PackedMatrix<K>],
    y: Columns<'_>,
    epilogue: Epilogue,
    is_uncached: bool,
) {
    let Some(first) = matrices.first() else { return };
    let (kernel, inputs) = (first.kernel(), first.inputs());
    let rows = x.len() / inputs;
    let mr = K::Rows::holding(rows.min(kernel.max_mr().rows())).rows();
    let blocks = inputs.div_ceil(K::BLOCK_K);
    // `[tiles][blocks][mr]`.
    let lhs_size = blocks * mr;
    let mut lhs: Vec<K::Lhs> = bytemuck::zeroed_vec(rows.div_ceil(mr) * lhs_size);
    par_chunks_mut(&mut lhs, lhs_size, &|tile, lhs| {
        let first = tile * mr * inputs;
        pack_lhs(kernel, &x[first..x.len().min(first + mr * inputs)], inputs, norm, lhs);
    });

    let all_tiles = rows.div_ceil(mr);
    let (at_once, of_block) = match rows < MANY_ROWS {
        true => (MAX_PANELS, MAX_PANELS),
        false => (kernel.panels(), kernel.panels_of_block()),
    };
    let panels_of_each = of_block.div_ceil(matrices.len());
    par_column_blocks(y, panels_of_each * NR, &|sums, index, mut y| {
        let first = index * panels_of_each;
        let count = y.columns().div_ceil(NR);
        // By matrix, then by column.
        let mut panels: [&[K::Block]; MAX_PANELS] = Default::default();
        for (n, matrix) in matrices.iter().enumerate() {
            for (i, panel) in panels[n * count..][..count].iter_mut().enumerate() {
                *panel = matrix.panel(first + i);
            }
        }
        let panels = &panels[..matrices.len() * count];
        for (group, tiles) in lhs.chunks(TILES_AT_ONCE * lhs_size).enumerate() {
            let first_row = group * TILES_AT_ONCE * mr;
            let rows_of = |tile: usize| {
                let first = first_row + tile * mr;
                first..rows.min(first + mr)
            };
            let tiles = tiles.chunks_exact(lhs_size);
            // `[tiles][matrices][columns][mr]`.
            let sums_size = panels.len() * mr;
            sums.resize(tiles.len() * sums_size, SumRow::zeroed());
            let sums: &mut [[f32; NR]] = bytemuck::cast_slice_mut(sums);
            for (index, panels) in panels.chunks(at_once).enumerate() {
                let first_panel = index * at_once;
                let kc = if all_tiles == 1 { K::KC_OF_ONE_TILE } else { K::KC };
                for start in (0..blocks).step_by(kc / K::BLOCK_K) {
                    let end = blocks.min(start + kc / K::BLOCK_K);
                    let mut parts: [&[K::Block]; MAX_PANELS] = Default::default();
                    for (part, panel) in parts.iter_mut().zip(panels) {
                        *part = &panel[start..end];
                    }
                    let parts = &parts[..panels.len()];
                    let part = Part { panels: panels_of_each, blocks, start, end };
                    let (first_tile, count) = (first_row / mr, tiles.len());
                    let all_sums = sums.chunks_exact_mut(sums_size);
                    let tiles =
                        tiles.clone().zip(all_sums).enumerate().map(|(tile, (lhs, sums))| {
                            let mr = K::Rows::holding(rows_of(tile).len());
                            let height = mr.rows();
                            if let Epilogue::Add = epilogue
                                && end == blocks
                            {
                                let columns = first_panel * NR..(first_panel + parts.len()) * NR;
                                y.prefetch(rows_of(tile), columns);
                            }
                            TilePart {
                                lhs: &lhs[start * height..end * height],
                                mr,
                                sums: &mut sums[first_panel * height..][..parts.len() * height],
                                is_first: start == 0,
                                prefetch: part.prefetch::<K>(tile, first_tile, count, all_tiles),
                            }
                        });
                    kernel.multiply_tiles(tiles, parts);
                }
            }
            for (tile, sums) in sums.chunks_exact_mut(sums_size).enumerate() {
                let rows = rows_of(tile);
                let height = K::Rows::holding(rows.len()).rows();
                kernel.isa().run(
                    #[inline(always)]
                    || finish(&mut y, rows, height, sums, epilogue, is_uncached),
                );
            }
            features::finish_uncached();
        }
        kernel.release();
    });
}

/// A part of the inputs of a block of columns.
#[derive(Clone, Copy)]
struct Part {
    /// Panels of each matrix in a block of columns.
    panels: usize,
    /// Blocks of a panel.
    blocks: usize,
    /// The first block of the part.
    start: usize,
    /// The block after the last one of the part.
    end: usize,
}

impl Part {
    /// Returns the prefetch while a tile is multiplied. The tile is number `tile` of a group of `count`, which begins
    /// with tile `first_tile` of `all_tiles`.
    fn prefetch<K: MicroKernel>(
        self,
        tile: usize,
        first_tile: usize,
        count: usize,
        all_tiles: usize,
    ) -> Prefetch {
        if all_tiles == 1 && !K::PREFETCHES_PARTS {
            return K::PREFETCH;
        }
        let bytes = |blocks: usize| blocks * size_of::<K::Block>();
        let to_next_columns = bytes(self.panels * self.blocks - self.start);
        if all_tiles <= K::MAX_TILES_OF_A_PREFETCH {
            // The next block of columns, spread over all tiles of this one.
            let before = (first_tile + tile) * bytes(self.blocks) + bytes(self.start);
            let distance = to_next_columns + before / all_tiles;
            return Prefetch { distance, stride: 64 / all_tiles };
        }
        // The next part, spread over this group of tiles.
        let size = bytes(self.end - self.start);
        let to_next = if self.end == self.blocks { to_next_columns } else { size };
        Prefetch { distance: to_next + tile * size / count, stride: 64 / count }
    }
}

/// Packs rows as the lhs of a tile, normalised if there is a norm.
fn pack_lhs<K: MicroKernel>(
    kernel: K,
    rows: &[f32],
    inputs: usize,
    norm: Option<&Norm>,
    lhs: &mut [K::Lhs],
) {
    let mr = K::Rows::holding(rows.len() / inputs).rows();
    let lhs = &mut lhs[..inputs.div_ceil(K::BLOCK_K) * mr];
    let mut normed = vec![0.0; if norm.is_some() { rows.len() } else { 0 }];
    kernel.isa().run(
        #[inline(always)]
        || {
            let mut rows = rows;
            if let Some(norm) = norm {
                for (out, row) in normed.chunks_exact_mut(inputs).zip(rows.chunks_exact(inputs)) {
                    norm.apply(row, out);
                }
                rows = &normed;
            }
            K::pack_lhs(rows, inputs, mr, lhs);
        },
    );
}

/// Applies the epilogue to some rows of a block of columns, with their sums as `[matrices][columns][mr]`.
#[inline(always)]
fn finish(
    y: &mut ColumnBlock<'_>,
    rows: Range<usize>,
    mr: usize,
    sums: &mut [[f32; NR]],
    epilogue: Epilogue,
    is_uncached: bool,
) {
    let columns = y.columns().div_ceil(NR);
    if let Epilogue::SwiGlu = epilogue {
        // For all rows in one loop, because the compiler does not vectorise a loop over 16 numbers with a division.
        let (gate, up) = sums.split_at_mut(columns * mr);
        for (gate, up) in gate.as_flattened_mut().iter_mut().zip(up.as_flattened()) {
            *gate = silu(*gate) * up;
        }
    }
    for (index, row) in rows.enumerate() {
        let sums = |column: usize| &sums[column * mr + index];
        let (whole, rest) = y.row(row).as_chunks_mut::<NR>();
        let count = whole.len();
        for (column, y) in whole.iter_mut().enumerate() {
            match epilogue {
                Epilogue::Assign | Epilogue::SwiGlu if is_uncached => {
                    features::write_uncached(y, sums(column));
                }
                _ => finish_columns(y, sums(column), epilogue),
            }
        }
        if !rest.is_empty() {
            // A copy of all columns. With their number in a variable, each copy would be a call, which took a tenth of
            // the time of a prompt.
            let mut all = [0.0; NR];
            all[..rest.len()].copy_from_slice(rest);
            finish_columns(&mut all, sums(count), epilogue);
            rest.copy_from_slice(&all[..rest.len()]);
        }
    }
}

/// Assigns or adds the sums of the columns of a panel.
#[inline(always)]
fn finish_columns(y: &mut [f32; NR], sums: &[f32; NR], epilogue: Epilogue) {
    match epilogue {
        Epilogue::Assign | Epilogue::SwiGlu => *y = *sums,
        Epilogue::Add => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
    }
}

#[cfg(test)]
#[path = "tests/gemm.rs"]
mod tests;

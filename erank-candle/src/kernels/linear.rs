//! Projections: rows times packed weights, on rayon's current threads.
//!
//! ```text
//! for each tile of rows (in parallel): normalise, round, interleave
//! for each block of panels (in parallel), each group of tiles:
//!     for each few panels, part of the inputs, and tile: sums += tile(rows, panels) over the part
//!     for each row and lane: epilogue(y[row][output], sums[row][lane])
//! ```
//!
//! The panels' part of the inputs stays in the nearer caches while a group is multiplied with it, and the
//! next part is fetched meanwhile. As many panels are multiplied at once as share what is read of the rows.
//!
//! A block's panels are neighbouring ones of one matrix, or the same ones of two matrices whose products
//! go into one output.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::{ColumnBlock, par_columns};
use super::norm::Norm;
use super::products::Products;
use super::{Ahead, InstructionSet, LANES, PackedMatrix, PackedWeights};

/// From so many rows on, fewer panels are multiplied at once: those whose sums are in registers.
const MANY_ROWS: usize = 8;
/// Panels that are multiplied at once with fewer rows.
const PANELS_OF_FEW_ROWS: usize = 4;
/// Tiles of rows that are multiplied with a part of the panels while it is in a near cache.
const GROUP: usize = 8;

/// `norm(x) · Wᵀ` for `x` as `[rows][inputs]`, or `x · Wᵀ` without a norm: calls `epilogue(element of
/// y, product)` once for each element of `y`, `[rows][outputs]`.
///
/// An epilogue that is `#[inline(always)]` is compiled with the set's instructions.
pub(crate) fn multiply(
    set: InstructionSet,
    x: &[f32],
    norm: Option<&Norm>,
    weights: &PackedWeights,
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, f32) + Sync,
) {
    macro_rules! multiply {
        ($matrix:expr) => {
            multiply_matrices(
                set,
                x,
                norm,
                [$matrix],
                y,
                #[inline(always)]
                |y, [product]| epilogue(y, product),
            )
        };
    }
    match weights {
        PackedWeights::F32(matrix) => multiply!(matrix),
        PackedWeights::Bf16(matrix) => multiply!(matrix),
        PackedWeights::Bf16Pairs(matrix) => multiply!(matrix),
        PackedWeights::Bf16Tiles(matrix) => multiply!(matrix),
    }
}

/// As [`multiply`], with the products of two matrices of the same shape: `epilogue(element of y,
/// [first product, second product])`.
///
/// # Panics
/// If the two are not packed alike.
pub(crate) fn multiply_both(
    set: InstructionSet,
    x: &[f32],
    norm: Option<&Norm>,
    weights: [&PackedWeights; 2],
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, [f32; 2]) + Sync,
) {
    use PackedWeights::{Bf16, Bf16Pairs, Bf16Tiles, F32};
    match weights {
        [F32(a), F32(b)] => multiply_matrices(set, x, norm, [a, b], y, epilogue),
        [Bf16(a), Bf16(b)] => multiply_matrices(set, x, norm, [a, b], y, epilogue),
        [Bf16Pairs(a), Bf16Pairs(b)] => multiply_matrices(set, x, norm, [a, b], y, epilogue),
        [Bf16Tiles(a), Bf16Tiles(b)] => multiply_matrices(set, x, norm, [a, b], y, epilogue),
        _ => unreachable!("one model's weights are packed alike"),
    }
}

fn multiply_matrices<P: Products, const N: usize>(
    set: InstructionSet,
    x: &[f32],
    norm: Option<&Norm>,
    matrices: [&PackedMatrix<P>; N],
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, [f32; N]) + Sync,
) {
    let Some((outputs, inputs)) = matrices.first().map(|m| (m.outputs(), m.inputs())) else {
        return;
    };
    let rows = x.len() / inputs;
    let tallest = P::tallest(set).min(rows.next_power_of_two());
    let padded = inputs.next_multiple_of(P::BLOCK);
    // `[tiles][padded / DEPTH][height]`.
    let size = padded / P::DEPTH * tallest;
    let mut left: Vec<P::Left> = bytemuck::zeroed_vec(rows.div_ceil(tallest) * size);
    left.par_chunks_mut(size)
        .zip(x.par_chunks(tallest * inputs))
        .for_each(|(left, rows)| left_side::<P>(set, rows, inputs, norm, left));

    let at_once = if rows < MANY_ROWS { PANELS_OF_FEW_ROWS } else { P::PANELS };
    let panels_of_each = at_once.div_ceil(N);
    par_columns(y, outputs, panels_of_each * LANES, Vec::new, |sums, index, mut y| {
        let first = index * panels_of_each;
        let count = y.columns().div_ceil(LANES);
        // By matrix, then by column.
        let mut panels: [&[P::Right]; PANELS_OF_FEW_ROWS] = Default::default();
        for (n, matrix) in matrices.iter().enumerate() {
            for (i, panel) in panels[n * count..][..count].iter_mut().enumerate() {
                *panel = matrix.panel(first + i);
            }
        }
        let panels = &panels[..N * count];
        for (group, tiles) in left.chunks(GROUP * size).enumerate() {
            let first_row = group * GROUP * tallest;
            let rows_of = |tile: usize| (rows - first_row - tile * tallest).min(tallest);
            let tiles = tiles.chunks_exact(size);
            // `[tiles][matrices][columns][height]`.
            let sums_size = panels.len() * tallest;
            sums.clear();
            sums.resize(tiles.len() * sums_size, [0.0; LANES]);
            for (index, panels) in panels.chunks(at_once).enumerate() {
                let first_panel = index * at_once;
                for start in (0..padded).step_by(P::INPUTS) {
                    let end = padded.min(start + P::INPUTS);
                    let mut parts: [&[P::Right]; PANELS_OF_FEW_ROWS] = Default::default();
                    for (part, panel) in parts.iter_mut().zip(panels) {
                        *part = &panel[start * LANES..end * LANES];
                    }
                    let parts = &parts[..panels.len()];
                    for (tile, (left, sums)) in
                        tiles.clone().zip(sums.chunks_exact_mut(sums_size)).enumerate()
                    {
                        let height = rows_of(tile).next_power_of_two();
                        let left = &left[start / P::DEPTH * height..end / P::DEPTH * height];
                        let sums = &mut sums[first_panel * height..][..parts.len() * height];
                        let ahead = match tiles.len() {
                            1 => P::AHEAD_OF_WEIGHTS,
                            count => {
                                let part = size_of_val(parts[0]);
                                Ahead { bytes: part + tile * part / count, step: 64 / count }
                            }
                        };
                        P::multiply(set, left, parts, height, sums, ahead);
                    }
                }
            }
            for (tile, sums) in sums.chunks_exact(sums_size).enumerate() {
                let rows = first_row + tile * tallest..first_row + tile * tallest + rows_of(tile);
                set.run(
                    #[inline(always)]
                    || finish(&mut y, rows, sums, &epilogue),
                );
            }
        }
    });
}

/// Writes rows as the left side of a product, normalised if there is a norm.
fn left_side<P: Products>(
    set: InstructionSet,
    rows: &[f32],
    inputs: usize,
    norm: Option<&Norm>,
    left: &mut [P::Left],
) {
    let height = (rows.len() / inputs).next_power_of_two();
    let left = &mut left[..inputs.next_multiple_of(P::BLOCK) / P::DEPTH * height];
    let mut normed = vec![0.0; if norm.is_some() { rows.len() } else { 0 }];
    set.run(
        #[inline(always)]
        || {
            let mut rows = rows;
            if let Some(norm) = norm {
                for (out, row) in normed.chunks_exact_mut(inputs).zip(rows.chunks_exact(inputs)) {
                    norm.apply(row, out);
                }
                rows = &normed;
            }
            P::interleave(rows, inputs, height, left);
        },
    );
}

/// Calls the epilogue for some rows of a block, with their sums as `[matrices][columns][height]`.
#[inline(always)]
fn finish<const N: usize>(
    y: &mut ColumnBlock<'_>,
    rows: Range<usize>,
    sums: &[[f32; LANES]],
    epilogue: impl Fn(&mut f32, [f32; N]),
) {
    let (height, columns) = (rows.len().next_power_of_two(), y.columns().div_ceil(LANES));
    for (place, row) in rows.enumerate() {
        for (column, y) in y.row(row).chunks_mut(LANES).enumerate() {
            let sums: [&[f32; LANES]; N] =
                std::array::from_fn(|n| &sums[(n * columns + column) * height + place]);
            if let Ok(y) = <&mut [f32; LANES]>::try_from(&mut *y) {
                // On copies, which do not overlap, the compiler computes all lanes at once.
                let (mut all, sums) = (*y, sums.map(|sums| *sums));
                for (lane, y) in all.iter_mut().enumerate() {
                    epilogue(y, std::array::from_fn(|n| sums[n][lane]));
                }
                *y = all;
                continue;
            }
            for (lane, y) in y.iter_mut().enumerate() {
                epilogue(y, sums.map(|sums| sums[lane]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Element, reference};
    use super::*;
    use half::bf16;

    fn element(output: usize, input: usize) -> f32 {
        ((output * 31 + input * 17) % 23) as f32 / 16.0 - 0.7
    }

    fn other_element(output: usize, input: usize) -> f32 {
        element(output + 5, input) / 3.0
    }

    /// The ways that weights can be packed for a set.
    fn packings(
        set: InstructionSet,
        outputs: usize,
        inputs: usize,
        element: fn(usize, usize) -> f32,
    ) -> Vec<PackedWeights> {
        let rounded = |output, input| bf16::round(element(output, input));
        let mut packings = vec![
            PackedWeights::F32(PackedMatrix::pack(outputs, inputs, element).expect("room")),
            PackedWeights::Bf16(PackedMatrix::pack(outputs, inputs, rounded).expect("room")),
        ];
        if set.multiplies_pairs() {
            let pairs = PackedMatrix::pack(outputs, inputs, rounded).expect("room");
            packings.push(PackedWeights::Bf16Pairs(pairs));
        }
        if set.multiplies_tiles() {
            packings.push(PackedWeights::bf16(set, outputs, inputs, rounded).expect("room"));
        }
        packings
    }

    #[test]
    fn odd_shapes_agree_with_the_oracle_on_every_set() {
        for set in InstructionSet::available() {
            for (rows, inputs, outputs) in [
                (1, 1, 1),
                (1, 64, 17),
                (2, 5, 16),
                (3, 33, 31),
                (7, 16, 50),
                (9, 100, 48),
                (17, 3, 1),
                (40, 70, 33),
                (75, 600, 33),
            ] {
                let firsts = packings(set, outputs, inputs, element);
                let seconds = packings(set, outputs, inputs, other_element);
                for (first, second) in firsts.iter().zip(&seconds) {
                    check(set, rows, first, second);
                }
            }
        }
    }

    fn check(set: InstructionSet, rows: usize, first: &PackedWeights, second: &PackedWeights) {
        let (inputs, outputs) = (first.inputs(), first.outputs());
        let x: Vec<f32> = reference::numbers(rows * inputs, 5).collect();
        let mut y = vec![f32::NAN; rows * outputs];
        multiply(set, &x, None, first, &mut y, |y, product| *y = product);
        let mut both = vec![[f32::NAN; 2]; rows * outputs];
        // Both products, one after the other, as an epilogue sees them together.
        for n in 0..2 {
            let mut y = vec![f32::NAN; rows * outputs];
            multiply_both(set, &x, None, [first, second], &mut y, |y, products| *y = products[n]);
            both.iter_mut().zip(y).for_each(|(both, y)| both[n] = y);
        }
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for output in 0..outputs {
                let [a, b] = both[row * outputs + output];
                assert_eq!(a, y[row * outputs + output]);
                for (product, weights) in [(a, first), (b, second)] {
                    let is_f32 = matches!(weights, PackedWeights::F32(_));
                    let round = |x: &f32| if is_f32 { *x } else { bf16::from_f32(*x).to_f32() };
                    let mut matrix_row = Vec::new();
                    weights.extend_with_row(output, &mut matrix_row);
                    let exact = reference::dot(0.0, x.iter().map(round).zip(matrix_row));
                    exact.assert_close(product, inputs + 1, set.name());
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        for set in InstructionSet::available() {
            for weights in packings(set, 40, 71, element) {
                let x: Vec<f32> = reference::numbers(11 * 71, 6).collect();
                let product = |x: &[f32]| {
                    let mut y = vec![0.0; x.len() / 71 * 40];
                    multiply(set, x, None, &weights, &mut y, |y, product| *y = product);
                    y
                };
                let all = product(&x);
                for (row, x) in x.chunks_exact(71).enumerate() {
                    let alone = product(x);
                    assert_eq!(alone, all[row * 40..(row + 1) * 40], "{} row {row}", set.name());
                }
            }
        }
    }
}

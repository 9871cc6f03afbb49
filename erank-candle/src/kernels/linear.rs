//! Projections: rows times packed weights, on rayon's current threads.
//!
//! ```text
//! for each block of panels (in parallel), each tile of rows:
//!     sums = tile(rows, panels)
//!     for each row and lane: epilogue(y[row][output], sums[row][lane])
//! ```
//!
//! A block has two panels, so that what is read of the rows is used twice: two neighbouring ones of
//! one matrix, or the same one of two matrices whose products go into one output.

use half::bf16;
use rayon::prelude::*;

use super::columns::par_columns;
use super::{Element, InstructionSet, LANES, PackedMatrix, PackedWeights};

/// Rows of the tallest tile of any set.
const TALLEST: usize = 8;

/// `x · Wᵀ` for `x` as `[rows][inputs]`: calls `epilogue(element of y, product)` once for each
/// element of `y`, `[rows][outputs]`.
pub(crate) fn multiply(
    set: InstructionSet,
    x: &[f32],
    weights: &PackedWeights,
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, f32) + Sync,
) {
    let epilogue = |y: &mut f32, [product]: [f32; 1]| epilogue(y, product);
    match weights {
        PackedWeights::F32(matrix) => multiply_matrices(set, x, [matrix], y, epilogue),
        PackedWeights::Bf16(matrix) => multiply_matrices(set, x, [matrix], y, epilogue),
        PackedWeights::Bf16Pairs(matrix) => multiply_matrices(set, x, [matrix], y, epilogue),
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
    weights: [&PackedWeights; 2],
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, [f32; 2]) + Sync,
) {
    use PackedWeights::{Bf16, Bf16Pairs, F32};
    match weights {
        [F32(a), F32(b)] => multiply_matrices(set, x, [a, b], y, epilogue),
        [Bf16(a), Bf16(b)] => multiply_matrices(set, x, [a, b], y, epilogue),
        [Bf16Pairs(a), Bf16Pairs(b)] => multiply_matrices(set, x, [a, b], y, epilogue),
        _ => unreachable!("one model's weights are packed alike"),
    }
}

fn multiply_matrices<M: Packed, const N: usize>(
    set: InstructionSet,
    x: &[f32],
    matrices: [&M; N],
    y: &mut [f32],
    epilogue: impl Fn(&mut f32, [f32; N]) + Sync,
) {
    let Some((outputs, inputs)) = matrices.first().map(|matrix| matrix.shape()) else { return };
    let rows = x.len() / inputs;
    let tallest = set.tallest_tile();
    let tiles: Vec<Vec<M::Left>> = x
        .par_chunks(tallest * inputs)
        .map(|rows| M::left(rows, inputs, set.tile_height(rows.len() / inputs)))
        .collect();

    // Panels of one matrix that make a block.
    let panels_of_each = 2 / N;
    par_columns(y, outputs, panels_of_each * LANES, |index, mut y| {
        let first = index * panels_of_each;
        let mut sums = [[[0.0; LANES]; TALLEST]; 2];
        for (tile, first_row) in tiles.iter().zip((0..rows).step_by(tallest)) {
            let height = (rows - first_row).min(tallest);
            let [a, b] = &mut sums;
            let sums_of_tile = [&mut a[..height], &mut b[..height]];
            match matrices {
                _ if N == 2 => {
                    let panels = [matrices[0].panel(first), matrices[N - 1].panel(first)];
                    M::tile(set, tile, panels, sums_of_tile);
                }
                _ if y.columns() > LANES => {
                    let panels = [matrices[0].panel(first), matrices[0].panel(first + 1)];
                    M::tile(set, tile, panels, sums_of_tile);
                }
                _ => {
                    let [sums_of_tile, _] = sums_of_tile;
                    M::tile(set, tile, [matrices[0].panel(first)], [sums_of_tile]);
                }
            }
            // By panel of the output, what the epilogue joins.
            let by_panel: [[&[[f32; LANES]; TALLEST]; N]; 2] =
                std::array::from_fn(|panel| std::array::from_fn(|n| &sums[(panel * N + n).min(1)]));
            for row in 0..height {
                for (y, sums) in y.row(first_row + row).chunks_mut(LANES).zip(by_panel) {
                    for (lane, y) in y.iter_mut().enumerate() {
                        epilogue(y, sums.map(|sums| sums[row][lane]));
                    }
                }
            }
        }
    });
}

/// A packed matrix with the tile that reads it.
trait Packed: Sync {
    /// What the left side of a product is made of.
    type Left: Send + Sync;
    type Element;

    /// `(outputs, inputs)`.
    fn shape(&self) -> (usize, usize);
    fn panel(&self, index: usize) -> &[Self::Element];

    /// Up to `height` rows as the tile reads them.
    fn left(rows: &[f32], inputs: usize, height: usize) -> Vec<Self::Left>;

    /// The products of a tile with each of the panels. There are as many rows of sums as of the
    /// left side, but for those that fill it up to its height.
    fn tile<const PANELS: usize>(
        set: InstructionSet,
        left: &[Self::Left],
        panels: [&[Self::Element]; PANELS],
        sums: [&mut [[f32; LANES]]; PANELS],
    );
}

impl<E: Element> Packed for PackedMatrix<E> {
    type Left = f32;
    type Element = E;

    fn shape(&self) -> (usize, usize) {
        (self.outputs(), self.inputs())
    }

    fn panel(&self, index: usize) -> &[E] {
        self.panel(index)
    }

    fn left(rows: &[f32], inputs: usize, height: usize) -> Vec<f32> {
        let mut left = vec![0.0; inputs * height];
        for (r, row) in rows.chunks_exact(inputs).enumerate() {
            for (slot, value) in left.iter_mut().skip(r).step_by(height).zip(row) {
                *slot = E::round(*value).widen();
            }
        }
        left
    }

    fn tile<const PANELS: usize>(
        set: InstructionSet,
        left: &[f32],
        panels: [&[E]; PANELS],
        sums: [&mut [[f32; LANES]]; PANELS],
    ) {
        for (panel, sums) in panels.into_iter().zip(sums) {
            let mut padded = [[0.0; LANES]; TALLEST];
            let height = set.tile_height(sums.len());
            set.tile(left, panel, &mut padded[..height]);
            sums.copy_from_slice(&padded[..sums.len()]);
        }
    }
}

impl Packed for PackedMatrix<bf16, 2> {
    type Left = [bf16; 2];
    type Element = bf16;

    fn shape(&self) -> (usize, usize) {
        (self.outputs(), self.inputs())
    }

    fn panel(&self, index: usize) -> &[bf16] {
        self.panel(index)
    }

    fn left(rows: &[f32], inputs: usize, height: usize) -> Vec<[bf16; 2]> {
        let mut left = vec![[bf16::ZERO; 2]; inputs.div_ceil(2) * height];
        for (r, row) in rows.chunks_exact(inputs).enumerate() {
            for (slot, pair) in left.iter_mut().skip(r).step_by(height).zip(row.chunks(2)) {
                for (slot, value) in slot.iter_mut().zip(pair) {
                    *slot = Element::round(*value);
                }
            }
        }
        left
    }

    fn tile<const PANELS: usize>(
        set: InstructionSet,
        left: &[[bf16; 2]],
        panels: [&[bf16]; PANELS],
        sums: [&mut [[f32; LANES]]; PANELS],
    ) {
        set.tile_pairs(left, panels, sums);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

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
        multiply(set, &x, first, &mut y, |y, product| *y = product);
        let mut both = vec![[f32::NAN; 2]; rows * outputs];
        // Both products, one after the other, as an epilogue sees them together.
        for n in 0..2 {
            let mut y = vec![f32::NAN; rows * outputs];
            multiply_both(set, &x, [first, second], &mut y, |y, products| *y = products[n]);
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
                    multiply(set, x, &weights, &mut y, |y, product| *y = product);
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

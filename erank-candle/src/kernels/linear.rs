//! Projections: rows times packed weights, on rayon's current threads.

use half::bf16;
use rayon::prelude::*;

use super::{Element, InstructionSet, LANES, PackedMatrix, PackedWeights, interleave};

/// The product of rows with a packed matrix, panel by panel: `[panels][rows][16]`. Epilogues read it
/// row by row.
pub(crate) struct PanelProduct {
    rows: usize,
    outputs: usize,
    panels: Vec<[f32; LANES]>,
}

impl PanelProduct {
    /// `x · Wᵀ` for `x` as `[rows][inputs]`.
    pub(crate) fn new(set: InstructionSet, x: &[f32], weights: &PackedWeights) -> Self {
        match weights {
            PackedWeights::F32(matrix) => Self::of(set, x, matrix),
            PackedWeights::Bf16(matrix) => Self::of(set, x, matrix),
            PackedWeights::Bf16Pairs(matrix) => Self::of_pairs(set, x, matrix),
        }
    }

    fn of<E: Element>(set: InstructionSet, x: &[f32], matrix: &PackedMatrix<E>) -> Self {
        let inputs = matrix.inputs();
        let rows = x.len() / inputs;
        let tallest = set.tallest_tile();
        let tiles: Vec<Vec<f32>> = x
            .par_chunks(tallest * inputs)
            .map(|rows| interleave::<E>(rows, inputs, set.tile_height(rows.len() / inputs)))
            .collect();

        let mut panels = vec![[0.0; LANES]; matrix.panel_count() * rows];
        panels.par_chunks_mut(rows.max(1)).enumerate().for_each(|(index, sums)| {
            let panel = matrix.panel(index);
            for (tile, sums) in tiles.iter().zip(sums.chunks_mut(tallest)) {
                multiply_tile(set, tile, panel, sums);
            }
        });
        Self { rows, outputs: matrix.outputs(), panels }
    }

    /// As [`of`](Self::of), two panels at a time, so that what is read of `x` is used twice.
    fn of_pairs(set: InstructionSet, x: &[f32], matrix: &PackedMatrix<bf16, 2>) -> Self {
        let inputs = matrix.inputs();
        let rows = x.len() / inputs;
        let tallest = set.tallest_tile();
        let tiles: Vec<Vec<[bf16; 2]>> = x
            .par_chunks(tallest * inputs)
            .map(|rows| interleave_pairs(rows, inputs, set.tile_height(rows.len() / inputs)))
            .collect();

        let mut panels = vec![[0.0; LANES]; matrix.panel_count() * rows];
        panels.par_chunks_mut(2 * rows.max(1)).enumerate().for_each(|(index, sums)| {
            let (first, second) = sums.split_at_mut(rows);
            for (tile, first_row) in tiles.iter().zip((0..rows).step_by(tallest)) {
                let last_row = rows.min(first_row + tallest);
                let first = &mut first[first_row..last_row];
                if second.is_empty() {
                    set.tile_pairs(tile, [matrix.panel(2 * index)], [first]);
                } else {
                    let panels = [matrix.panel(2 * index), matrix.panel(2 * index + 1)];
                    set.tile_pairs(tile, panels, [first, &mut second[first_row..last_row]]);
                }
            }
        });
        Self { rows, outputs: matrix.outputs(), panels }
    }

    /// Row by row, calls `epilogue(row of y, products of the row)`, where `y` has one row of
    /// `outputs` numbers per row of the product.
    pub(crate) fn store(&self, y: &mut [f32], epilogue: impl Fn(&mut f32, f32) + Sync) {
        y.par_chunks_mut(self.outputs).enumerate().for_each(|(row, y)| {
            for (panel, y) in y.chunks_mut(LANES).enumerate() {
                for (y, product) in y.iter_mut().zip(&self.panels[panel * self.rows + row]) {
                    epilogue(y, *product);
                }
            }
        });
    }
}

/// As [`interleave`], in pairs of BF16 numbers: `[row_length / 2][height]`.
fn interleave_pairs(rows: &[f32], row_length: usize, height: usize) -> Vec<[bf16; 2]> {
    let mut tile = vec![[bf16::ZERO; 2]; row_length.div_ceil(2) * height];
    for (r, row) in rows.chunks_exact(row_length).enumerate() {
        for (slot, pair) in tile.iter_mut().skip(r).step_by(height).zip(row.chunks(2)) {
            for (slot, value) in slot.iter_mut().zip(pair) {
                *slot = Element::round(*value);
            }
        }
    }
    tile
}

/// Adds one tile's products to `sums`, which may be fewer than the tile is tall.
fn multiply_tile<E: Element>(
    set: InstructionSet,
    tile: &[f32],
    panel: &[E],
    sums: &mut [[f32; LANES]],
) {
    let height = set.tile_height(sums.len());
    if height == sums.len() {
        set.tile(tile, panel, sums);
    } else {
        let mut padded = [[0.0; LANES]; 8];
        set.tile(tile, panel, &mut padded[..height]);
        sums.copy_from_slice(&padded[..sums.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use half::bf16;

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
            ] {
                let element = |o: usize, i: usize| ((o * 31 + i * 17) % 23) as f32 / 16.0 - 0.7;
                let f32s = PackedMatrix::pack(outputs, inputs, element);
                check(set, rows, &f32s, |x| PanelProduct::of(set, x, &f32s));
                let bf16s = PackedMatrix::pack(outputs, inputs, |o, i| bf16::round(element(o, i)));
                check(set, rows, &bf16s, |x| PanelProduct::of(set, x, &bf16s));
                if set.multiplies_pairs() {
                    let pairs =
                        PackedMatrix::pack(outputs, inputs, |o, i| bf16::round(element(o, i)));
                    check(set, rows, &bf16s, |x| PanelProduct::of_pairs(set, x, &pairs));
                }
            }
        }
    }

    fn check<E: Element>(
        set: InstructionSet,
        rows: usize,
        matrix: &PackedMatrix<E>,
        product: impl Fn(&[f32]) -> PanelProduct,
    ) {
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        let x: Vec<f32> = reference::numbers(rows * inputs, 5).collect();
        let mut y = vec![1.0; rows * outputs];
        product(&x).store(&mut y, |y, product| *y = product);
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for output in 0..outputs {
                let x = x.iter().map(|x| E::round(*x).widen());
                let exact = reference::dot(0.0, x.zip(matrix.row(output)));
                exact.assert_close(y[row * outputs + output], inputs, set.name());
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        for set in InstructionSet::available() {
            let element = |o: usize, i: usize| ((o * 7 + i) as f32).sin();
            let weights = [
                PackedWeights::F32(PackedMatrix::pack(40, 71, element)),
                PackedWeights::bf16(set, 40, 71, |o, i| bf16::round(element(o, i))),
            ];
            for weights in weights {
                let x: Vec<f32> = reference::numbers(11 * 71, 6).collect();
                let product = |x: &[f32]| {
                    let mut y = vec![0.0; x.len() / 71 * 40];
                    PanelProduct::new(set, x, &weights).store(&mut y, |y, product| *y = product);
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

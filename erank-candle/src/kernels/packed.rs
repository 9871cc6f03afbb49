//! Weights in the layout that the kernels read.

use std::io;

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::products::{Pairs, Products, Singles, Tiles, place};
use super::{Element, InstructionSet, LANES};

/// A matrix of `outputs × inputs`, for `y = x · Wᵀ`: panels of 16 outputs, each
/// `[inputs / DEPTH][16][DEPTH]`. The last panel and the last block of inputs are filled up
/// with zeros.
#[derive(Debug)]
pub(crate) struct PackedMatrix<P: Products> {
    outputs: usize,
    inputs: usize,
    panels: Buffer<P::Right>,
}

impl<P: Products> PackedMatrix<P> {
    /// Packs a row-major matrix given element by element, `element(output, input)`, on rayon's
    /// current threads.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub(crate) fn pack(
        outputs: usize,
        inputs: usize,
        element: impl Fn(usize, usize) -> P::Right + Sync,
    ) -> io::Result<Self> {
        let panel_size = inputs.next_multiple_of(P::BLOCK) * LANES;
        let mut panels = Buffer::zeroed(outputs.div_ceil(LANES) * panel_size)?;
        panels.par_chunks_mut(panel_size).enumerate().for_each(|(index, panel)| {
            let first = index * LANES;
            for lane in 0..LANES.min(outputs - first) {
                for input in 0..inputs {
                    panel[place(P::DEPTH, input, lane)] = element(first + lane, input);
                }
            }
        });
        Ok(Self { outputs, inputs, panels })
    }

    /// The same matrix with its panels between pages without access.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn guarded(&self, place: super::guard_pages::Place) -> Self {
        Self { panels: self.panels.guarded(place), ..*self }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Panel `index` as `[inputs / DEPTH][16][DEPTH]`.
    pub(crate) fn panel(&self, index: usize) -> &[P::Right] {
        let size = self.inputs.next_multiple_of(P::BLOCK) * LANES;
        &self.panels[index * size..(index + 1) * size]
    }

    /// Row `output` of the unpacked matrix.
    pub(crate) fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let panel = self.panel(output / LANES);
        let element = move |input| panel[place(P::DEPTH, input, output % LANES)];
        (0..self.inputs).map(move |input| element(input).widen())
    }
}

/// Weights in one of the types they can be stored in.
#[derive(Debug)]
pub(crate) enum PackedWeights {
    F32(PackedMatrix<Singles<f32>>),
    Bf16(PackedMatrix<Singles<bf16>>),
    /// For sets that multiply BF16 numbers in pairs.
    Bf16Pairs(PackedMatrix<Pairs>),
    /// For sets that multiply such pairs in tiles.
    Bf16Tiles(PackedMatrix<Tiles>),
}

/// Runs the same expression for either type.
macro_rules! for_each_type {
    ($weights:expr, $matrix:ident => $body:expr) => {
        match $weights {
            PackedWeights::F32($matrix) => $body,
            PackedWeights::Bf16($matrix) => $body,
            PackedWeights::Bf16Pairs($matrix) => $body,
            PackedWeights::Bf16Tiles($matrix) => $body,
        }
    };
}

impl PackedWeights {
    /// Packs a matrix as this set reads BF16 weights.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub(crate) fn bf16(
        set: InstructionSet,
        outputs: usize,
        inputs: usize,
        element: impl Fn(usize, usize) -> bf16 + Sync,
    ) -> io::Result<Self> {
        Ok(if set.multiplies_tiles() {
            Self::Bf16Tiles(PackedMatrix::pack(outputs, inputs, element)?)
        } else if set.multiplies_pairs() {
            Self::Bf16Pairs(PackedMatrix::pack(outputs, inputs, element)?)
        } else {
            Self::Bf16(PackedMatrix::pack(outputs, inputs, element)?)
        })
    }

    pub(crate) fn outputs(&self) -> usize {
        for_each_type!(self, matrix => matrix.outputs())
    }

    pub(crate) fn inputs(&self) -> usize {
        for_each_type!(self, matrix => matrix.inputs())
    }

    /// Appends row `output` of the unpacked matrix to `rows`.
    pub(crate) fn extend_with_row(&self, output: usize, rows: &mut Vec<f32>) {
        for_each_type!(self, matrix => rows.extend(matrix.row(output)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_panels_of_any_size() {
        for (outputs, inputs) in [(1, 1), (15, 3), (16, 2), (17, 5), (40, 7)] {
            let element = |o: usize, i: usize| (o % 16 * 8 + i) as f32; // exact in BF16
            let rounded = |o, i| bf16::from_f32(element(o, i));
            let single =
                PackedMatrix::<Singles<f32>>::pack(outputs, inputs, element).expect("room");
            let pairs = PackedMatrix::<Pairs>::pack(outputs, inputs, rounded).expect("room");
            let tiles = PackedMatrix::<Tiles>::pack(outputs, inputs, rounded).expect("room");
            for output in 0..outputs {
                let expected: Vec<f32> = (0..inputs).map(|input| element(output, input)).collect();
                assert_eq!(single.row(output).collect::<Vec<f32>>(), expected);
                assert_eq!(pairs.row(output).collect::<Vec<f32>>(), expected);
                assert_eq!(tiles.row(output).collect::<Vec<f32>>(), expected);
            }
        }
    }
}

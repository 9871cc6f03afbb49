//! Weights in the layout that the kernels read.

use half::bf16;

use super::{Element, LANES};

/// A matrix of `outputs × inputs`, for `y = x · Wᵀ`: panels of 16 outputs, each `[inputs][16]`. The
/// last panel is filled up with zeros.
#[derive(Debug)]
pub(crate) struct PackedMatrix<E> {
    outputs: usize,
    inputs: usize,
    panels: Vec<E>,
}

impl<E: Element> PackedMatrix<E> {
    /// Packs a row-major matrix given element by element: `element(output, input)`.
    pub(crate) fn pack(outputs: usize, inputs: usize, element: impl Fn(usize, usize) -> E) -> Self {
        let mut panels = Vec::with_capacity(outputs.next_multiple_of(LANES) * inputs);
        for first in (0..outputs).step_by(LANES) {
            for input in 0..inputs {
                panels.extend((first..first + LANES).map(|output| {
                    if output < outputs { element(output, input) } else { E::round(0.0) }
                }));
            }
        }
        Self { outputs, inputs, panels }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Panel `index` as `[inputs][16]`.
    pub(crate) fn panel(&self, index: usize) -> &[E] {
        let size = self.inputs * LANES;
        &self.panels[index * size..(index + 1) * size]
    }

    /// Row `output` of the unpacked matrix.
    pub(crate) fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let lanes = self.panel(output / LANES).iter().skip(output % LANES).step_by(LANES);
        lanes.map(|element| element.widen())
    }
}

/// Weights in one of the types they can be stored in.
#[derive(Debug)]
pub(crate) enum PackedWeights {
    F32(PackedMatrix<f32>),
    Bf16(PackedMatrix<bf16>),
}

/// Runs the same expression for either type.
macro_rules! for_each_type {
    ($weights:expr, $matrix:ident => $body:expr) => {
        match $weights {
            PackedWeights::F32($matrix) => $body,
            PackedWeights::Bf16($matrix) => $body,
        }
    };
}
pub(super) use for_each_type;

impl PackedWeights {
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
            let element = |o: usize, i: usize| (o * 100 + i) as f32;
            let packed = PackedMatrix::<f32>::pack(outputs, inputs, element);
            assert_eq!(packed.panel_count(), outputs.div_ceil(16));
            for output in 0..outputs {
                let row: Vec<f32> = packed.row(output).collect();
                let expected: Vec<f32> = (0..inputs).map(|input| element(output, input)).collect();
                assert_eq!(row, expected);
            }
        }
    }
}

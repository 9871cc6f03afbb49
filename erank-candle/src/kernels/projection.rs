//! Projections as the operations use them: matrices of any formats, one above the other.

use std::io;

use super::arch::InstructionSet;
use super::column_blocks::Columns;
use super::formats::{self, WeightFormat};
use super::gemm::PackedWeights;
use super::norm::{Norm, silu};
use super::stored::StoredMatrix;

/// A matrix of `outputs × inputs` for `y = x · Wᵀ`. It is a list of parts, which may have different formats
/// and write neighbouring columns of `y`.
///
/// `x` is `[rows][inputs]` and `y` is `[rows][outputs]`.
#[derive(Debug)]
pub(crate) struct Projection {
    inputs: usize,
    outputs: usize,
    parts: Vec<Box<dyn PackedWeights>>,
}

impl Projection {
    /// Packs matrices with the same inputs, each into its format, for an instruction set. The first matrix
    /// has the first outputs.
    ///
    /// Runs on rayon's current threads. Matrices of one format are fastest as one part:
    /// [`StoredMatrix::new`] stacks them.
    ///
    /// # Errors
    /// Returns an error if the system cannot provide the memory.
    ///
    /// # Panics
    /// Panics if the inputs differ.
    pub(crate) fn pack(
        parts: &[(WeightFormat, StoredMatrix<'_>)],
        set: InstructionSet,
    ) -> io::Result<Self> {
        let packed = parts.iter().map(|(format, matrix)| formats::pack(*format, set, matrix));
        Ok(Self::of_parts(packed.collect::<io::Result<_>>()?))
    }

    pub(super) fn of_parts(parts: Vec<Box<dyn PackedWeights>>) -> Self {
        let inputs = parts.first().map_or(0, |part| part.inputs());
        assert!(parts.iter().all(|part| part.inputs() == inputs), "the parts' inputs differ");
        Self { inputs, outputs: parts.iter().map(|part| part.outputs()).sum(), parts }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Appends the weights of one output, dequantised to F32.
    ///
    /// # Panics
    /// Panics if there are fewer outputs.
    pub(crate) fn extend_with_row(&self, output: usize, rows: &mut Vec<f32>) {
        let mut output = output;
        for part in &self.parts {
            if output < part.outputs() {
                let start = rows.len();
                rows.resize(start + self.inputs, 0.0);
                return part.unpack_row(output, &mut rows[start..]);
            }
            output -= part.outputs();
        }
        panic!("output {} of {}", output + self.outputs, self.outputs);
    }

    /// Computes `y = norm(x) · Wᵀ`, or `y = x · Wᵀ` without a norm.
    pub(crate) fn project(&self, x: &[f32], norm: Option<&Norm>, y: &mut [f32]) {
        self.for_each_part(y, |part, columns| part.project(x, norm, columns));
    }

    /// Computes `y += x · Wᵀ`.
    pub(crate) fn project_add(&self, x: &[f32], y: &mut [f32]) {
        self.for_each_part(y, |part, columns| part.project_add(x, columns));
    }

    /// Computes `y = silu(norm(x) · Gateᵀ) · (norm(x) · Upᵀ)`, where this projection is the gate. This takes
    /// one pass if both have one part of the same format, and otherwise two projections. The bits are the
    /// same.
    ///
    /// # Panics
    /// Panics if the shapes differ.
    pub(crate) fn gate_up(&self, up: &Self, x: &[f32], norm: &Norm, y: &mut [f32]) {
        assert_eq!((self.outputs, self.inputs), (up.outputs, up.inputs), "shapes of gate and up");
        if let ([gate], [up]) = (&self.parts[..], &up.parts[..])
            && gate.gate_up(&**up, x, norm, Columns::all(y, self.outputs))
        {
            return;
        }
        let mut up_products = vec![0.0; y.len()];
        up.project(x, Some(norm), &mut up_products);
        self.project(x, Some(norm), y);
        InstructionSet::best().run(
            #[inline(always)]
            || {
                for (y, up) in y.iter_mut().zip(&up_products) {
                    *y = silu(*y) * up;
                }
            },
        );
    }

    fn for_each_part(&self, y: &mut [f32], work: impl Fn(&dyn PackedWeights, Columns<'_>)) {
        let mut start = 0;
        for part in &self.parts {
            let range = start..start + part.outputs();
            start = range.end;
            work(&**part, Columns { matrix: &mut *y, stride: self.outputs, range });
        }
    }
}

#[cfg(test)]
#[path = "tests/projection.rs"]
mod tests;

//! A matrix as a checkpoint stores it: rows of little-endian numbers or blocks, of any alignment.

use half::{bf16, f16};

use super::ggml::BlockType;

/// One row of a stored matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoredRow<'a> {
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
    /// Whole blocks.
    Blocks(BlockType, &'a [u8]),
}

impl<'a> StoredRow<'a> {
    /// Returns how many numbers there are.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::F16(numbers) | Self::Bf16(numbers) => numbers.len(),
            Self::Blocks(block, bytes) => bytes.len() / block.bytes() * block.values(),
        }
    }

    /// Returns the type of the blocks, or `None` for numbers.
    pub(super) fn block_type(self) -> Option<BlockType> {
        match self {
            Self::Blocks(block_type, _) => Some(block_type),
            _ => None,
        }
    }

    /// Returns `length` numbers from number `start` on.
    ///
    /// # Panics
    /// Panics if there are fewer numbers, or a block would be cut.
    pub(crate) fn part(self, start: usize, length: usize) -> Self {
        match self {
            Self::F32(numbers) => Self::F32(&numbers[start..][..length]),
            Self::F16(numbers) => Self::F16(&numbers[start..][..length]),
            Self::Bf16(numbers) => Self::Bf16(&numbers[start..][..length]),
            Self::Blocks(block, bytes) => {
                let whole =
                    start.is_multiple_of(block.values()) && length.is_multiple_of(block.values());
                assert!(whole, "values {start} to {} of {block:?} cut a block", start + length);
                let [start, length] = [start, length].map(|n| n / block.values() * block.bytes());
                Self::Blocks(block, &bytes[start..][..length])
            }
        }
    }

    /// Returns the numbers as a file stores them in F32.
    pub(super) fn to_le_bytes(self) -> Vec<[u8; 4]> {
        let mut numbers = vec![0.0; self.len()];
        self.to_f32(&mut numbers);
        numbers.into_iter().map(f32::to_le_bytes).collect()
    }

    /// Writes the first `out.len()` numbers as F32. The conversion is exact.
    #[inline(always)]
    pub(crate) fn to_f32(self, out: &mut [f32]) {
        match self {
            Self::F32(numbers) => out
                .iter_mut()
                .zip(numbers)
                .for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes)),
            Self::F16(numbers) => out
                .iter_mut()
                .zip(numbers)
                .for_each(|(out, bytes)| *out = f16::from_le_bytes(*bytes).to_f32()),
            Self::Bf16(numbers) => out
                .iter_mut()
                .zip(numbers)
                .for_each(|(out, bytes)| *out = bf16::from_le_bytes(*bytes).to_f32()),
            Self::Blocks(block, bytes) => block.dequantise(bytes, out),
        }
    }
}

/// A row-major matrix, or several with the same inputs, one above the other.
#[derive(Debug)]
pub(crate) struct StoredMatrix<'a> {
    inputs: usize,
    outputs: usize,
    /// Each matrix as one long row, with the number of its first output.
    parts: Vec<(usize, StoredRow<'a>)>,
}

impl<'a> StoredMatrix<'a> {
    /// Makes a matrix of parts, each of whole rows of `inputs` numbers.
    ///
    /// # Panics
    /// Panics if `inputs` is 0, or a part is not a whole number of rows.
    pub(crate) fn new(parts: impl IntoIterator<Item = StoredRow<'a>>, inputs: usize) -> Self {
        let mut matrix = Self { inputs, outputs: 0, parts: Vec::new() };
        for part in parts {
            assert!(part.len().is_multiple_of(inputs), "{} numbers, {inputs} inputs", part.len());
            matrix.parts.push((matrix.outputs, part));
            matrix.outputs += part.len() / inputs;
        }
        matrix
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns whether all parts are stored in blocks of a type, or all in numbers if there is no type.
    pub(super) fn consists_of(&self, block_type: Option<BlockType>) -> bool {
        self.parts.iter().all(|(_, row)| row.block_type() == block_type)
    }

    /// Returns row `output`.
    ///
    /// # Panics
    /// Panics if there are fewer rows.
    pub(crate) fn row(&self, output: usize) -> StoredRow<'a> {
        let part = self.parts.partition_point(|(first, _)| *first <= output) - 1;
        let (first, numbers) = self.parts[part];
        numbers.part((output - first) * self.inputs, self.inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_finds_rows_of_every_part() {
        let numbers: Vec<[u8; 4]> = (0..10).map(|i| (i as f32).to_le_bytes()).collect();
        let halves = [2.5f32, -3.0].map(|x| f16::from_f32(x).to_le_bytes());
        let matrix = StoredMatrix::new(
            [
                StoredRow::F32(&numbers[..4]),
                StoredRow::F32(&[]),
                StoredRow::F16(&halves),
                StoredRow::F32(&numbers[4..]),
            ],
            2,
        );
        let expected = [[0.0, 1.0], [2.0, 3.0], [2.5, -3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]];
        assert_eq!(matrix.outputs(), expected.len());
        for (output, expected) in expected.iter().enumerate() {
            let mut row = [0.0; 2];
            matrix.row(output).to_f32(&mut row);
            assert_eq!(row, *expected);
        }
    }
}

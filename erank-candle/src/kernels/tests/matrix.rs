//! Random matrices as files store them.

use half::f16;

use super::super::ggml::{BlockType, PART};
use super::super::micro_kernel::MicroKernel;
use super::super::stored::{StoredMatrix, StoredRow};
use super::oracle;

/// A random matrix as a file stores it.
pub(in super::super) struct RandomMatrix {
    pub(in super::super) inputs: usize,
    block_type: Option<BlockType>,
    bytes: Vec<u8>,
}

impl RandomMatrix {
    /// Makes a matrix for a micro-kernel: of numbers if it reads them, else of blocks. Blocks may need more
    /// inputs than are asked for.
    pub(in super::super) fn new<K: MicroKernel>(outputs: usize, inputs: usize, seed: u64) -> Self {
        match K::BLOCK_TYPE {
            Some(block_type) if !K::FROM_NUMBERS => {
                Self::of_blocks(block_type, outputs, inputs, seed)
            }
            _ => Self {
                inputs,
                block_type: None,
                bytes: oracle::numbers(outputs * inputs, seed).flat_map(f32::to_le_bytes).collect(),
            },
        }
    }

    /// Makes a matrix of random blocks with finite scales.
    pub(in super::super) fn of_blocks(
        block_type: BlockType,
        outputs: usize,
        inputs: usize,
        seed: u64,
    ) -> Self {
        let inputs = inputs.next_multiple_of(block_type.values());
        let blocks = outputs * inputs / block_type.values();
        let random = oracle::numbers(blocks * block_type.bytes(), seed);
        let mut bytes: Vec<u8> = random.map(|x| (x * 1e6) as i32 as u8).collect();
        let mut scales = oracle::numbers(2 * blocks, seed + 1).map(|x| f16::from_f32(x / 500.0));
        let fields: &[usize] = match block_type {
            BlockType::Q8_0 | BlockType::Q4_0 => &[0],
            BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q6K => &[208],
        };
        for block in bytes.chunks_exact_mut(block_type.bytes()) {
            for field in fields {
                let scale = scales.next().expect("two scales for each block");
                block[*field..][..2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Self { inputs, block_type: Some(block_type), bytes }
    }

    /// Returns the bytes of the file.
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the rows in a copy of the bytes.
    pub(in super::super) fn rows_in<'a>(&self, bytes: &'a [u8]) -> Vec<StoredRow<'a>> {
        let whole = match self.block_type {
            Some(block_type) => StoredRow::Blocks(block_type, bytes),
            None => StoredRow::F32(bytes.as_chunks().0),
        };
        let matrix = StoredMatrix::new([whole], self.inputs);
        (0..matrix.outputs()).map(|output| matrix.row(output)).collect()
    }

    pub(in super::super) fn rows(&self) -> Vec<StoredRow<'_>> {
        self.rows_in(&self.bytes)
    }

    pub(in super::super) fn matrix(&self) -> StoredMatrix<'_> {
        StoredMatrix::new(self.rows(), self.inputs)
    }

    /// Returns the terms of the product of a row of activations and a row of blocks, before any rounding:
    /// activation and scaled number, and activation and min.
    pub(in super::super) fn terms(&self, output: usize, x: &[f32]) -> Option<Vec<(f32, f32)>> {
        let StoredRow::Blocks(block_type, bytes) = self.matrix().row(output) else { return None };
        let mut terms = Vec::new();
        for (block, x) in bytes.chunks(block_type.bytes()).zip(x.chunks(block_type.values())) {
            let block = block_type.decode(block);
            for (i, x) in x.iter().enumerate() {
                let scale = block.d.to_f32() * f32::from(block.scales[i / PART]);
                terms.push((*x, scale * f32::from(block.numbers[i])));
                terms.push((*x, -block.dmin.to_f32() * f32::from(block.mins[i / PART])));
            }
        }
        Some(terms)
    }
}

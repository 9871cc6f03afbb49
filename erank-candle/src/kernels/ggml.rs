//! The block types of GGUF files: groups of integers with common scales.
//!
//! ```text
//! weight[i] = d · scales[i / 16] · numbers[i] − dmin · mins[i / 16]
//! ```
//!
//! | type | values | bytes | `numbers` | scales and mins |
//! |---|---|---|---|---|
//! | Q8_0 | 32 | 34 | −128 to 127 | `d` alone |
//! | Q4_0 | 32 | 18 | −8 to 7 | `d` alone |
//! | Q4_K | 256 | 144 | 0 to 15 | 6 bits each for every 32 values |
//! | Q5_K | 256 | 176 | 0 to 31 | 6 bits each for every 32 values |
//! | Q6_K | 256 | 210 | −32 to 31 | scales of 8 bits for every 16 values |
//!
//! The layouts are those of llama.cpp's `ggml-common.h`.

use half::f16;

/// The largest number of values of a block.
const VALUES: usize = 256;
/// Values with the same scale and the same min.
pub(super) const PART: usize = 16;

/// A type of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockType {
    Q8_0,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// Returns the number of values of a block.
    pub(crate) fn values(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => VALUES,
        }
    }

    /// Returns the number of bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Reads the fields of a block.
    ///
    /// # Panics
    /// Panics if `block` has fewer bytes than a block of this type.
    pub(super) fn decode(self, block: &[u8]) -> Block {
        match self {
            Self::Q8_0 => q8_0(&block[..34]),
            Self::Q4_0 => q4_0(&block[..18]),
            Self::Q4K => q4_k(&block[..144]),
            Self::Q5K => q5_k(&block[..176]),
            Self::Q6K => q6_k(&block[..210]),
        }
    }

    /// Writes the weights of whole blocks in F32. The last block may be cut off.
    ///
    /// # Panics
    /// Panics if there are fewer blocks.
    pub(super) fn dequantise(self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.chunks(self.bytes()).zip(out.chunks_mut(self.values())) {
            let block = self.decode(block);
            let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
            for (part, out) in out.chunks_mut(PART).enumerate() {
                let scale = d * f32::from(block.scales[part]);
                let min = dmin * f32::from(block.mins[part]);
                for (out, number) in out.iter_mut().zip(&block.numbers[part * PART..]) {
                    *out = scale * f32::from(*number) - min;
                }
            }
        }
    }
}

/// The fields of a block. Types of 32 values use the first part of the arrays.
pub(super) struct Block {
    pub(super) d: f16,
    pub(super) dmin: f16,
    /// By 16 values.
    pub(super) scales: [i8; VALUES / PART],
    /// By 16 values.
    pub(super) mins: [u8; VALUES / PART],
    pub(super) numbers: [i8; VALUES],
}

impl Block {
    /// Returns a block of zeros whose scales are 1 and whose mins are 0.
    pub(super) fn with_scale(d: f16) -> Self {
        Self { d, dmin: f16::ZERO, scales: [1; 16], mins: [0; 16], numbers: [0; VALUES] }
    }
}

/// `d`; a byte for each value.
fn q8_0(bytes: &[u8]) -> Block {
    let mut block = Block::with_scale(half(&bytes[..2]));
    for (number, byte) in block.numbers.iter_mut().zip(&bytes[2..]) {
        *number = *byte as i8;
    }
    block
}

/// `d`; 16 bytes, whose low halves are the values 0 to 15 and whose high halves are the values 16 to 31, each
/// plus 8.
fn q4_0(bytes: &[u8]) -> Block {
    let mut block = Block::with_scale(half(&bytes[..2]));
    let (low, high) = block.numbers.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[2..]) {
        *low = (byte & 15) as i8 - 8;
        *high = (byte >> 4) as i8 - 8;
    }
    block
}

/// `d`; `dmin`; 12 bytes of scales and mins; 128 bytes of half bytes.
fn q4_k(bytes: &[u8]) -> Block {
    let mut block = with_scales_and_mins(bytes);
    set_half_bytes(&mut block.numbers, &bytes[16..]);
    block
}

/// `d`; `dmin`; 12 bytes of scales and mins; 32 bytes of fifth bits; 128 bytes of half bytes. Bit `g` of fifth
/// byte `i` belongs to value `32 · g + i`.
fn q5_k(bytes: &[u8]) -> Block {
    let mut block = with_scales_and_mins(bytes);
    set_half_bytes(&mut block.numbers, &bytes[48..]);
    for (group, numbers) in block.numbers.chunks_exact_mut(32).enumerate() {
        for (number, bits) in numbers.iter_mut().zip(&bytes[16..48]) {
            *number |= ((bits >> group & 1) << 4) as i8;
        }
    }
    block
}

/// 128 bytes of half bytes; 64 bytes of upper two bits; 16 scales; `d`. Each half of the values has 64 bytes
/// of the first kind and 32 of the second. Values are stored plus 32.
fn q6_k(bytes: &[u8]) -> Block {
    let mut block = Block::with_scale(half(&bytes[208..]));
    for (scale, byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
        *scale = *byte as i8;
    }
    let (low, high) = (bytes[..128].chunks_exact(64), bytes[128..192].chunks_exact(32));
    for ((numbers, low), high) in block.numbers.chunks_exact_mut(128).zip(low).zip(high) {
        for (i, number) in numbers.iter_mut().enumerate() {
            let low = low[i % 64] >> (4 * (i / 64)) & 15;
            let high = high[i % 32] >> (2 * (i / 32)) & 3;
            *number = (low | high << 4) as i8 - 32;
        }
    }
    block
}

/// Sets values to halves of bytes: of each 32 bytes, the low halves are 32 values, and the high halves are the
/// next 32.
fn set_half_bytes(numbers: &mut [i8], bytes: &[u8]) {
    for (numbers, bytes) in numbers.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
        let (low, high) = numbers.split_at_mut(32);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = (byte & 15) as i8;
            *high = (byte >> 4) as i8;
        }
    }
}

/// Reads `d`, `dmin`, and eight scales and eight mins of 6 bits in 12 bytes. The lower 6 bits of the first
/// eight bytes are scales 0 to 3 and mins 0 to 3. The last four bytes hold the lower 4 bits of scales and mins 4
/// to 7, whose upper 2 bits are the upper bits of the first eight bytes.
fn with_scales_and_mins(bytes: &[u8]) -> Block {
    let mut block = Block::with_scale(half(&bytes[..2]));
    block.dmin = half(&bytes[2..4]);
    let packed = &bytes[4..16];
    for group in 0..8 {
        let (scale, min) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        block.scales[2 * group..][..2].fill(scale as i8);
        block.mins[2 * group..][..2].fill(min);
    }
    block
}

fn half(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
#[path = "tests/ggml.rs"]
mod tests;

//! The operations that an instruction set offers to the integer formats.
//!
//! A register holds 32 bits of each of [`LANES`](Registers::LANES) columns. A panel has 16 columns, in one, two or
//! four registers, which `side` numbers. The formats are written once with these operations, and every set compiles
//! them with its own instructions.

use half::f16;

use super::super::super::tile::NR;
use super::{HalfBytes, Step};

/// Vector registers. A value is a proof that the machine has them.
///
/// All methods are inlined into [`Isa::run`](super::super::super::arch::Isa::run), which compiles them with the set's
/// instructions.
pub(in super::super) trait Registers: Copy {
    /// Columns of a register.
    const LANES: usize;

    /// Four bytes of each column.
    type Bytes: Copy;
    /// An F32 number of each column.
    type Floats: Copy;

    /// Reads the bytes of a step.
    fn load(self, step: &Step<impl bytemuck::Pod>, side: usize) -> Self::Bytes;

    /// Moves the bits of each byte down by `places`, or up if `places` is negative, and selects those that are
    /// set in `mask`. The mask must not contain bits that come from another byte.
    fn shift(self, bytes: Self::Bytes, places: i32, mask: u8) -> Self::Bytes;

    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// Reads F16 numbers.
    fn load_f16(self, numbers: &[f16; NR], side: usize) -> Self::Floats;

    /// Reads integers from 0 to 255.
    fn load_u8(self, numbers: &[u8; NR], side: usize) -> Self::Floats;

    /// Reads integers from −128 to 127.
    fn load_i8(self, numbers: &[i8; NR], side: usize) -> Self::Floats;

    /// Reads F32 numbers.
    fn load_f32(self, numbers: &[f32; NR], side: usize) -> Self::Floats;

    /// Writes F32 numbers.
    fn store_f32(self, numbers: &mut [f32; NR], side: usize, columns: Self::Floats);

    /// Returns the same number in every column.
    fn splat(self, number: f32) -> Self::Floats;

    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
}

/// Returns step `INDEX` of half bytes.
#[inline(always)]
pub(in super::super) fn load_half_bytes<R: Registers, const INDEX: usize>(
    registers: R,
    bytes: &HalfBytes,
    side: usize,
) -> R::Bytes {
    registers.shift(registers.load(&bytes[INDEX / 2], side), 4 * (INDEX as i32 % 2), 15)
}

/// Adds the bits above half bytes. `mask` selects them after they are moved from `place` to place 4.
#[inline(always)]
pub(in super::super) fn add_upper_bits<R: Registers>(
    registers: R,
    half_bytes: R::Bytes,
    bits: R::Bytes,
    place: usize,
    mask: u8,
) -> R::Bytes {
    registers.or(half_bytes, registers.shift(bits, place as i32 - 4, mask))
}

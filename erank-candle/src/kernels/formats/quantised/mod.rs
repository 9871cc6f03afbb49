//! The parts that all formats of integers share: quantised activations, the trait of a format, and the
//! micro-kernels.
//!
//! Activations are quantised in groups of 32 with a scale in F32. For each part of a group, the products of
//! integers are added without any rounding:
//!
//! ```text
//! for each group g, row r, column c:
//!     for each part p of the group:
//!         total = Σ_i lhs[g][r].numbers[i] · panel[g].numbers[i][c]      integers
//!         sums[r][c] += total · (panel[g].scales[p][c] · lhs[g][r].scale)
//!     sums[r][c] −= panel[g].mins[c] · (lhs[g][r].scale · Σ_i lhs[g][r].numbers[i])
//! ```
//!
//! The groups are added in order, with products and sums rounded apart. So all instruction sets give the same
//! bits, except for `amxprefill`, which dequantises weights.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod byte_products;
mod registers;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fmt::Debug;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::super::arch::generic::Portable;
#[cfg(target_arch = "x86_64")]
use super::super::arch::x86_64::amx::AmxPrefill;
use super::super::arch::{InstructionSet, Isa};
use super::super::ggml::{self, BlockType};
use super::super::micro_kernel::{KernelVisitor, MicroKernel};
use super::super::stored::StoredRow;
use super::super::tile::{Mr, NR, Prefetch, TileRows};
#[cfg(target_arch = "x86_64")]
use amx::DequantisedTiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use byte_products::ByteProducts;
pub(super) use registers::{Registers, add_upper_bits, load_half_bytes};

/// Numbers of a group of activations.
pub(super) const GROUP: usize = 32;
/// Inputs whose weights lie side by side in a panel.
pub(super) const STEP: usize = 4;
/// Largest integer that a number is rounded to.
const LARGEST: f32 = 127.0;
/// The number that makes a signed byte unsigned.
const UNSIGNED: i32 = 128;

/// Four inputs of 16 outputs.
pub(super) type Step<T> = [[T; STEP]; NR];

/// One group of a row of activations.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Group {
    scale: f32,
    /// The scale times the sum of the numbers.
    scaled_sum: f32,
    /// For each part of the group, `−(the weights' offset) · (the sum of the part's numbers)`. Added to the products
    /// with the stored weights, it gives the products with the weights themselves. The second is 0 if the group has one
    /// part.
    offsets: [i32; 2],
    /// Integers from −127 to 127.
    numbers: [i8; GROUP],
}

/// A format whose weights are integers with common scales.
pub(super) trait GroupFormat: Copy + Debug + Send + Sync + 'static {
    /// The block type of files.
    const BLOCK_TYPE: BlockType;
    /// One step of a panel: [`GROUPS`](Self::GROUPS) groups of 16 outputs.
    type Block: Pod + Debug + Send + Sync;
    /// A value for each group of a block.
    type PerGroup<T: Pod + Send + Sync>: Pod + Send + Sync;
    /// Groups of a block.
    const GROUPS: usize;
    /// Parts of a group that have scales of their own, 1 or 2.
    const PARTS: usize;
    /// Bits of a stored number.
    const BITS: u32;
    /// Whether stored numbers are signed.
    const SIGNED: bool = false;
    /// The number that was added to each weight before it was stored, so that no stored number is negative.
    const OFFSET: i32;
    /// Whether the format has mins, which are subtracted from the scaled numbers.
    const MINS: bool;
    /// Whether [`quantise`](Self::quantise) is implemented. Other formats are only read from files.
    const FROM_NUMBERS: bool = false;

    /// Rounds one group of numbers to a block of a file.
    ///
    /// # Panics
    /// Panics if the format is only read from files.
    fn quantise(_: &[f32; GROUP]) -> ggml::Block {
        unimplemented!("{:?} weights are only read from files", Self::BLOCK_TYPE)
    }

    /// Writes the fields of a file's block to a column of a block.
    fn set_column(block: &mut Self::Block, column: usize, fields: &ggml::Block);

    /// Returns stored number `index` of a group of one output.
    fn number(block: &Self::Block, group: usize, index: usize, column: usize) -> i32;

    /// Returns the scale of a part of a group of one output.
    fn scale(block: &Self::Block, group: usize, part: usize, column: usize) -> f32;

    /// Returns the min of a group of one output: 0, unless the format has mins.
    fn min(_: &Self::Block, _: usize, _: usize) -> f32 {
        0.0
    }

    /// Returns step `INDEX` of a group: four stored numbers of each column.
    fn load_step<R: Registers, const INDEX: usize>(
        registers: R,
        block: &Self::Block,
        group: usize,
        side: usize,
    ) -> R::Bytes;

    /// Returns the scales of a part of a group.
    fn load_scales<R: Registers>(
        registers: R,
        block: &Self::Block,
        group: usize,
        part: usize,
        side: usize,
    ) -> R::Floats;

    /// Returns the mins of a group: zeros, unless the format has mins.
    #[inline(always)]
    fn load_mins<R: Registers>(registers: R, _: &Self::Block, _: usize, _: usize) -> R::Floats {
        registers.splat(0.0)
    }
}

/// Calls the visitor with the best micro-kernel of an instruction set.
pub(super) fn with_kernel<F: GroupFormat, V: KernelVisitor>(
    set: InstructionSet,
    visitor: V,
) -> V::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = set.token::<AmxPrefill>() {
        return visitor.visit(DequantisedTiles::<F>::new(isa.tiles()));
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(kernel) = ByteProducts::<F>::all(set).next() {
        return visitor.visit(kernel);
    }
    let _ = set;
    visitor.visit(Products::<F>(PhantomData))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<F: GroupFormat, V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let outputs = with_exact_kernels::<F, V>(set, visitor);
    #[cfg(target_arch = "x86_64")]
    let outputs = {
        let isa: Option<AmxPrefill> = set.token();
        let in_tiles = isa.map(|isa| visitor.visit(DequantisedTiles::<F>::new(isa.tiles())));
        outputs.into_iter().chain(in_tiles).collect()
    };
    outputs
}

/// Calls the visitor with the micro-kernels of an instruction set that multiply integers.
#[cfg(test)]
fn with_exact_kernels<F: GroupFormat, V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let mut outputs = vec![visitor.visit(Products::<F>(PhantomData))];
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    outputs.extend(ByteProducts::<F>::all(set).map(|kernel| visitor.visit(kernel)));
    let _ = set;
    outputs
}

/// Defines a format's type and its dispatch to micro-kernels.
macro_rules! quantised_format {
    ($name:ident) => {
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $name;

        /// Calls the visitor with the best micro-kernel of an instruction set.
        pub(super) fn with_kernel<V: $crate::kernels::micro_kernel::KernelVisitor>(
            set: $crate::kernels::InstructionSet,
            visitor: V,
        ) -> V::Output {
            quantised::with_kernel::<$name, V>(set, visitor)
        }

        /// Calls the visitor with every micro-kernel of an instruction set.
        #[cfg(test)]
        pub(super) fn with_every_kernel<V: $crate::kernels::micro_kernel::KernelVisitor + Copy>(
            set: $crate::kernels::InstructionSet,
            visitor: V,
        ) -> Vec<V::Output> {
            quantised::with_every_kernel::<$name, V>(set, visitor)
        }
    };
}

/// The micro-kernel that every machine has, a plain loop.
#[derive(Debug, Clone, Copy)]
struct Products<F>(PhantomData<F>);

impl<F: GroupFormat> MicroKernel for Products<F> {
    type Isa = Portable;
    type Rows = Mr;
    type Lhs = F::PerGroup<Group>;
    type Block = F::Block;
    const BLOCK_K: usize = F::GROUPS * GROUP;
    const BLOCK_TYPE: Option<BlockType> = Some(F::BLOCK_TYPE);
    const FROM_NUMBERS: bool = F::FROM_NUMBERS;
    const KC: usize = 1024;
    const PREFETCH: Prefetch = Prefetch::NONE;

    #[inline(always)]
    fn isa(self) -> Portable {
        Portable
    }

    fn max_mr(self) -> Mr {
        Portable::MAX_MR
    }

    fn panels(self) -> usize {
        1
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [F::PerGroup<Group>]) {
        pack_lhs::<F>(rows, k, mr, lhs);
    }

    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [F::Block]) {
        pack_rows::<F>(rows, panel);
    }

    fn unpack_row(panel: &[F::Block], column: usize, out: &mut [f32]) {
        unpack_row::<F>(panel, column, out);
    }

    fn multiply(
        self,
        lhs: &[F::PerGroup<Group>],
        panels: &[&[F::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        _: Prefetch,
    ) {
        let groups: &[Group] = bytemuck::cast_slice(lhs);
        let mr = mr.rows();
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(mr)) {
            for (block, rows) in panel.iter().zip(groups.chunks_exact(mr * F::GROUPS)) {
                for group in 0..F::GROUPS {
                    let rows = rows.iter().skip(group).step_by(F::GROUPS);
                    multiply_group::<F>(block, group, rows, sums);
                }
            }
        }
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        round_activations(row)
    }
}

/// Adds the products of a group of several rows to their sums.
fn multiply_group<'a, F: GroupFormat>(
    block: &F::Block,
    group: usize,
    rows: impl Iterator<Item = &'a Group>,
    sums: &mut [[f32; NR]],
) {
    let numbers: [[i32; NR]; GROUP] = std::array::from_fn(|i| {
        std::array::from_fn(|column| F::number(block, group, i, column) - F::OFFSET)
    });
    let scales: [[f32; NR]; 2] = std::array::from_fn(|part| {
        std::array::from_fn(|column| F::scale(block, group, part.min(F::PARTS - 1), column))
    });
    let mins: [f32; NR] = std::array::from_fn(|column| F::min(block, group, column));
    for (row, sums) in rows.zip(sums) {
        let length = GROUP / F::PARTS;
        let parts = row.numbers.chunks_exact(length).zip(numbers.chunks_exact(length));
        for ((activations, numbers), scales) in parts.zip(&scales) {
            let mut totals = [0i32; NR];
            for (activation, numbers) in activations.iter().zip(numbers) {
                for (total, number) in totals.iter_mut().zip(numbers) {
                    *total += i32::from(*activation) * number;
                }
            }
            for ((sum, total), scale) in sums.iter_mut().zip(totals).zip(scales) {
                *sum += total as f32 * (scale * row.scale);
            }
        }
        if F::MINS {
            for (sum, min) in sums.iter_mut().zip(mins) {
                *sum -= min * row.scaled_sum;
            }
        }
    }
}

/// Quantises rows of `k` activations as `[blocks][mr]`. Numbers past `k` are 0. If there are fewer than `mr`
/// rows, the places of the missing rows in `lhs` are not written.
#[inline(always)]
fn pack_lhs<F: GroupFormat>(rows: &[f32], k: usize, mr: usize, lhs: &mut [F::PerGroup<Group>]) {
    let groups: &mut [Group] = bytemuck::cast_slice_mut(lhs);
    for (r, row) in rows.chunks_exact(k).enumerate() {
        let mut set = |index: usize, group| {
            let (block, group_of_block) = (index / F::GROUPS, index % F::GROUPS);
            groups[(block * mr + r) * F::GROUPS + group_of_block] = group;
        };
        let (whole, rest) = row.as_chunks();
        for (index, numbers) in whole.iter().enumerate() {
            set(index, quantise_activations::<F>(numbers));
        }
        if !rest.is_empty() {
            let mut padded = [0.0; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            set(whole.len(), quantise_activations::<F>(&padded));
        }
    }
}

#[inline(always)]
fn quantise_activations<F: GroupFormat>(numbers: &[f32; GROUP]) -> Group {
    let (scale, inverse) = scale(numbers);
    let mut integers = [0i32; GROUP];
    for (integer, number) in integers.iter_mut().zip(numbers) {
        // Adding 1.5 · 2²³ rounds to an integer, ties to even, in the lowest bits.
        let bits = (number * inverse + 12_582_912.0).to_bits();
        let rounded = bits as i32 - 12_582_912f32.to_bits() as i32;
        *integer = i32::from(rounded as i8);
    }
    let mut numbers = [0i8; GROUP];
    for (number, integer) in numbers.iter_mut().zip(&integers) {
        *number = *integer as i8;
    }
    let halves = integers.as_chunks::<{ GROUP / 2 }>().0;
    let sums: [i32; 2] = std::array::from_fn(|half| halves[half].iter().sum());
    let sum = sums[0] + sums[1];
    let offset = if F::SIGNED { UNSIGNED } else { F::OFFSET };
    let offsets = if F::PARTS == 2 { sums } else { [sum, 0] }.map(|sum| -offset * sum);
    Group { scale, scaled_sum: scale * sum as f32, offsets, numbers }
}

/// Packs up to 16 rows of the same length into a panel. If there are fewer than 16 rows, the places of the
/// missing rows in `panel` are not written.
///
/// # Panics
/// Panics if a row consists of blocks of another type, or of numbers and the format is only read from files.
fn pack_rows<F: GroupFormat>(rows: &[StoredRow<'_>], panel: &mut [F::Block]) {
    let length = F::GROUPS * GROUP;
    for (column, row) in rows.iter().enumerate() {
        for (index, block) in panel.iter_mut().enumerate() {
            let fields = match row {
                StoredRow::Blocks(block_type, blocks) => {
                    assert_eq!(*block_type, F::BLOCK_TYPE);
                    block_type.decode(&blocks[index * block_type.bytes()..])
                }
                row => {
                    let start = row.len().min(index * length);
                    let mut numbers = [0.0; GROUP];
                    let count = (row.len() - start).min(GROUP);
                    row.part(start, count).to_f32(&mut numbers[..count]);
                    F::quantise(&numbers)
                }
            };
            F::set_column(block, column, &fields);
        }
    }
}

/// Writes the first `out.len()` weights of one column of a panel.
fn unpack_row<F: GroupFormat>(panel: &[F::Block], column: usize, out: &mut [f32]) {
    for (block, out) in panel.iter().zip(out.chunks_mut(F::GROUPS * GROUP)) {
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let min = F::min(block, group, column);
            for (index, out) in out.iter_mut().enumerate() {
                let scale = F::scale(block, group, index * F::PARTS / GROUP, column);
                let number = F::number(block, group, index, column) - F::OFFSET;
                *out = scale * number as f32 - min;
            }
        }
    }
}

/// Returns the scale of a group and its inverse, or 0 twice for zeros. If a number is infinite or NaN, the
/// scale is NaN, so that every product with the group is NaN.
#[inline(always)]
pub(super) fn scale(numbers: &[f32; GROUP]) -> (f32, f32) {
    // The bits of positive numbers have the order of the numbers, and those of infinity and NaN are above all.
    let mut largest = [0u32; 16];
    for numbers in numbers.as_chunks::<16>().0 {
        for (largest, number) in largest.iter_mut().zip(numbers) {
            *largest = (*largest).max(number.to_bits() & 0x7fff_ffff);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    let scale = if largest.is_finite() { largest / LARGEST } else { f32::NAN };
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// Half bytes of a group of 16 outputs. Each byte holds two steps: the even one in its low half.
pub(super) type HalfBytes = [Step<u8>; GROUP / STEP / 2];

/// Returns half byte `index` of a group of one output.
pub(super) fn half_byte(bytes: &HalfBytes, index: usize, column: usize) -> u8 {
    let step = index / STEP;
    bytes[step / 2][column][index % STEP] >> (4 * (step % 2)) & 15
}

/// Sets half byte `index` of a group of one output, which must be 0.
pub(super) fn set_half_byte(bytes: &mut HalfBytes, index: usize, column: usize, value: u8) {
    let step = index / STEP;
    bytes[step / 2][column][index % STEP] |= (value & 15) << (4 * (step % 2));
}

/// Rounds a row of activations as [`pack_lhs`] does, for the oracle.
#[cfg(test)]
fn round_activations(row: &[f32]) -> Vec<f32> {
    let group = |group: &[f32]| {
        let scale = group.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        group.iter().map(|x| (x * inverse).round_ties_even() * scale).collect::<Vec<f32>>()
    };
    row.chunks(GROUP).flat_map(group).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

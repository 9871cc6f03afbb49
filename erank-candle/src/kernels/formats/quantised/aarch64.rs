//! Products of bytes on ARM.
//!
//! - `sdot` multiplies signed bytes, and adds four products to a sum in 32 bits.
//! - `smmla` multiplies two rows of eight signed bytes with two columns. A product has two rows and two steps of two
//!   columns, which are brought together first. The totals are brought apart before they are scaled.
//! - NEON alone (`smlal`) multiplies signed bytes too, and adds each product in 16 bits. As many steps are added as
//!   cannot exceed 16 bits, before the sums are widened.
//!
//! Stored numbers without a sign have at most 6 bits, so they are signed bytes as well.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int16x8_t, int32x4_t, int64x2_t, vaddq_f32, vaddq_s32, vandq_u8,
    vcvt_f32_f16, vcvtq_f32_s32, vcvtq_f32_u32, vdup_n_s32, vdup_n_u32, vdupq_n_f32, vdupq_n_s8,
    vdupq_n_s16, vdupq_n_s32, vdupq_n_u8, vget_low_s8, vget_low_s16, vget_low_u16, vld1_u16,
    vld1q_f32, vld1q_s8, vmlal_high_s8, vmlal_s8, vmovl_s8, vmovl_s16, vmovl_u8, vmovl_u16,
    vmulq_f32, vorrq_s8, vpadalq_s16, vpaddq_s32, vreinterpret_f16_u16, vreinterpret_s8_s32,
    vreinterpret_u8_u32, vreinterpretq_s8_s32, vreinterpretq_s8_s64, vreinterpretq_s8_u8,
    vreinterpretq_s32_s8, vreinterpretq_s32_s64, vreinterpretq_s64_s8, vreinterpretq_s64_s32,
    vreinterpretq_u8_s8, vshlq_n_u8, vshrq_n_u8, vst1q_f32, vsubq_f32, vzip1q_s32, vzip1q_s64,
    vzip2q_s32, vzip2q_s64,
};
use std::arch::asm;

use half::f16;

use super::byte_products::{ByteIsa, GroupProduct, Tile};
use super::registers::Registers;
use super::{GROUP, GroupFormat, LARGEST, STEP, Step};
use crate::kernels::arch::Isa;
use crate::kernels::arch::aarch64::neon::Neon;
use crate::kernels::arch::aarch64::neon_dotprod::NeonDotprod;
use crate::kernels::arch::aarch64::neon_i8mm::NeonI8mm;
use crate::kernels::tile::NR;

/// Columns of a register.
const LANES: usize = 4;

impl Registers for Neon {
    const LANES: usize = LANES;
    type Bytes = int8x16_t;
    type Floats = float32x4_t;

    #[inline(always)]
    fn load(self, step: &Step<impl bytemuck::Pod>, side: usize) -> int8x16_t {
        let bytes: &[i8] = bytemuck::cast_slice(step);
        let bytes: &[i8; 4 * LANES] = &bytes.as_chunks().0[side];
        // SAFETY: the machine must have the set, of which `self` is a proof. The array is as long as the register.
        unsafe { vld1q_s8(bytes.as_ptr()) }
    }

    #[inline(always)]
    fn shift(self, bytes: int8x16_t, places: i32, mask: u8) -> int8x16_t {
        // SAFETY: the machine must have the set, of which `self` is a proof.
        unsafe {
            let bytes = vreinterpretq_u8_s8(bytes);
            let moved = match places {
                -4 => vshlq_n_u8::<4>(bytes),
                -3 => vshlq_n_u8::<3>(bytes),
                -2 => vshlq_n_u8::<2>(bytes),
                -1 => vshlq_n_u8::<1>(bytes),
                1 => vshrq_n_u8::<1>(bytes),
                2 => vshrq_n_u8::<2>(bytes),
                3 => vshrq_n_u8::<3>(bytes),
                4 => vshrq_n_u8::<4>(bytes),
                _ => bytes,
            };
            vreinterpretq_s8_u8(vandq_u8(moved, vdupq_n_u8(mask)))
        }
    }

    #[inline(always)]
    fn or(self, a: int8x16_t, b: int8x16_t) -> int8x16_t {
        // SAFETY: as in `shift`.
        unsafe { vorrq_s8(a, b) }
    }

    #[inline(always)]
    fn load_f16(self, numbers: &[f16; NR], side: usize) -> float32x4_t {
        let numbers: &[u16; NR] = bytemuck::cast_ref(numbers);
        let numbers: &[u16; LANES] = &numbers.as_chunks().0[side];
        // SAFETY: as in `load`; the load reads 8 bytes, and the array has them.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(numbers.as_ptr()))) }
    }

    #[inline(always)]
    fn load_u8(self, numbers: &[u8; NR], side: usize) -> float32x4_t {
        let numbers: [u8; LANES] = numbers.as_chunks().0[side];
        // SAFETY: as in `shift`.
        unsafe {
            let bytes = vreinterpret_u8_u32(vdup_n_u32(bytemuck::cast(numbers)));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        }
    }

    #[inline(always)]
    fn load_i8(self, numbers: &[i8; NR], side: usize) -> float32x4_t {
        let numbers: [i8; LANES] = numbers.as_chunks().0[side];
        // SAFETY: as in `shift`.
        unsafe {
            let bytes = vreinterpret_s8_s32(vdup_n_s32(bytemuck::cast(numbers)));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }

    #[inline(always)]
    fn load_f32(self, numbers: &[f32; NR], side: usize) -> float32x4_t {
        let numbers: &[f32; LANES] = &numbers.as_chunks().0[side];
        // SAFETY: as in `load`.
        unsafe { vld1q_f32(numbers.as_ptr()) }
    }

    #[inline(always)]
    fn store_f32(self, numbers: &mut [f32; NR], side: usize, columns: float32x4_t) {
        let numbers: &mut [f32; LANES] = &mut numbers.as_chunks_mut().0[side];
        // SAFETY: as in `load`.
        unsafe { vst1q_f32(numbers.as_mut_ptr(), columns) }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> float32x4_t {
        // SAFETY: as in `shift`.
        unsafe { vdupq_n_f32(number) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as in `shift`.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn subtract(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as in `shift`.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn multiply(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as in `shift`.
        unsafe { vmulq_f32(a, b) }
    }
}

/// Sums of four columns on NEON alone, two lanes for each column.
#[derive(Clone, Copy)]
pub(super) struct NeonTotals {
    /// Sums of products of four numbers of each column, in 16 bits.
    narrow: [int16x8_t; 2],
    wide: [int32x4_t; 2],
}

/// Returns the largest power of two of steps whose products can be added in 16 bits.
const fn steps_in_16_bits<F: GroupFormat>() -> usize {
    let largest = if F::SIGNED { 128 } else { (1 << F::BITS) - 1 } * LARGEST as usize;
    let mut steps = 1;
    while 2 * steps * largest <= i16::MAX as usize {
        steps *= 2;
    }
    steps
}

impl ByteIsa for Neon {
    type Registers = Self;
    type Totals = NeonTotals;
    const MAX_TOTALS: usize = 4;

    #[inline(always)]
    fn registers(self) -> Self {
        self
    }

    #[inline(always)]
    fn start<F: GroupFormat>(self, _: i32) -> NeonTotals {
        // SAFETY: the machine must have the set, of which `self` is a proof.
        unsafe { NeonTotals { narrow: [vdupq_n_s16(0); 2], wide: [vdupq_n_s32(0); 2] } }
    }

    #[inline(always)]
    fn add_products<F: GroupFormat, const INDEX: usize>(
        self,
        totals: NeonTotals,
        weights: int8x16_t,
        numbers: &[i8; GROUP],
    ) -> NeonTotals {
        let NeonTotals { narrow: [low, high], mut wide } = totals;
        // SAFETY: the machine must have the set, of which `self` is a proof.
        unsafe {
            let numbers = numbers.as_chunks::<STEP>().0[INDEX];
            let numbers = vreinterpretq_s8_s32(vdupq_n_s32(bytemuck::cast(numbers)));
            let low = vmlal_s8(low, vget_low_s8(weights), vget_low_s8(numbers));
            let mut narrow = [keep(low), keep(vmlal_high_s8(high, weights, numbers))];
            let steps = const { min(steps_in_16_bits::<F>(), GROUP / STEP / F::PARTS) };
            if (INDEX + 1).is_multiple_of(steps) {
                wide = [vpadalq_s16(wide[0], narrow[0]), vpadalq_s16(wide[1], narrow[1])];
                narrow = [vdupq_n_s16(0); 2];
            }
            NeonTotals { narrow, wide }
        }
    }

    #[inline(always)]
    fn finish<F: GroupFormat>(self, totals: NeonTotals, offset: i32) -> float32x4_t {
        let [low, high] = totals.wide;
        // SAFETY: the machine must have the set, of which `self` is a proof.
        unsafe { with_offset::<F>(vpaddq_s32(low, high), offset) }
    }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// Returns its argument, and keeps the compiler from adding the products of several steps before they are added to it.
#[inline]
#[target_feature(enable = "neon")]
fn keep(mut register: int16x8_t) -> int16x8_t {
    // SAFETY: there are no instructions.
    unsafe {
        asm!("/* {:v} */", inout(vreg) register, options(pure, nomem, nostack, preserves_flags));
    }
    register
}

/// Adds the offset to totals. Signed weights are multiplied as they are, so they need none.
#[inline]
#[target_feature(enable = "neon")]
fn with_offset<F: GroupFormat>(totals: int32x4_t, offset: i32) -> float32x4_t {
    vcvtq_f32_s32(vaddq_s32(totals, vdupq_n_s32(if F::SIGNED { 0 } else { offset })))
}

/// Implements what the sets with `sdot` have in common.
macro_rules! dot_products {
    () => {
        type Registers = Neon;
        type Totals = int32x4_t;
        const MAX_TOTALS: usize = 16;

        #[inline(always)]
        fn registers(self) -> Neon {
            self.widening()
        }

        #[inline(always)]
        fn start<F: GroupFormat>(self, _: i32) -> int32x4_t {
            // SAFETY: the machine must have the set, of which `self` is a proof.
            unsafe { vdupq_n_s32(0) }
        }

        #[inline(always)]
        fn add_products<F: GroupFormat, const INDEX: usize>(
            self,
            totals: int32x4_t,
            weights: int8x16_t,
            numbers: &[i8; GROUP],
        ) -> int32x4_t {
            // SAFETY: as in `start`.
            unsafe { dot::<INDEX>(totals, weights, load_half(numbers, INDEX / 4)) }
        }

        #[inline(always)]
        fn finish<F: GroupFormat>(self, totals: int32x4_t, offset: i32) -> float32x4_t {
            // SAFETY: as in `start`.
            unsafe { with_offset::<F>(totals, offset) }
        }
    };
}

impl ByteIsa for NeonDotprod {
    dot_products!();
}

impl ByteIsa for NeonI8mm {
    dot_products!();

    #[expect(
        clippy::needless_range_loop,
        reason = "tiles stay in registers only in loops over indices"
    )]
    #[inline(always)]
    fn multiply_half<
        F: GroupFormat,
        const MR: usize,
        const PANELS: usize,
        const SIDES: usize,
        const HALF: usize,
    >(
        product: &GroupProduct<'_, F, Self, MR, PANELS, SIDES>,
        tile: &mut Tile<Self, MR, PANELS, SIDES>,
    ) {
        // A single row would leave half of each product empty.
        if MR == 1 {
            return product.multiply_steps::<HALF>(tile);
        }
        // SAFETY: the machine must have the set, of which the product's token is a proof.
        unsafe {
            // By pair of rows: the first two steps of both, and the last two.
            let mut rows = [[vdupq_n_s8(0); 2]; MR];
            for r in (0..MR).step_by(2) {
                let [first, second] = [r, r + 1].map(|r| load_half(&product.rows[r].numbers, HALF));
                rows[r] = exchange(vreinterpretq_s64_s8(first), vreinterpretq_s64_s8(second))
                    .map(|numbers| vreinterpretq_s8_s64(numbers));
            }
            for panel in 0..PANELS {
                for side in 0..SIDES {
                    let steps = if const { HALF == 0 } {
                        [
                            product.load_step::<0>(panel, side),
                            product.load_step::<1>(panel, side),
                            product.load_step::<2>(panel, side),
                            product.load_step::<3>(panel, side),
                        ]
                    } else {
                        [
                            product.load_step::<4>(panel, side),
                            product.load_step::<5>(panel, side),
                            product.load_step::<6>(panel, side),
                            product.load_step::<7>(panel, side),
                        ]
                    };
                    // Two steps of two columns each.
                    let [first, second, third, fourth] =
                        steps.map(|step| vreinterpretq_s32_s8(step));
                    let columns = [
                        [vzip1q_s32(first, second), vzip2q_s32(first, second)],
                        [vzip1q_s32(third, fourth), vzip2q_s32(third, fourth)],
                    ];
                    let totals = &mut tile[panel][side];
                    for r in (0..MR).step_by(2) {
                        let [mut left, mut right] = exchange_totals(totals[r], totals[r + 1]);
                        for (rows, columns) in rows[r].into_iter().zip(columns) {
                            left = matrix(left, rows, vreinterpretq_s8_s32(columns[0]));
                            right = matrix(right, rows, vreinterpretq_s8_s32(columns[1]));
                        }
                        [totals[r], totals[r + 1]] = exchange_totals(left, right);
                    }
                }
            }
        }
    }
}

/// Reads the numbers of half a group.
#[inline]
#[target_feature(enable = "neon")]
fn load_half(numbers: &[i8; GROUP], half: usize) -> int8x16_t {
    let numbers: &[i8; GROUP / 2] = &numbers.as_chunks().0[half];
    // SAFETY: the load reads 16 bytes, and the array has them.
    unsafe { vld1q_s8(numbers.as_ptr()) }
}

/// Exchanges the last eight bytes of the first register with the first eight of the second.
#[inline]
#[target_feature(enable = "neon")]
fn exchange(first: int64x2_t, second: int64x2_t) -> [int64x2_t; 2] {
    [vzip1q_s64(first, second), vzip2q_s64(first, second)]
}

/// Turns the totals of two rows of four columns into two matrices of two columns, or back.
#[inline]
#[target_feature(enable = "neon")]
fn exchange_totals(first: int32x4_t, second: int32x4_t) -> [int32x4_t; 2] {
    exchange(vreinterpretq_s64_s32(first), vreinterpretq_s64_s32(second))
        .map(|totals| vreinterpretq_s32_s64(totals))
}

/// Adds the products of step `INDEX` of a group, of whose numbers `numbers` is a half, to the totals of four columns.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const INDEX: usize>(
    mut totals: int32x4_t,
    weights: int8x16_t,
    numbers: int8x16_t,
) -> int32x4_t {
    // SAFETY: the machine must have the instruction, which the function's features say. It touches no memory.
    unsafe {
        asm!(
            "sdot {totals:v}.4s, {weights:v}.16b, {numbers:v}.4b[{step}]",
            totals = inout(vreg) totals,
            weights = in(vreg) weights,
            numbers = in(vreg) numbers,
            step = const INDEX % 4,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    totals
}

/// Adds the products of two rows and two columns of eight numbers to their four totals.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn matrix(mut totals: int32x4_t, rows: int8x16_t, columns: int8x16_t) -> int32x4_t {
    // SAFETY: as in `dot`.
    unsafe {
        asm!(
            "smmla {totals:v}.4s, {rows:v}.16b, {columns:v}.16b",
            totals = inout(vreg) totals,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    totals
}

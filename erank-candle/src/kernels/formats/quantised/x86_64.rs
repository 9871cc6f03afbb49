//! Products of bytes on x86-64.
//!
//! - VNNI (`vpdpbusd`) multiplies unsigned with signed bytes, and adds four products to a sum in 32 bits. Signed
//!   weights are made unsigned by adding 128, and the sums lose 128 times the sum of the activations.
//! - `vpmaddubsw`, of AVX2 and AVX-512, multiplies unsigned with signed bytes too, and adds pairs of products in 16
//!   bits. Numbers of 4, 5 and 6 bits are small enough for that and for adding the products of several steps in 16
//!   bits. Signed numbers of 8 bits are multiplied as their magnitudes, and their signs move to the activations.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::asm;
use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_abs_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_sub_ps, _mm256_xor_si256, _mm512_abs_epi8, _mm512_add_epi16, _mm512_add_epi32,
    _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_mask_sub_epi8,
    _mm512_movepi8_mask, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16,
    _mm512_storeu_ps, _mm512_sub_ps, _mm512_xor_si512,
};

use half::f16;

use super::byte_products::ByteIsa;
use super::registers::Registers;
use super::{GROUP, GroupFormat, LARGEST, STEP, Step, UNSIGNED};
use crate::kernels::arch::Isa;
use crate::kernels::arch::x86_64::avx_vnni::AvxVnni;
use crate::kernels::arch::x86_64::avx2::Avx2;
use crate::kernels::arch::x86_64::avx512::Avx512;
use crate::kernels::arch::x86_64::avx512_vnni::Avx512Vnni;
use crate::kernels::tile::NR;

/// Returns the four numbers of step `INDEX`.
#[inline(always)]
fn step<const INDEX: usize>(numbers: &[i8; GROUP]) -> i32 {
    bytemuck::cast(numbers.as_chunks::<STEP>().0[INDEX])
}

/// Implements [`Registers`] with the intrinsics of a width.
macro_rules! registers {
    ($isa:ty, $lanes:literal, $bytes:ty, $floats:ty,
     load: $load:ident, load_f32: $load_f32:ident, load_f16: $load_f16:expr, load_u8: $load_u8:expr,
     load_i8: $load_i8:expr, store: $store:ident, bits: $and:ident $or:ident $left:ident $right:ident,
     set: $set_bytes:ident $set_floats:ident, arithmetic: $add:ident $sub:ident $mul:ident) => {
        impl Registers for $isa {
            const LANES: usize = $lanes;
            type Bytes = $bytes;
            type Floats = $floats;

            #[inline(always)]
            fn load(self, step: &Step<impl bytemuck::Pod>, side: usize) -> $bytes {
                let bytes: &[u8] = bytemuck::cast_slice(step);
                let bytes: &[u8; 4 * $lanes] = &bytes.as_chunks().0[side];
                // SAFETY: the machine must have the set, of which `self` is a proof. The array is as long as the
                // register.
                unsafe { $load(bytes.as_ptr().cast()) }
            }

            #[inline(always)]
            fn shift(self, bytes: $bytes, places: i32, mask: u8) -> $bytes {
                // SAFETY: the machine must have the set, of which `self` is a proof.
                unsafe {
                    let moved = match places {
                        -4 => $left::<4>(bytes),
                        -3 => $left::<3>(bytes),
                        -2 => $left::<2>(bytes),
                        -1 => $left::<1>(bytes),
                        1 => $right::<1>(bytes),
                        2 => $right::<2>(bytes),
                        3 => $right::<3>(bytes),
                        4 => $right::<4>(bytes),
                        _ => bytes,
                    };
                    $and(moved, $set_bytes(mask.cast_signed()))
                }
            }

            #[inline(always)]
            fn or(self, a: $bytes, b: $bytes) -> $bytes {
                // SAFETY: as in `shift`.
                unsafe { $or(a, b) }
            }

            #[inline(always)]
            fn load_f16(self, numbers: &[f16; NR], side: usize) -> $floats {
                let numbers: &[f16; $lanes] = &numbers.as_chunks().0[side];
                // SAFETY: as in `load`.
                unsafe { $load_f16(numbers.as_ptr()) }
            }

            #[inline(always)]
            fn load_u8(self, numbers: &[u8; NR], side: usize) -> $floats {
                let numbers: &[u8; $lanes] = &numbers.as_chunks().0[side];
                // SAFETY: as in `load`.
                unsafe { $load_u8(numbers.as_ptr()) }
            }

            #[inline(always)]
            fn load_i8(self, numbers: &[i8; NR], side: usize) -> $floats {
                let numbers: &[i8; $lanes] = &numbers.as_chunks().0[side];
                // SAFETY: as in `load`.
                unsafe { $load_i8(numbers.as_ptr()) }
            }

            #[inline(always)]
            fn load_f32(self, numbers: &[f32; NR], side: usize) -> $floats {
                let numbers: &[f32; $lanes] = &numbers.as_chunks().0[side];
                // SAFETY: as in `load`.
                unsafe { $load_f32(numbers.as_ptr()) }
            }

            #[inline(always)]
            fn store_f32(self, numbers: &mut [f32; NR], side: usize, columns: $floats) {
                let numbers: &mut [f32; $lanes] = &mut numbers.as_chunks_mut().0[side];
                // SAFETY: as in `load`.
                unsafe { $store(numbers.as_mut_ptr(), columns) }
            }

            #[inline(always)]
            fn splat(self, number: f32) -> $floats {
                // SAFETY: as in `shift`.
                unsafe { $set_floats(number) }
            }

            #[inline(always)]
            fn add(self, a: $floats, b: $floats) -> $floats {
                // SAFETY: as in `shift`.
                unsafe { $add(a, b) }
            }

            #[inline(always)]
            fn subtract(self, a: $floats, b: $floats) -> $floats {
                // SAFETY: as in `shift`.
                unsafe { $sub(a, b) }
            }

            #[inline(always)]
            fn multiply(self, a: $floats, b: $floats) -> $floats {
                // SAFETY: as in `shift`.
                unsafe { $mul(a, b) }
            }
        }
    };
}

registers! {
    Avx2, 8, __m256i, __m256,
    load: _mm256_loadu_si256,
    load_f32: _mm256_loadu_ps,
    load_f16: |numbers: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(numbers.cast())),
    load_u8: |numbers: *const u8| {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(numbers.cast())))
    },
    load_i8: |numbers: *const i8| {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(numbers.cast())))
    },
    store: _mm256_storeu_ps,
    bits: _mm256_and_si256 _mm256_or_si256 _mm256_slli_epi16 _mm256_srli_epi16,
    set: _mm256_set1_epi8 _mm256_set1_ps,
    arithmetic: _mm256_add_ps _mm256_sub_ps _mm256_mul_ps
}

registers! {
    Avx512, 16, __m512i, __m512,
    load: _mm512_loadu_si512,
    load_f32: _mm512_loadu_ps,
    load_f16: |numbers: *const f16| _mm512_cvtph_ps(_mm256_loadu_si256(numbers.cast())),
    load_u8: |numbers: *const u8| {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(numbers.cast())))
    },
    load_i8: |numbers: *const i8| {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(numbers.cast())))
    },
    store: _mm512_storeu_ps,
    bits: _mm512_and_si512 _mm512_or_si512 _mm512_slli_epi16 _mm512_srli_epi16,
    set: _mm512_set1_epi8 _mm512_set1_ps,
    arithmetic: _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
}

/// Returns its argument, and keeps the compiler from computing the argument later. Otherwise the compiler collects
/// the products of several steps before it adds them, and runs out of registers.
#[inline]
#[target_feature(enable = "avx2")]
fn keep_256(mut register: __m256i) -> __m256i {
    // SAFETY: there are no instructions.
    unsafe {
        asm!("/* {} */", inout(ymm_reg) register, options(nomem, nostack, preserves_flags));
    }
    register
}

/// Does as [`keep_256`].
#[inline]
#[target_feature(enable = "avx512f")]
fn keep_512(mut register: __m512i) -> __m512i {
    // SAFETY: as in `keep_256`.
    unsafe {
        asm!("/* {} */", inout(zmm_reg) register, options(nomem, nostack, preserves_flags));
    }
    register
}

/// Sums of one column register of a set without `vpdpbusd`.
#[derive(Clone, Copy)]
pub(super) struct PairTotals<T> {
    /// Sums of pairs of products, in 16 bits.
    narrow: T,
    wide: T,
}

/// Returns the largest power of two of steps whose products of unsigned numbers can be added in 16 bits.
const fn steps_in_16_bits<F: GroupFormat>() -> usize {
    let largest_pair = 2 * ((1 << F::BITS) - 1) * LARGEST as usize;
    let mut steps = 1;
    while 2 * steps * largest_pair <= i16::MAX as usize {
        steps *= 2;
    }
    steps
}

/// Implements [`ByteIsa`] with the intrinsics of `vpmaddubsw` of a width. `sign` gives numbers the signs of weights.
macro_rules! pairs {
    ($isa:ty, $integers:ty, $floats:ty, totals: $totals:literal, sign: $sign:expr, abs: $abs:ident,
     set: $zero:ident $set_16:ident $set:ident, add: $add_16:ident $add:ident,
     multiply: $multiply:ident $widen:ident, convert: $convert:ident, keep: $keep:ident) => {
        impl ByteIsa for $isa {
            type Registers = Self;
            type Totals = PairTotals<$integers>;
            const MAX_TOTALS: usize = $totals;

            #[inline(always)]
            fn registers(self) -> Self {
                self
            }

            #[inline(always)]
            fn start<F: GroupFormat>(self, offset: i32) -> PairTotals<$integers> {
                // Signed weights are multiplied as they are.
                let offset = if F::SIGNED { 0 } else { offset };
                // SAFETY: the machine must have the set, of which `self` is a proof.
                unsafe { PairTotals { narrow: $zero(), wide: $set(offset) } }
            }

            #[inline(always)]
            fn add_products<F: GroupFormat, const INDEX: usize>(
                self,
                totals: PairTotals<$integers>,
                weights: $integers,
                numbers: &[i8; GROUP],
            ) -> PairTotals<$integers> {
                let PairTotals { mut narrow, mut wide } = totals;
                // SAFETY: as in `start`.
                unsafe {
                    let numbers = $set(step::<INDEX>(numbers));
                    let ones = $set_16(1);
                    if F::SIGNED {
                        let signed = $sign(numbers, weights);
                        let products = $multiply($abs(weights), signed);
                        wide = $keep($add(wide, $widen(products, ones)));
                    } else {
                        narrow = $keep($add_16(narrow, $multiply(weights, numbers)));
                        if (INDEX + 1).is_multiple_of(const { steps_in_16_bits::<F>() }) {
                            wide = $add(wide, $widen(narrow, ones));
                            narrow = $zero();
                        }
                    }
                }
                PairTotals { narrow, wide }
            }

            #[inline(always)]
            fn finish<F: GroupFormat>(self, totals: PairTotals<$integers>, _: i32) -> $floats {
                // SAFETY: as in `start`.
                unsafe { $convert(totals.wide) }
            }
        }
    };
}

pairs! {
    Avx2, __m256i, __m256, totals: 8,
    sign: _mm256_sign_epi8, abs: _mm256_abs_epi8,
    set: _mm256_setzero_si256 _mm256_set1_epi16 _mm256_set1_epi32,
    add: _mm256_add_epi16 _mm256_add_epi32,
    multiply: _mm256_maddubs_epi16 _mm256_madd_epi16,
    convert: _mm256_cvtepi32_ps, keep: keep_256
}

pairs! {
    Avx512, __m512i, __m512, totals: 8,
    sign: |numbers: __m512i, weights: __m512i| {
        // The magnitude of a weight of 0 is 0, so its sign does not matter.
        _mm512_mask_sub_epi8(numbers, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), numbers)
    },
    abs: _mm512_abs_epi8,
    set: _mm512_setzero_si512 _mm512_set1_epi16 _mm512_set1_epi32,
    add: _mm512_add_epi16 _mm512_add_epi32,
    multiply: _mm512_maddubs_epi16 _mm512_madd_epi16,
    convert: _mm512_cvtepi32_ps, keep: keep_512
}

/// Implements [`ByteIsa`] with the intrinsics of `vpdpbusd` of a width.
macro_rules! vnni {
    ($isa:ty, $registers:ty, $integers:ty, $floats:ty, totals: $totals:literal, xor: $xor:ident,
     set: $set_bytes:ident $set:ident, convert: $convert:ident, dot: $dot:ident, keep: $keep:ident) => {
        impl ByteIsa for $isa {
            type Registers = $registers;
            type Totals = $integers;
            const MAX_TOTALS: usize = $totals;

            #[inline(always)]
            fn registers(self) -> $registers {
                self.widening()
            }

            #[inline(always)]
            fn start<F: GroupFormat>(self, offset: i32) -> $integers {
                let offset = if F::SIGNED || F::OFFSET != 0 { offset } else { 0 };
                // SAFETY: the machine must have the set, of which `self` is a proof.
                unsafe { $set(offset) }
            }

            #[inline(always)]
            fn add_products<F: GroupFormat, const INDEX: usize>(
                self,
                totals: $integers,
                weights: $integers,
                numbers: &[i8; GROUP],
            ) -> $integers {
                // SAFETY: as in `start`.
                unsafe {
                    let weights = match F::SIGNED {
                        true => $xor(weights, $set_bytes(UNSIGNED as i8)),
                        false => weights,
                    };
                    $keep($dot(totals, weights, $set(step::<INDEX>(numbers))))
                }
            }

            #[inline(always)]
            fn finish<F: GroupFormat>(self, totals: $integers, _: i32) -> $floats {
                // SAFETY: as in `start`.
                unsafe { $convert(totals) }
            }
        }
    };
}

vnni! {
    AvxVnni, Avx2, __m256i, __m256, totals: 8,
    xor: _mm256_xor_si256, set: _mm256_set1_epi8 _mm256_set1_epi32,
    convert: _mm256_cvtepi32_ps, dot: _mm256_dpbusd_avx_epi32,
    keep: keep_256
}

vnni! {
    Avx512Vnni, Avx512, __m512i, __m512, totals: 16,
    xor: _mm512_xor_si512, set: _mm512_set1_epi8 _mm512_set1_epi32,
    convert: _mm512_cvtepi32_ps, dot: _mm512_dpbusd_epi32,
    keep: keep_512
}

//! AVX-512 with products of BF16 pairs (`vdpbf16ps`). One instruction does twice as many multiplications as
//! in F32, and no operand is widened.
//!
//! ```text
//! for each block of two inputs i, panel p, row r:
//!     sums[p][r][column] += lhs[i][r][0] · panel[p][i][column][0] + lhs[i][r][1] · panel[p][i][column][1]
//! ```
//!
//! The code differs from that in these points:
//!
//! 1. The sums of all rows of `PANELS` panels are in registers. So each pair of the lhs is used for several
//!    panels, and each block of a panel is used for all rows.
//! 2. Each step prefetches a part of the data that follows.
#![expect(unsafe_code, reason = "vector loads, and calls of functions that need the instruction")]

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::super::super::tile::{Mr, NR, Prefetch};
use super::super::isa::Isa;
use super::avx512::Avx512;
use super::avx512_vnni::Avx512Vnni;

/// Two inputs of 16 columns, one step of a panel.
type Block = [[bf16; 2]; NR];

/// [`Avx512Vnni`] with products of BF16 pairs: 32 registers of 32 BF16 or 16 F32 numbers. Every processor with
/// the latter has the former.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(Avx512Vnni);

impl Isa for Avx512Bf16 {
    const NAME: &'static str = "avx512bf16";
    const MAX_MR: Mr = Mr::Eight;
    type Base = Avx512Vnni;
    type Widening = Avx512;

    fn detect() -> Option<Self> {
        Avx512Vnni::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    fn base(self) -> Option<Avx512Vnni> {
        Some(self.0)
    }

    fn widening(self) -> Avx512 {
        self.0.widening()
    }

    #[inline]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to make
        // it, checked all of them.
        unsafe { run(work) }
    }
}

impl Avx512Bf16 {
    /// Adds the product of the lhs, `[blocks][mr][2]`, and each panel, `[blocks][16][2]`, to `sums`,
    /// `[panels][mr][16]`.
    ///
    /// If the operands differ in length, the shortest one decides.
    #[inline]
    pub(crate) fn multiply_pairs(
        self,
        lhs: &[[bf16; 2]],
        panels: &[&[Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
        // make it, checked all of them.
        unsafe {
            match mr {
                Mr::One => multiply::<1, 4>(lhs, panels, sums, prefetch),
                Mr::Two => multiply::<2, 4>(lhs, panels, sums, prefetch),
                Mr::Four => multiply::<4, 4>(lhs, panels, sums, prefetch),
                Mr::Eight => multiply::<8, 2>(lhs, panels, sums, prefetch),
            }
        }
    }

    /// Adds the products of queries, `[head_dim / 2][mr][2]`, and the keys of several blocks of 16 tokens, each
    /// `[head_dim / 2][16][2]`, to `scores`, `[blocks][mr][16]`.
    ///
    /// If the operands differ in length, the shortest one decides.
    #[inline]
    pub(crate) fn multiply_keys(
        self,
        queries: &[[bf16; 2]],
        keys: &[&[Block]],
        mr: Mr,
        scores: &mut [[f32; NR]],
    ) {
        // A block's values follow its keys.
        let distance = keys.first().map_or(0, |keys| size_of_val(*keys));
        self.multiply_pairs(queries, keys, mr, scores, Prefetch { distance, stride: 64 });
    }

    /// Adds the products of attention weights, `[blocks][mr][16]`, and the values of several blocks, each panels of 8
    /// pairs of tokens, to `sums`, `[panels][mr][16]`. Only the pairs of a block's first `visible` tokens are read.
    /// Meanwhile prefetches `next_keys`, one for each block.
    ///
    /// If the operands differ in length, the shortest one decides.
    #[inline]
    pub(crate) fn weigh_values(
        self,
        weights: &[[bf16; NR]],
        values: &[&[Block]],
        mr: Mr,
        visible: &[usize],
        next_keys: &[&[Block]],
        sums: &mut [[f32; NR]],
    ) {
        let blocks = Blocks { weights, values, visible, next_keys };
        // SAFETY: as in `multiply_pairs`.
        unsafe {
            match mr {
                Mr::One => weigh::<1, 8>(&blocks, sums),
                Mr::Two => weigh::<2, 8>(&blocks, sums),
                Mr::Four => weigh::<4, 4>(&blocks, sums),
                Mr::Eight => weigh::<8, 2>(&blocks, sums),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn run<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Multiplies all panels, `PANELS` at once and the rest one by one.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const MR: usize, const PANELS: usize>(
    lhs: &[[bf16; 2]],
    panels: &[&[Block]],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    let lhs = lhs.as_chunks::<MR>().0;
    let (groups, rest) = panels.as_chunks();
    let (group_sums, rest_sums) = sums.split_at_mut((groups.len() * PANELS * MR).min(sums.len()));
    for (panels, sums) in groups.iter().zip(group_sums.chunks_exact_mut(PANELS * MR)) {
        multiply_tile::<MR, PANELS>(lhs, panels, sums, prefetch);
    }
    for (panel, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(MR)) {
        multiply_tile::<MR, 1>(lhs, &[panel], sums, prefetch);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_tile<const MR: usize, const PANELS: usize>(
    lhs: &[[[bf16; 2]; MR]],
    panels: &[&[Block]; PANELS],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    let mut steps = lhs.len();
    for panel in panels {
        steps = steps.min(panel.len());
    }
    let mut accumulators = [[_mm512_setzero_ps(); MR]; PANELS];
    for (accumulators, sums) in accumulators.iter_mut().zip(sums.as_chunks::<MR>().0) {
        for (accumulator, sum) in accumulators.iter_mut().zip(sums) {
            // SAFETY: the load reads 64 bytes, and an array of 16 F32 numbers has them.
            *accumulator = unsafe { _mm512_loadu_ps(sum.as_ptr()) };
        }
    }
    for (i, lhs) in lhs[..steps].iter().enumerate() {
        let mut weights = [pairs(_mm512_set1_epi32(0)); PANELS];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            let later = prefetch.distance.wrapping_add(i * prefetch.stride);
            _mm_prefetch::<_MM_HINT_T0>(panel.as_ptr().wrapping_byte_add(later).cast());
            // SAFETY: the load reads the 64 bytes of block `i`. A panel has at least `steps` blocks, as
            // computed above, and `i` is below `steps`.
            *weights = pairs(unsafe { _mm512_loadu_si512(panel.as_ptr().add(i).cast()) });
        }
        for (row, pair) in lhs.iter().enumerate() {
            let pair = broadcast(*pair);
            for (accumulators, weights) in accumulators.iter_mut().zip(weights) {
                accumulators[row] = _mm512_dpbf16_ps(accumulators[row], pair, weights);
            }
        }
    }
    for (accumulators, sums) in accumulators.iter().zip(sums.as_chunks_mut::<MR>().0) {
        for (accumulator, sum) in accumulators.iter().zip(sums) {
            // SAFETY: the store writes 64 bytes, and an array of 16 F32 numbers has them.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), *accumulator) };
        }
    }
}

/// Blocks of the cache whose values are weighed.
struct Blocks<'a> {
    /// `[blocks][mr]`.
    weights: &'a [[bf16; NR]],
    values: &'a [&'a [Block]],
    /// The first tokens of each block, of which the values are read.
    visible: &'a [usize],
    /// The keys that attention reads after these values, to be prefetched.
    next_keys: &'a [&'a [Block]],
}

/// Weighs all panels of the values, `PANELS` at once and the rest one by one.
#[target_feature(enable = "avx512f,avx512bf16")]
fn weigh<const MR: usize, const PANELS: usize>(blocks: &Blocks<'_>, sums: &mut [[f32; NR]]) {
    let (groups, rest) = sums.as_chunks_mut::<MR>().0.as_chunks_mut::<PANELS>();
    let count = groups.len();
    for (index, sums) in groups.iter_mut().enumerate() {
        weigh_panels::<MR, PANELS>(blocks, index * PANELS, sums);
    }
    for (index, sums) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        weigh_panels::<MR, 1>(blocks, count * PANELS + index, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn weigh_panels<const MR: usize, const PANELS: usize>(
    blocks: &Blocks<'_>,
    first_panel: usize,
    sums: &mut [[[f32; NR]; MR]; PANELS],
) {
    let Blocks { values, visible, next_keys, .. } = *blocks;
    let weights = blocks.weights.as_chunks::<MR>().0;
    let mut accumulators = [[_mm512_setzero_ps(); MR]; PANELS];
    for (accumulators, sums) in accumulators.iter_mut().zip(&*sums) {
        for (accumulator, sum) in accumulators.iter_mut().zip(sums) {
            // SAFETY: the load reads 64 bytes, and an array of 16 F32 numbers has them.
            *accumulator = unsafe { _mm512_loadu_ps(sum.as_ptr()) };
        }
    }
    for (block, ((weights, values), visible)) in weights.iter().zip(values).zip(visible).enumerate()
    {
        let next_keys = next_keys.get(block).filter(|keys| !keys.is_empty());
        let next_keys = next_keys.unwrap_or(values).as_ptr();
        let panels = &values.as_chunks::<{ NR / 2 }>().0[first_panel..];
        let Some(panels) = panels.first_chunk::<PANELS>() else { break };
        let steps = (*visible).min(NR).div_ceil(2);
        for step in 0..steps {
            let mut columns = [pairs(_mm512_set1_epi32(0)); PANELS];
            for (index, (columns, panel)) in columns.iter_mut().zip(panels).enumerate() {
                let place = (first_panel + index) * (NR / 2) + step;
                _mm_prefetch::<_MM_HINT_T0>(next_keys.wrapping_add(place).cast());
                // SAFETY: the load reads 64 bytes, and a block of 32 BF16 numbers has them.
                *columns = pairs(unsafe { _mm512_loadu_si512(panel[step].as_ptr().cast()) });
            }
            for (row, weights) in weights.iter().enumerate() {
                let pair = broadcast(weights.as_chunks::<2>().0[step]);
                for (accumulators, columns) in accumulators.iter_mut().zip(columns) {
                    accumulators[row] = _mm512_dpbf16_ps(accumulators[row], pair, columns);
                }
            }
        }
    }
    for (accumulators, sums) in accumulators.iter().zip(sums) {
        for (accumulator, sum) in accumulators.iter().zip(sums) {
            // SAFETY: the store writes 64 bytes, and an array of 16 F32 numbers has them.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), *accumulator) };
        }
    }
}

/// Copies a pair of numbers to every lane.
#[target_feature(enable = "avx512f,avx512bf16")]
fn broadcast([first, second]: [bf16; 2]) -> __m512bh {
    let pair = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
    pairs(_mm512_set1_epi32(pair.cast_signed()))
}

/// Reinterprets bits as BF16 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits, and every bit pattern is valid for both.
    unsafe { std::mem::transmute(bits) }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::tests::oracle;
    use super::super::super::super::tile::TileRows;
    use super::*;

    /// Covers every height and several numbers of panels.
    #[test]
    fn multiply_pairs_agrees_with_the_oracle() {
        let Some(isa) = Avx512Bf16::detect() else {
            println!("skipped: no AVX-512 BF16");
            return;
        };
        for mr in Mr::ALL {
            for panel_count in [1, 2, 3, 4, 5, 9] {
                for blocks in [0, 1, 2, 7, 64, 501] {
                    check(isa, *mr, panel_count, blocks);
                }
            }
        }
    }

    fn check(isa: Avx512Bf16, mr: Mr, panel_count: usize, blocks: usize) {
        let rows = mr.rows();
        let numbers = |count, seed| -> Vec<bf16> {
            oracle::numbers(count, seed).map(bf16::from_f32).collect()
        };
        let lhs: Vec<[bf16; 2]> = numbers(2 * blocks * rows, 1).as_chunks().0.to_vec();
        let panels: Vec<Vec<bf16>> =
            (0..panel_count).map(|p| numbers(2 * blocks * NR, 2 + p as u64)).collect();
        let as_blocks: Vec<&[Block]> =
            panels.iter().map(|panel| bytemuck::cast_slice(panel)).collect();
        let mut sums = vec![[0.5; NR]; panel_count * rows];
        isa.multiply_pairs(&lhs, &as_blocks, mr, &mut sums, Prefetch::NONE);
        for (panel, sums) in panels.iter().zip(sums.chunks_exact(rows)) {
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let terms = (0..2 * blocks).map(|i| {
                        let x = lhs[i / 2 * rows + row][i % 2];
                        let weight = panel[(i / 2 * NR + column) * 2 + i % 2];
                        (x.to_f32(), weight.to_f32())
                    });
                    let exact = oracle::dot(0.5, terms);
                    let what = format!("{rows} rows, {panel_count} panels of {blocks} blocks");
                    exact.assert_close(*sum, 2 * blocks + 1, &what);
                }
            }
        }
    }
}

//! NEON with products of BF16 numbers. `bfdot` adds two products to each sum, `bfmmla` four. No operand is widened.
//!
//! ```text
//! for each block of four inputs i, panel p, row r:                     weights
//!     for each pair j of the block:
//!         sums[p][r][column] += lhs[i][r][2j] · panel[p][i][column][2j] + lhs[i][r][2j + 1] · …
//! for each block of two inputs i, row r:                               the KV cache
//!     sums[r][column] += lhs[i][r][0] · panel[i][column][0] + lhs[i][r][1] · panel[i][column][1]
//! ```
//!
//! The code differs from that in these points:
//!
//! 1. `bfmmla` multiplies two rows with two columns. Its accumulator holds these four sums. A row without a
//!    neighbour is multiplied with a row of zeros, whose sums are discarded.
//! 2. The sums of all rows of `PANELS` panels are in registers.
//! 3. Each step prefetches a part of the data that follows.
//!
//! Both instructions round to odd and flush subnormal numbers to zero. `bfmmla` adds its pairs one after another,
//! each as `bfdot` does (Arm Architecture Reference Manual, `BFMatMulAdd`). So a sum's bits depend only on its row and
//! its panel. Stable Rust has no intrinsics for either.
#![expect(unsafe_code, reason = "vector loads, and instructions that are no part of stable Rust")]

use std::arch::aarch64::{
    float32x4_t, uint16x8_t, vdupq_n_f32, vld1q_f32, vld1q_u16, vreinterpretq_f32_f64,
    vreinterpretq_f64_f32, vst1q_f32, vzip1q_f64, vzip2q_f64,
};
use std::arch::{asm, is_aarch64_feature_detected};

use half::bf16;

use super::super::super::tile::{Mr, NR, Prefetch, TileRows};
use super::super::features;
use super::super::isa::Isa;
use super::neon::Neon;
use super::neon_i8mm::NeonI8mm;

/// Two inputs of 16 columns, one step of a panel of the KV cache.
type Pairs = [[bf16; 2]; NR];
/// Four inputs of 16 columns, one step of a panel of weights.
pub(crate) type Quads = [[bf16; 4]; NR];

/// [`NeonI8mm`] with products of BF16 numbers. Every processor in LLVM 22's list that has products of BF16 also has
/// `smmla`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonBf16(NeonI8mm);

impl Isa for NeonBf16 {
    const NAME: &'static str = "neonbf16";
    const MAX_MR: Mr = Mr::Four;
    type Base = NeonI8mm;
    type Widening = Neon;
    #[cfg(test)]
    const UNITS_OF_ROUNDING: usize = 2;

    fn detect() -> Option<Self> {
        NeonI8mm::detect().filter(|_| is_aarch64_feature_detected!("bf16")).map(Self)
    }

    fn base(self) -> Option<NeonI8mm> {
        Some(self.0)
    }

    fn widening(self) -> Neon {
        self.0.widening()
    }

    run_with_features!("neon,dotprod,i8mm,bf16");
}

impl NeonBf16 {
    /// Adds the product of the lhs, `[blocks][mr][4]`, and each panel, `[blocks][16][4]`, to `sums`,
    /// `[panels][mr][16]`.
    ///
    /// If the operands differ in length, the shortest one decides.
    #[inline]
    pub(crate) fn multiply_quads(
        self,
        lhs: &[[bf16; 4]],
        panels: &[&[Quads]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to make
        // it, checked all of them.
        unsafe {
            match mr {
                Mr::One => multiply_quads::<1, 1, 2>(lhs, panels, sums, prefetch),
                Mr::Two => multiply_quads::<2, 1, 2>(lhs, panels, sums, prefetch),
                Mr::Four => multiply_quads::<4, 2, 1>(lhs, panels, sums, prefetch),
                Mr::Eight => multiply_quads::<8, 4, 1>(lhs, panels, sums, prefetch),
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
        keys: &[&[Pairs]],
        mr: Mr,
        scores: &mut [[f32; NR]],
    ) {
        for (keys, scores) in keys.iter().zip(scores.chunks_exact_mut(mr.rows())) {
            self.multiply_panel(queries, keys, mr, scores);
        }
    }

    /// Adds the products of attention weights, `[blocks][mr][16]`, and the values of several blocks, each panels of 8
    /// pairs of tokens, to `sums`, `[panels][mr][16]`. Only the pairs of a block's first `visible` tokens are read.
    ///
    /// If the operands differ in length, the shortest one decides.
    #[inline]
    pub(crate) fn weigh_values(
        self,
        weights: &[[bf16; NR]],
        values: &[&[Pairs]],
        mr: Mr,
        visible: &[usize],
        _: &[&[Pairs]],
        sums: &mut [[f32; NR]],
    ) {
        let of_blocks = weights.chunks_exact(mr.rows()).zip(values).zip(visible);
        for ((weights, values), visible) in of_blocks {
            let mut lhs = [[bf16::ZERO; 2]; NR / 2 * NR];
            let lhs = &mut lhs[..(*visible).min(NR).div_ceil(2) * mr.rows()];
            for (index, pairs) in lhs.chunks_exact_mut(mr.rows()).enumerate() {
                for (pair, weights) in pairs.iter_mut().zip(weights) {
                    *pair = weights.as_chunks().0[index];
                }
            }
            let panels = values.chunks_exact(NR / 2);
            for (panel, sums) in panels.zip(sums.chunks_exact_mut(mr.rows())) {
                self.multiply_panel(lhs, panel, mr, sums);
            }
        }
    }

    /// Adds the products of pairs, `[blocks][mr][2]`, and one panel, `[blocks][16][2]`, to `sums`, `[mr][16]`.
    #[inline]
    fn multiply_panel(self, lhs: &[[bf16; 2]], panel: &[Pairs], mr: Mr, sums: &mut [[f32; NR]]) {
        // SAFETY: as in `multiply_quads`.
        unsafe {
            match mr {
                Mr::One => multiply_pairs::<1, 1>(lhs, panel, sums),
                Mr::Two => multiply_pairs::<2, 1>(lhs, panel, sums),
                Mr::Four => multiply_pairs::<4, 1>(lhs, panel, sums),
                Mr::Eight => multiply_pairs::<8, 2>(lhs, panel, sums),
            }
        }
    }
}

/// Multiplies all panels, `PANELS` at once and the rest one by one. `ROW_PAIRS` is half of `MR`, rounded up.
#[target_feature(enable = "neon,bf16")]
fn multiply_quads<const MR: usize, const ROW_PAIRS: usize, const PANELS: usize>(
    lhs: &[[bf16; 4]],
    panels: &[&[Quads]],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    let lhs = lhs.as_chunks::<MR>().0;
    let sums = sums.as_chunks_mut::<MR>().0;
    let (groups, rest) = panels.as_chunks::<PANELS>();
    let (group_sums, rest_sums) = sums.split_at_mut((groups.len() * PANELS).min(sums.len()));
    for (panels, sums) in groups.iter().zip(group_sums.as_chunks_mut().0) {
        multiply_quad_tile::<MR, ROW_PAIRS, PANELS>(lhs, panels, sums, prefetch);
    }
    for (panel, sums) in rest.iter().zip(rest_sums.as_chunks_mut().0) {
        multiply_quad_tile::<MR, ROW_PAIRS, 1>(lhs, &[panel], sums, prefetch);
    }
}

#[expect(
    clippy::needless_range_loop,
    reason = "tiles stay in registers only in loops over indices"
)]
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_quad_tile<const MR: usize, const ROW_PAIRS: usize, const PANELS: usize>(
    lhs: &[[[bf16; 4]; MR]],
    panels: &[&[Quads]; PANELS],
    sums: &mut [[[f32; NR]; MR]; PANELS],
    prefetch: Prefetch,
) {
    let steps = panels.iter().fold(lhs.len(), |steps, panel| steps.min(panel.len()));
    let blocks = panels.map(|panel| &panel[..steps]);
    // A register holds the four sums of two rows and two columns, as `bfmmla` computes them.
    let mut tile = [[[vdupq_n_f32(0.0); NR / 2]; ROW_PAIRS]; PANELS];
    for panel in 0..PANELS {
        for pair in 0..ROW_PAIRS {
            let [first, second] =
                [2 * pair, (2 * pair + 1).min(MR - 1)].map(|row| &sums[panel][row]);
            for four in 0..NR / 4 {
                let [first, second] = exchange(load_f32(first, four), load_f32(second, four));
                (tile[panel][pair][2 * four], tile[panel][pair][2 * four + 1]) = (first, second);
            }
        }
    }
    for (step, lhs) in lhs[..steps].iter().enumerate() {
        let mut rows = [load([[bf16::ZERO; 4]; 2]); ROW_PAIRS];
        for pair in 0..ROW_PAIRS {
            rows[pair] = load(match lhs.as_chunks().0.get(pair) {
                Some(pair) => *pair,
                None => [lhs[MR - 1], [bf16::ZERO; 4]],
            });
        }
        for panel in 0..PANELS {
            for line in 0..if prefetch.stride == 0 { 0 } else { size_of::<Quads>() / 64 } {
                let line = step * (size_of::<Quads>() / 64) + line;
                let bytes = prefetch.distance + line * prefetch.stride;
                features::prefetch(panels[panel].as_ptr().cast::<u8>().wrapping_add(bytes));
            }
            let weights = blocks[panel][step].as_chunks::<2>().0;
            for columns in 0..NR / 2 {
                let weights = load(weights[columns]);
                for pair in 0..ROW_PAIRS {
                    let sums = &mut tile[panel][pair][columns];
                    *sums = bfmmla(*sums, rows[pair], weights);
                }
            }
        }
    }
    for panel in 0..PANELS {
        for pair in 0..ROW_PAIRS {
            for four in 0..NR / 4 {
                let pair_sums = &tile[panel][pair];
                let rows = exchange(pair_sums[2 * four], pair_sums[2 * four + 1]);
                for (row, columns) in (2 * pair..MR).zip(rows) {
                    store_f32(&mut sums[panel][row], four, columns);
                }
            }
        }
    }
}

/// Multiplies one panel. `FOURS` is a quarter of `MR`, rounded up.
#[expect(
    clippy::needless_range_loop,
    reason = "tiles stay in registers only in loops over indices"
)]
#[target_feature(enable = "neon,bf16")]
fn multiply_pairs<const MR: usize, const FOURS: usize>(
    lhs: &[[bf16; 2]],
    panel: &[Pairs],
    sums: &mut [[f32; NR]],
) {
    let Some(sums) = sums.first_chunk_mut::<MR>() else { return };
    // The rows of a tile come in fours, because a register holds a pair of each of four rows.
    let mut tile = [[[vdupq_n_f32(0.0); NR / 4]; 4]; FOURS];
    for row in 0..MR {
        for four in 0..NR / 4 {
            tile[row / 4][row % 4][four] = load_f32(&sums[row], four);
        }
    }
    for (lhs, block) in lhs.as_chunks::<MR>().0.iter().zip(panel) {
        let mut rows = [load([[bf16::ZERO; 2]; 4]); FOURS];
        for (rows, lhs) in rows.iter_mut().zip(lhs.chunks(4)) {
            let mut pairs = [[bf16::ZERO; 2]; 4];
            pairs[..lhs.len()].copy_from_slice(lhs);
            *rows = load(pairs);
        }
        for (four, weights) in block.as_chunks::<4>().0.iter().enumerate() {
            let weights = load(*weights);
            for (index, rows) in rows.iter().enumerate() {
                let tile = &mut tile[index];
                tile[0][four] = bfdot::<0>(tile[0][four], weights, *rows);
                if MR >= 2 {
                    tile[1][four] = bfdot::<1>(tile[1][four], weights, *rows);
                }
                if MR >= 4 {
                    tile[2][four] = bfdot::<2>(tile[2][four], weights, *rows);
                    tile[3][four] = bfdot::<3>(tile[3][four], weights, *rows);
                }
            }
        }
    }
    for row in 0..MR {
        for four in 0..NR / 4 {
            store_f32(&mut sums[row], four, tile[row / 4][row % 4][four]);
        }
    }
}

/// Exchanges the last two numbers of the first register with the first two of the second.
#[inline]
#[target_feature(enable = "neon")]
fn exchange(first: float32x4_t, second: float32x4_t) -> [float32x4_t; 2] {
    let (first, second) = (vreinterpretq_f64_f32(first), vreinterpretq_f64_f32(second));
    [vzip1q_f64(first, second), vzip2q_f64(first, second)].map(|pair| vreinterpretq_f32_f64(pair))
}

/// Adds the products of two rows and two columns of four inputs to their four sums.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfmmla(mut sums: float32x4_t, rows: uint16x8_t, columns: uint16x8_t) -> float32x4_t {
    // SAFETY: the machine must have the instruction, which the function's features say. It touches no memory.
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {rows:v}.8h, {columns:v}.8h",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Adds the products of row `ROW` of four rows and four columns, two inputs each, to the sums of the columns.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfdot<const ROW: usize>(
    mut sums: float32x4_t,
    columns: uint16x8_t,
    rows: uint16x8_t,
) -> float32x4_t {
    // SAFETY: as in `bfmmla`.
    unsafe {
        asm!(
            "bfdot {sums:v}.4s, {columns:v}.8h, {rows:v}.2h[{row}]",
            sums = inout(vreg) sums,
            columns = in(vreg) columns,
            rows = in(vreg) rows,
            row = const ROW,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Reads eight BF16 numbers.
#[inline]
#[target_feature(enable = "neon")]
fn load(numbers: impl bytemuck::NoUninit) -> uint16x8_t {
    let bits: [u16; 8] = bytemuck::cast(numbers);
    // SAFETY: the load reads 16 bytes, and the array has them.
    unsafe { vld1q_u16(bits.as_ptr()) }
}

/// Reads four of the sums of a row.
#[inline]
#[target_feature(enable = "neon")]
fn load_f32(sums: &[f32; NR], four: usize) -> float32x4_t {
    let sums: &[f32; 4] = &sums.as_chunks().0[four];
    // SAFETY: the load reads 16 bytes, and an array of four F32 numbers has them.
    unsafe { vld1q_f32(sums.as_ptr()) }
}

/// Writes four of the sums of a row.
#[inline]
#[target_feature(enable = "neon")]
fn store_f32(sums: &mut [f32; NR], four: usize, numbers: float32x4_t) {
    let sums: &mut [f32; 4] = &mut sums.as_chunks_mut().0[four];
    // SAFETY: the store writes 16 bytes, and an array of four F32 numbers has them.
    unsafe { vst1q_f32(sums.as_mut_ptr(), numbers) }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::tests::oracle;
    use super::*;

    /// Covers every height and several numbers of panels. A sum of weights must have the same bits by `bfmmla` as
    /// by `bfdot`.
    #[test]
    fn both_products_agree_with_the_oracle_and_with_each_other() {
        let Some(isa) = NeonBf16::detect() else {
            println!("skipped: no BF16 products");
            return;
        };
        for mr in Mr::ALL {
            for panel_count in [1, 2, 3, 4] {
                for blocks in [0, 1, 2, 7, 64, 250] {
                    check(isa, *mr, panel_count, blocks);
                }
            }
        }
    }

    fn check(isa: NeonBf16, mr: Mr, panel_count: usize, blocks: usize) {
        let (rows, inputs) = (mr.rows(), 4 * blocks);
        let numbers = |count, seed| -> Vec<bf16> {
            oracle::numbers(count, seed).map(bf16::from_f32).collect()
        };
        // `[rows][inputs]` and `[panels][16][inputs]`.
        let x = numbers(rows * inputs, 1);
        let weights = numbers(panel_count * NR * inputs, 2);
        let quads: Vec<[bf16; 4]> = (0..blocks * rows)
            .map(|i| std::array::from_fn(|k| x[i % rows * inputs + i / rows * 4 + k]))
            .collect();
        let pairs: Vec<[bf16; 2]> = (0..2 * blocks * rows)
            .map(|i| std::array::from_fn(|k| x[i % rows * inputs + i / rows * 2 + k]))
            .collect();
        let weight = |panel, column, input| weights[(panel * NR + column) * inputs + input];
        let panels: Vec<Vec<Quads>> = (0..panel_count)
            .map(|panel| {
                let block = |i| {
                    let quad = |column| std::array::from_fn(|k| weight(panel, column, 4 * i + k));
                    std::array::from_fn(quad)
                };
                (0..blocks).map(block).collect()
            })
            .collect();
        let panels: Vec<&[Quads]> = panels.iter().map(Vec::as_slice).collect();
        let mut sums = vec![[0.5; NR]; panel_count * rows];
        let prefetch = Prefetch { distance: 4096, stride: 64 };
        isa.multiply_quads(&quads, &panels, mr, &mut sums, prefetch);
        for (panel, sums) in sums.chunks_exact(rows).enumerate() {
            let keys: Vec<Pairs> = (0..2 * blocks)
                .map(|i| {
                    let pair = |column| std::array::from_fn(|k| weight(panel, column, 2 * i + k));
                    std::array::from_fn(pair)
                })
                .collect();
            let mut scores = vec![[0.5; NR]; rows];
            isa.multiply_keys(&pairs, &[&keys[..]], mr, &mut scores);
            assert_eq!(scores, sums, "{rows} rows, {panel_count} panels of {blocks} blocks");
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let terms = (0..inputs)
                        .map(|i| (x[row * inputs + i].to_f32(), weight(panel, column, i).to_f32()));
                    let exact = oracle::dot(0.5, terms);
                    let what = format!("{rows} rows, {panel_count} panels of {blocks} blocks");
                    exact.assert_close(*sum, NeonBf16::UNITS_OF_ROUNDING * (inputs + 1), &what);
                }
            }
        }
    }
}

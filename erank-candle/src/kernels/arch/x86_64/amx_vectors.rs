//! The products of AMX's tiles with few rows, in vector registers and with the same bits.
//!
//! One `tdpbf16ps` adds the products of 16 even inputs, each in one fused multiply-add, then those of the odd inputs,
//! then both sums, and then the accumulator. Numbers below the smallest normal number count as 0 at each step. So do
//! these loops (their sums differ in nothing but the sign of a 0):
//!
//! ```text
//! for each 32 inputs, two panels p, each row r:
//!     even = odd = 0
//!     for each pair of inputs i:
//!         even += lhs[r][i][0] · panel[p][i][0]
//!         odd  += lhs[r][i][1] · panel[p][i][1]
//!     sums[p][r] += even + odd
//! ```
//!
//! The loops multiply widened numbers by `vfmadd231ps`. `vdpbf16ps` needs no widening, but takes four times as long.
#![expect(unsafe_code, reason = "Rust cannot set the mode in which small numbers count as 0")]

use std::arch::asm;
use std::mem::offset_of;

use half::bf16;

use super::super::super::element::Element;
use super::super::super::tile::{NR, TileRows};
use super::amx::{Amx, AmxRows, Block, LhsRow, PAIRS};

/// Two inputs of 16 columns.
pub(crate) type Pair = [[bf16; 2]; NR];

/// Pairs of half a step.
const HALF: usize = PAIRS / 2;

/// The largest number of rows that are multiplied in vector registers.
pub(crate) const MAX_ROWS: usize = 4;

/// 32 inputs of a row of the lhs in F32, the even ones before the odd ones.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct WideRow([[f32; PAIRS]; 2]);

impl WideRow {
    pub(crate) const ZERO: Self = Self([[0.0; PAIRS]; 2]);

    /// Widens 32 inputs.
    #[inline(always)]
    pub(crate) fn of(row: &LhsRow) -> Self {
        let mut wide = Self::ZERO;
        let [even, odd] = &mut wide.0;
        for (pair, (even, odd)) in row.0.iter().zip(even.iter_mut().zip(odd)) {
            (*even, *odd) = (Element::widen(pair[0]), Element::widen(pair[1]));
        }
        wide
    }
}

impl Amx {
    /// Adds the products of the lhs, `[blocks][mr]` rows of 32 inputs, and each panel, `[blocks]`, to `sums`,
    /// `[panels][mr][16]`. `ahead` has a distance in bytes for each panel: when a line of the panel is read, the line at
    /// this distance after it is prefetched.
    ///
    /// # Panics
    /// Panics if a panel has fewer blocks than the lhs, the sums or the distances are too few, or there are more than
    /// [`MAX_ROWS`] rows.
    #[inline(always)]
    pub(crate) fn multiply_few_rows(
        self,
        lhs: &[WideRow],
        panels: &[&[Block]],
        mr: AmxRows,
        ahead: &[usize],
        sums: &mut [[f32; NR]],
    ) {
        let parts = (0..panels.len()).step_by(2).flat_map(|first| {
            let both = [first, (first + 1).min(panels.len() - 1)];
            let steps = lhs.chunks_exact(mr.rows()).enumerate();
            steps.map(move |(step, lhs)| Part {
                lhs,
                first_pair: 0,
                panels: both.map(|panel| panels[panel][step].as_slice()),
                ahead: both.map(|panel| ahead[panel]),
                sums: Some(both),
            })
        });
        self.add_parts(parts, mr, sums);
    }

    /// Adds the products of the weights of 32 tokens, `[mr]`, and the values of two blocks, each panels of 8 pairs of
    /// tokens, to `sums`, `[panels][mr][16]`. Only the pairs of the first `visible` tokens are read. `ahead` has a distance
    /// in bytes for each block: when a line of the block is read, the line at this distance after it is prefetched.
    ///
    /// # Panics
    /// Panics if a block that is read has fewer panels than the sums, there are fewer weights than rows, or there are
    /// more than [`MAX_ROWS`] rows.
    #[inline(always)]
    pub(crate) fn weigh_values_of_few_rows(
        self,
        weights: &[WideRow],
        values: [&[Pair]; 2],
        visible: usize,
        mr: AmxRows,
        ahead: [usize; 2],
        sums: &mut [[f32; NR]],
    ) {
        let panels = sums.len() / mr.rows();
        let visible = visible.div_ceil(2);
        let visible = [visible.min(HALF), visible.saturating_sub(HALF).min(HALF)];
        let parts = (0..panels).step_by(2).flat_map(|first| {
            let both = [first, (first + 1).min(panels - 1)];
            [0, 1].map(|half| Part {
                lhs: weights,
                first_pair: half * HALF,
                panels: both.map(|panel| match visible[half] {
                    0 => [].as_slice(),
                    count => &values[half][panel * HALF..][..count],
                }),
                ahead: [ahead[half]; 2],
                sums: (half == 1).then_some(both),
            })
        });
        self.add_parts(parts, mr, sums);
    }

    /// Adds the products of parts, whose sums are `[panels][mr][16]`.
    #[inline(always)]
    fn add_parts<'a>(
        self,
        mut parts: impl Iterator<Item = Part<'a>>,
        mr: AmxRows,
        sums: &mut [[f32; NR]],
    ) {
        let height = mr.rows();
        // A change of the control word takes as long as many products, so several parts are added at a time. Their
        // number is even, so two parts of the same 32 inputs are always added at the same time.
        let mut addresses = [Addresses::NONE; 16];
        let (first_sum, count_of_sums) = (sums.as_mut_ptr(), sums.len());
        loop {
            let mut count = 0;
            for (addresses, part) in addresses.iter_mut().zip(parts.by_ref()) {
                let Part { lhs, first_pair, panels, ahead, sums: then } = part;
                let pairs = panels[0].len().min(panels[1].len());
                assert!(lhs.len() >= height && first_pair + pairs <= PAIRS);
                let sums = then.map(|both| {
                    both.map(|panel| {
                        assert!((panel + 1) * height <= count_of_sums);
                        first_sum.wrapping_add(panel * height)
                    })
                });
                *addresses = Addresses {
                    panels: panels.map(<[Pair]>::as_ptr),
                    ahead,
                    pairs,
                    lhs: lhs.as_ptr().cast::<f32>().wrapping_add(first_pair),
                    sums: sums.unwrap_or([std::ptr::null_mut(); 2]),
                };
                count += 1;
            }
            let Some(last) = addresses[..count].last() else { return };
            assert!(!last.sums[0].is_null());
            // SAFETY: the machine must have AVX-512. `self` exists, and `detect`, the only way to make it, checked that.
            // The slices of each part hold its panels' pairs, `height` rows of the lhs with as many inputs, and `height`
            // sums for each panel, and the last part has sums, as checked above.
            unsafe {
                match mr {
                    AmxRows::One => add_one_row(&addresses[..count]),
                    AmxRows::Two => add_two_rows(&addresses[..count]),
                    AmxRows::Four => add_four_rows(&addresses[..count]),
                    _ => panic!("{height} rows exceed {MAX_ROWS}"),
                }
            }
        }
    }
}

/// Neighbouring pairs of inputs of two panels, all of 32 inputs or some of them.
struct Part<'a> {
    /// The inputs of each row.
    lhs: &'a [WideRow],
    /// The pair of the lhs that the first pair of the panels is multiplied with.
    first_pair: usize,
    /// Equally many pairs.
    panels: [&'a [Pair]; 2],
    /// Bytes from each address to the one that is prefetched.
    ahead: [usize; 2],
    /// If this is the last part of 32 inputs, the numbers of the panels among the sums. They may be the same.
    sums: Option<[usize; 2]>,
}

/// The addresses of a [`Part`].
#[derive(Clone, Copy)]
#[repr(C)]
struct Addresses {
    panels: [*const Pair; 2],
    ahead: [usize; 2],
    pairs: usize,
    /// The even input of the first pair in the first row.
    lhs: *const f32,
    /// `[height]` each, or null.
    sums: [*mut [f32; NR]; 2],
}

impl Addresses {
    const NONE: Self = Self {
        panels: [std::ptr::null(); 2],
        ahead: [0; 2],
        pairs: 0,
        lhs: std::ptr::null(),
        sums: [std::ptr::null_mut(); 2],
    };
}

/// The control word of vector instructions (MXCSR) that takes small operands as 0, makes small results 0, rounds to the
/// nearest number, and raises no exception.
const FLUSHES_TO_ZERO: u32 = 0x9fc0;

/// Defines a function that adds the products of parts, from the number of each row and its registers. These are the
/// sums of the even and odd inputs of the first panel, then those of the second.
macro_rules! add_rows {
    ($name:ident, [$(($row:literal, $a:literal, $b:literal, $c:literal, $d:literal)),*]) => {
        /// # Safety
        /// The machine must have AVX-512. There must be a part, and the last part must have sums. The pairs of both
        /// panels of each part, and the inputs of the lhs that they are multiplied with, must lie in memory that may be
        /// read. The sums must lie in memory that may be written, unless their addresses are null.
        unsafe fn $name(parts: &[Addresses]) {
            // The caller's control word, and the one of the products.
            let mut control = [0, FLUSHES_TO_ZERO];
            let end = parts.as_ptr_range().end;
            // SAFETY: the caller guarantees the memory that is read and written. An address that is only prefetched may
            // lie anywhere. At the end, the control word has the caller's value again.
            unsafe {
                asm!(
                    "stmxcsr [{control}]",
                    "ldmxcsr [{control} + 4]",
                    // The odd inputs are the upper halves of the columns' pairs.
                    "vpternlogd zmm22, zmm22, zmm22, 255",
                    "vpslld zmm22, zmm22, 16",
                    "2:",
                    $(concat!("vpxord zmm", $a, ", zmm", $a, ", zmm", $a),)*
                    $(concat!("vpxord zmm", $b, ", zmm", $b, ", zmm", $b),)*
                    $(concat!("vpxord zmm", $c, ", zmm", $c, ", zmm", $c),)*
                    $(concat!("vpxord zmm", $d, ", zmm", $d, ", zmm", $d),)*
                    "3:",
                    "mov {n}, [{part} + {pairs}]",
                    "mov {x}, [{part} + {lhs}]",
                    "mov {p}, [{part} + {panels}]",
                    "mov {q}, [{part} + {panels} + 8]",
                    "mov {p_ahead}, [{part} + {ahead}]",
                    "mov {q_ahead}, [{part} + {ahead} + 8]",
                    "test {n}, {n}",
                    "jz 5f",
                    "4:",
                    "vpslld zmm16, [{p}], 16",
                    "vpandd zmm17, zmm22, [{p}]",
                    "vpslld zmm18, [{q}], 16",
                    "vpandd zmm19, zmm22, [{q}]",
                    "prefetcht0 [{p} + {p_ahead}]",
                    "prefetcht0 [{q} + {q_ahead}]",
                    $(
                        concat!("vbroadcastss zmm20, [{x} + 128 * ", $row, "]"),
                        concat!("vbroadcastss zmm21, [{x} + 128 * ", $row, " + 64]"),
                        concat!("vfmadd231ps zmm", $a, ", zmm16, zmm20"),
                        concat!("vfmadd231ps zmm", $b, ", zmm17, zmm21"),
                        concat!("vfmadd231ps zmm", $c, ", zmm18, zmm20"),
                        concat!("vfmadd231ps zmm", $d, ", zmm19, zmm21"),
                    )*
                    "add {x}, 4",
                    "add {p}, 64",
                    "add {q}, 64",
                    "dec {n}",
                    "jnz 4b",
                    "5:",
                    "mov {p}, [{part} + {sums}]",
                    "mov {q}, [{part} + {sums} + 8]",
                    "add {part}, {size}",
                    "test {p}, {p}",
                    "jz 3b",
                    // Both panels may have the same sums, so both are read before they are written.
                    $(
                        concat!("vaddps zmm", $a, ", zmm", $a, ", zmm", $b),
                        concat!("vaddps zmm", $c, ", zmm", $c, ", zmm", $d),
                        concat!("vaddps zmm", $a, ", zmm", $a, ", [{p} + 64 * ", $row, "]"),
                        concat!("vaddps zmm", $c, ", zmm", $c, ", [{q} + 64 * ", $row, "]"),
                        concat!("vmovups [{p} + 64 * ", $row, "], zmm", $a),
                        concat!("vmovups [{q} + 64 * ", $row, "], zmm", $c),
                    )*
                    "cmp {part}, {end}",
                    "jne 2b",
                    "ldmxcsr [{control}]",
                    // Older vector instructions are slow while the upper parts of the registers are in use.
                    "vzeroupper",
                    control = in(reg) &raw mut control,
                    part = inout(reg) parts.as_ptr() => _,
                    end = in(reg) end,
                    n = out(reg) _,
                    x = out(reg) _,
                    p = out(reg) _,
                    q = out(reg) _,
                    p_ahead = out(reg) _,
                    q_ahead = out(reg) _,
                    size = const size_of::<Addresses>(),
                    panels = const offset_of!(Addresses, panels),
                    ahead = const offset_of!(Addresses, ahead),
                    pairs = const offset_of!(Addresses, pairs),
                    lhs = const offset_of!(Addresses, lhs),
                    sums = const offset_of!(Addresses, sums),
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _,
                    options(nostack),
                );
            }
        }
    };
}

add_rows!(add_one_row, [(0, 0, 1, 2, 3)]);
add_rows!(add_two_rows, [(0, 0, 1, 2, 3), (1, 4, 5, 6, 7)]);
add_rows!(
    add_four_rows,
    [(0, 0, 1, 2, 3), (1, 4, 5, 6, 7), (2, 8, 9, 10, 11), (3, 12, 13, 14, 15)]
);

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::super::super::super::tests::oracle;
    use super::super::super::super::tile::Prefetch;
    use super::super::super::isa::Isa;
    use super::super::amx::{Product, Sums};
    use super::*;

    /// Numbers of the exponents around `exponent`, so that sums of products become small or cancel.
    fn numbers(count: usize, exponent: i32, seed: u64) -> Vec<bf16> {
        let wide = oracle::numbers(2 * count, seed).collect::<Vec<f32>>();
        let number = |[number, power]: &[f32; 2]| number * (20.0 * power + exponent as f32).exp2();
        wide.as_chunks().0.iter().map(|pair| bf16::from_f32(number(pair))).collect()
    }

    #[test]
    fn few_rows_have_the_bits_of_tiles() {
        let Some(isa) = Amx::detect() else {
            println!("skipped: no AMX");
            return;
        };
        for mr in [AmxRows::One, AmxRows::Two, AmxRows::Four] {
            // The products of the last exponents are below the smallest normal number.
            for exponent in [0, -50, -60, -70, -80, -90] {
                for (panel_count, steps) in [(1, 0), (2, 1), (3, 2), (5, 7)] {
                    check(isa, mr, exponent, panel_count, steps);
                }
            }
        }
    }

    fn check(isa: Amx, mr: AmxRows, exponent: i32, panel_count: usize, steps: usize) {
        let height = mr.rows();
        let mut lhs = vec![LhsRow::zeroed(); steps * height];
        let inputs = numbers(2 * PAIRS * steps * height, exponent, 1);
        bytemuck::cast_slice_mut(&mut lhs).copy_from_slice(&inputs);
        let panels: Vec<Vec<bf16>> = (0..panel_count as u64)
            .map(|panel| numbers(2 * PAIRS * steps * NR, exponent, 2 + panel))
            .collect();
        let blocks: Vec<&[Block]> =
            panels.iter().map(|panel| bytemuck::cast_slice(panel)).collect();
        let mut expected = vec![[0.5; NR]; panel_count * height];
        let (then, prefetch, is_streamed) = (Sums::Replace, Prefetch::NONE, false);
        let sums = &mut expected;
        let product = Product { lhs: &lhs, mr, sums, then, is_streamed, prefetch };
        isa.multiply_tiles([product].into_iter(), &blocks);
        let mut sums = vec![[0.0; NR]; panel_count * height];
        let wide: Vec<WideRow> = lhs.iter().map(WideRow::of).collect();
        isa.multiply_few_rows(&wide, &blocks, mr, &[64; 5], &mut sums);
        assert_eq!(sums, expected, "{height} rows, {panel_count} panels, {steps} steps");
        if steps > 0 {
            let is_small = exponent == -90;
            assert_eq!(sums.as_flattened().iter().all(|sum| *sum == 0.0), is_small, "{exponent}");
        }
        if let Some(weights) = lhs.first_chunk::<4>() {
            check_values(isa, mr, &weights[..height], exponent);
        }
    }

    /// The values of two blocks have the bits of one tile of 32 inputs, in which tokens that are not seen are 0.
    fn check_values(isa: Amx, mr: AmxRows, weights: &[LhsRow], exponent: i32) {
        const PANELS: usize = 5;
        let height = mr.rows();
        let values: Vec<Pair> =
            bytemuck::pod_collect_to_vec(&numbers(PANELS * PAIRS * 2 * NR, exponent, 3));
        let (first, second) = values.split_at(PANELS * HALF);
        for visible in [2, 10, 16, 18, 32] {
            let seen = |half: usize, pair: usize| half * HALF + pair < visible / 2;
            let mut lhs = weights.to_vec();
            lhs.iter_mut().for_each(|row| row.0[visible / 2..].fill([bf16::ZERO; 2]));
            let tiles: Vec<[Pair; PAIRS]> = (0..PANELS)
                .map(|panel| {
                    std::array::from_fn(|index| {
                        let (half, pair) = (index / HALF, index % HALF);
                        match seen(half, pair) {
                            true => [first, second][half][panel * HALF + pair],
                            false => [[bf16::ZERO; 2]; NR],
                        }
                    })
                })
                .collect();
            let panels: Vec<&[Block]> = tiles.chunks(1).collect();
            let before: Vec<f32> = oracle::numbers(PANELS * height * NR, 4).collect();
            let scale = (2.0 * exponent as f32).exp2();
            let before: Vec<f32> = before.iter().map(|sum| sum * scale).collect();
            let mut expected: Vec<[f32; NR]> = before.as_chunks().0.to_vec();
            let mut sums = expected.clone();
            let (then, prefetch, is_streamed) = (Sums::Add, Prefetch::NONE, false);
            let product =
                Product { lhs: &lhs, mr, sums: &mut expected, then, is_streamed, prefetch };
            isa.multiply_tiles([product].into_iter(), &panels);
            isa.release();
            let second = if visible > NR { second } else { &[] };
            let lhs: Vec<WideRow> = lhs.iter().map(WideRow::of).collect();
            isa.weigh_values_of_few_rows(&lhs, [first, second], visible, mr, [64; 2], &mut sums);
            assert_eq!(sums, expected, "{height} rows, {visible} visible");
        }
    }
}

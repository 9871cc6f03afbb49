//! AMX: products of tiles of BF16 pairs (`tdpbf16ps`), sixteen rows by sixteen outputs by 32 inputs in
//! one instruction.
//!
//! ```text
//! for two panels, tiles of sixteen rows a0 and a1 (or a0 alone), each 32 inputs:
//!     sums[0][0] += a0 · panel 0        sums[0][1] += a0 · panel 1
//!     sums[1][0] += a1 · panel 0        sums[1][1] += a1 · panel 1
//! ```
//!
//! so that each tile that is loaded is used twice. Departures from that: what is to be multiplied next
//! is fetched from memory meanwhile, and a panel without a neighbour is multiplied twice.
//!
//! One instruction adds the products of the even inputs, those of the odd ones, both sums, and only
//! then what was there (Intel's Software Developer's Manual, TDPBF16PS), each in order. So a sum's bits
//! depend on its row and its panel alone.
#![expect(unsafe_code, reason = "there are no other means to use tiles on a stable toolchain")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use half::bf16;

use super::super::{Ahead, LANES};
use super::avx512_bf16::Avx512Bf16;

/// Pairs of inputs in a tile.
const PAIRS: usize = 16;
/// Rows of a tile.
const TILE_ROWS: usize = 16;

/// [`Avx512Bf16`], and tiles that the system has granted to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amx(Avx512Bf16);

impl Amx {
    /// Two tiles of rows.
    pub(super) const TALLEST: usize = 2 * TILE_ROWS;

    pub(super) fn detect() -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        let below = Avx512Bf16::detect()?;
        GRANTED.get_or_init(|| has_tiles() && request_tiles()).then_some(Self(below))
    }

    pub(super) fn avx512_bf16(self) -> Avx512Bf16 {
        self.0
    }

    /// See [`InstructionSet::tiles`](super::InstructionSet::tiles).
    pub(super) fn tiles(
        self,
        x: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        if !matches!(height, 1 | 2 | 4 | 8 | 16 | 32) {
            return;
        }
        let steps = x.len() / (height * PAIRS);
        assert!(panels.iter().all(|panel| panel.len() >= steps * PAIRS * 2 * LANES));
        assert!(sums.len() >= panels.len() * height);
        let shape = Shape::of(height.min(TILE_ROWS));
        // SAFETY: the machine must have tiles, and the system must have granted them. `self` exists,
        // and `detect`, the only way to make it, made sure of both.
        unsafe { configure(&shape) };
        let mut spare = [[0.0; LANES]; Self::TALLEST];
        for (panels, sums) in panels.chunks(2).zip(sums.chunks_mut(2 * height)) {
            let (first, second) = sums.split_at_mut(height);
            let second = if panels.len() == 2 { second } else { &mut spare[..height] };
            let work = Work {
                x: x.as_ptr(),
                panels: [panels[0].as_ptr(), panels[panels.len() - 1].as_ptr()],
                sums: [first.as_mut_ptr(), second.as_mut_ptr()],
                x_step: height * PAIRS * 4,
                panel_step: PAIRS * 4 * LANES,
                steps,
                ahead,
            };
            // SAFETY: tiles must be configured for rows of this height, and every tile that is read
            // or written must lie in `x`, the panels and the sums: `steps` tiles of `height` rows by
            // 64 bytes, of 16 rows by 64 bytes, and `height` rows of 64 bytes. The assertions above
            // saw to the lengths, `configure` to the shape.
            unsafe {
                match height > TILE_ROWS {
                    true => multiply_two_by_two(work),
                    false => multiply_one_by_two(work),
                }
            }
        }
        // SAFETY: as for `configure`. Nothing is left in the tiles that somebody needs.
        unsafe { asm!("tilerelease", options(nostack)) };
    }

    /// Multiplies two by two tiles `count` times, all from the nearest cache; returns how many
    /// floating-point operations these were.
    pub(super) fn exercise(self, count: usize) -> f64 {
        let x = [[bf16::ZERO; 2]; 2 * TILE_ROWS * PAIRS];
        let panel = [bf16::ZERO; PAIRS * 2 * LANES];
        let mut sums = [[[0.0; LANES]; 2 * TILE_ROWS]; 2];
        let [first, second] = &mut sums;
        let work = Work {
            x: x.as_ptr(),
            panels: [panel.as_ptr(); 2],
            sums: [first.as_mut_ptr(), second.as_mut_ptr()],
            x_step: 0,
            panel_step: 0,
            steps: count,
            ahead: Ahead::NOTHING,
        };
        // SAFETY: as in `tiles`. All steps read the same tiles, which the arrays hold.
        unsafe {
            configure(&Shape::of(TILE_ROWS));
            multiply_two_by_two(work);
            asm!("tilerelease", options(nostack));
        }
        (count * 4 * 2 * TILE_ROWS * LANES * 2 * PAIRS) as f64
    }
}

/// Whether the processor has tiles and multiplies BF16 numbers in them (CPUID leaf 7).
fn has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

/// Asks the system for room to keep tiles when threads of this process take turns.
#[cfg(target_os = "linux")]
fn request_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_int = 18;
    // SAFETY: a system call with two numbers, which touches no memory of ours. A system that does not
    // know it answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems are yet to be tried.
#[cfg(not(target_os = "linux"))]
fn request_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads: bytes of a row and rows, by tile.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shape {
    /// Tiles 0 to 3 for sums and 4 and 5 for rows, of this height; 6 and 7 for panels.
    fn of(height: usize) -> Self {
        let mut shape =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shape.row_bytes[..8].fill(64);
        shape.rows[..6].fill(height as u8);
        shape.rows[6..8].fill(PAIRS as u8);
        shape
    }
}

/// # Safety
/// The machine has tiles, and the system has granted them.
unsafe fn configure(shape: &Shape) {
    // SAFETY: 64 bytes are read, which `Shape` has; the caller has seen to the rest.
    unsafe { asm!("ldtilecfg [{}]", in(reg) shape, options(nostack, readonly)) };
}

/// Where a product's tiles lie, and from each to the next.
struct Work {
    /// `[steps][height][PAIRS]`.
    x: *const [bf16; 2],
    /// `[steps][PAIRS][16][2]` each.
    panels: [*const bf16; 2],
    /// `[height][16]` each.
    sums: [*mut [f32; LANES]; 2],
    x_step: usize,
    panel_step: usize,
    steps: usize,
    ahead: Ahead,
}

/// Defines a function that multiplies the tiles of a [`Work`] as these instructions say; each step's
/// part of what lies ahead is fetched, up to a tile of each panel.
macro_rules! multiply {
    ($(#[$doc:meta])* $name:ident, [$($load:literal),*], [$($step:literal),*], [$($store:literal),*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Tiles are configured for rows of this height, and all tiles of the work lie in memory that
        /// may be read, and the sums written.
        unsafe fn $name(work: Work) {
            if work.steps == 0 {
                return;
            }
            let ahead = |panel: *const bf16| panel.wrapping_byte_add(work.ahead.bytes);
            // SAFETY: the caller has seen to the tiles that are loaded and stored, and the steps go
            // from each to the next. What is only fetched may lie anywhere.
            unsafe {
                asm!(
                    $($load,)*
                    "2:",
                    $($step,)*
                    "prefetcht0 [{p}]", "prefetcht0 [{q}]",
                    "prefetcht0 [{p} + 64]", "prefetcht0 [{q} + 64]",
                    "prefetcht0 [{p} + 128]", "prefetcht0 [{q} + 128]",
                    "prefetcht0 [{p} + 192]", "prefetcht0 [{q} + 192]",
                    "prefetcht0 [{p} + 256]", "prefetcht0 [{q} + 256]",
                    "prefetcht0 [{p} + 320]", "prefetcht0 [{q} + 320]",
                    "prefetcht0 [{p} + 384]", "prefetcht0 [{q} + 384]",
                    "prefetcht0 [{p} + 448]", "prefetcht0 [{q} + 448]",
                    "prefetcht0 [{p} + 512]", "prefetcht0 [{q} + 512]",
                    "prefetcht0 [{p} + 576]", "prefetcht0 [{q} + 576]",
                    "prefetcht0 [{p} + 640]", "prefetcht0 [{q} + 640]",
                    "prefetcht0 [{p} + 704]", "prefetcht0 [{q} + 704]",
                    "prefetcht0 [{p} + 768]", "prefetcht0 [{q} + 768]",
                    "prefetcht0 [{p} + 832]", "prefetcht0 [{q} + 832]",
                    "prefetcht0 [{p} + 896]", "prefetcht0 [{q} + 896]",
                    "prefetcht0 [{p} + 960]", "prefetcht0 [{q} + 960]",
                    "add {a}, {a_step}",
                    "add {b}, {b_step}",
                    "add {c}, {b_step}",
                    "add {p}, {p_step}",
                    "add {q}, {p_step}",
                    "dec {n}",
                    "jnz 2b",
                    $($store,)*
                    a = inout(reg) work.x => _,
                    b = inout(reg) work.panels[0] => _,
                    c = inout(reg) work.panels[1] => _,
                    p = inout(reg) ahead(work.panels[0]) => _,
                    q = inout(reg) ahead(work.panels[1]) => _,
                    n = inout(reg) work.steps => _,
                    y = in(reg) work.sums[0],
                    z = in(reg) work.sums[1],
                    s = in(reg) 64usize,
                    a_step = in(reg) work.x_step,
                    b_step = in(reg) work.panel_step,
                    p_step = in(reg) PAIRS * work.ahead.step,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply!(
    /// Two tiles of sixteen rows.
    multiply_two_by_two,
    [
        "tileloadd tmm0, [{y} + {s}]",
        "tileloadd tmm1, [{z} + {s}]",
        "tileloadd tmm2, [{y} + {s} + 1024]",
        "tileloadd tmm3, [{z} + {s} + 1024]"
    ],
    [
        "tileloadd tmm4, [{a} + {s}]",
        "tileloadd tmm6, [{b} + {s}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{c} + {s}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{a} + {s} + 1024]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7"
    ],
    [
        "tilestored [{y} + {s}], tmm0",
        "tilestored [{z} + {s}], tmm1",
        "tilestored [{y} + {s} + 1024], tmm2",
        "tilestored [{z} + {s} + 1024], tmm3"
    ]
);
multiply!(
    /// One tile of up to sixteen rows.
    multiply_one_by_two,
    ["tileloadd tmm0, [{y} + {s}]", "tileloadd tmm1, [{z} + {s}]"],
    [
        "tileloadd tmm4, [{a} + {s}]",
        "tileloadd tmm6, [{b} + {s}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{c} + {s}]",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    ["tilestored [{y} + {s}], tmm0", "tilestored [{z} + {s}], tmm1"]
);

#[cfg(test)]
mod tests {
    use super::super::super::reference;
    use super::*;

    /// Every height and number of panels against the oracle.
    #[test]
    fn tiles_agree_with_the_oracle() {
        let Some(set) = Amx::detect() else {
            println!("skipped: no AMX");
            return;
        };
        for height in [1, 2, 4, 8, 16, 32] {
            for panel_count in [1, 2, 3, 4] {
                for steps in [0, 1, 2, 5] {
                    check(set, height, panel_count, steps);
                }
            }
        }
    }

    fn check(set: Amx, height: usize, panel_count: usize, steps: usize) {
        let numbers = |count, seed| -> Vec<bf16> {
            reference::numbers(count, seed).map(bf16::from_f32).collect()
        };
        let pairs = steps * PAIRS;
        let x: Vec<[bf16; 2]> = numbers(2 * pairs * height, 1).as_chunks().0.to_vec();
        let panels: Vec<Vec<bf16>> =
            (0..panel_count).map(|p| numbers(2 * pairs * LANES, 2 + p as u64)).collect();
        let panels: Vec<&[bf16]> = panels.iter().map(Vec::as_slice).collect();
        let mut sums = vec![[0.5; LANES]; panel_count * height];
        set.tiles(&x, &panels, height, &mut sums, Ahead { bytes: 4096, step: 64 });
        for (panel, sums) in panels.iter().zip(sums.chunks_exact(height)) {
            for (row, sums) in sums.iter().enumerate() {
                for (lane, sum) in sums.iter().enumerate() {
                    let terms = (0..pairs).flat_map(|pair| {
                        let x = x[(pair / PAIRS * height + row) * PAIRS + pair % PAIRS];
                        let weights = &panel[(pair * LANES + lane) * 2..][..2];
                        [0, 1].map(|i| (x[i].to_f32(), weights[i].to_f32()))
                    });
                    let exact = reference::dot(0.5, terms);
                    let what = format!("{height} rows, {panel_count} panels, {steps} steps");
                    exact.assert_close(*sum, 2 * pairs + 1, &what);
                }
            }
        }
    }
}

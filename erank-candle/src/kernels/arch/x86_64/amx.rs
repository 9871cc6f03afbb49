//! AMX. One instruction (`tdpbf16ps`) multiplies tile registers of BF16 pairs, sixteen rows by sixteen
//! outputs by 32 inputs. In this file, "tile" means such a register.
//!
//! ```text
//! for two panels and one or two tiles of up to sixteen rows a0, a1, for each 32 inputs:
//!     sums[0][0] += a0 · panel 0        sums[0][1] += a0 · panel 1
//!     sums[1][0] += a1 · panel 0        sums[1][1] += a1 · panel 1
//! ```
//!
//! So each tile that is loaded is used twice. The code differs from that in these points:
//!
//! 1. In each step, data of a later step is prefetched.
//! 2. A panel without a neighbour is multiplied twice, and the second result is discarded.
//!
//! One instruction adds the products of the even inputs, those of the odd ones, then both sums, and only
//! then the accumulator (Intel's Software Developer's Manual, TDPBF16PS), each in order. So a sum's bits
//! depend only on its row and its panel.
#![expect(unsafe_code, reason = "stable Rust has no other means to use tiles")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::super::super::element::Element;
use super::super::super::tile::{Mr, NR, Prefetch, SumRow, TileRows};
use super::super::isa::Isa;
use super::avx512::Avx512;
use super::avx512_bf16::Avx512Bf16;

/// Pairs of inputs in a row of a tile.
pub(crate) const PAIRS: usize = 16;
/// Inputs in a row of a tile.
pub(crate) const TILE_INPUTS: usize = 2 * PAIRS;
/// Rows of a tile.
const TILE_ROWS: usize = 16;

/// 32 inputs of one row of the lhs.
///
/// It fills a line of the cache. Tiles whose rows lie across two lines take three times as long to multiply.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct LhsRow(pub(crate) [[bf16; 2]; PAIRS]);

/// 32 inputs of 16 columns, one step of a panel. Panels should start at a line of the cache, too.
pub(crate) type Block = [[[bf16; 2]; NR]; PAIRS];

/// Numbers of the largest lhs, 768 KB of a second cache of 2 MB.
pub(crate) const MAX_LHS_NUMBERS: usize = 3 << 17;

/// Packs rows of `k` numbers, rounded to BF16, as `[blocks of 32 inputs][mr]`. Numbers past `k`, and the places of
/// missing rows, are not written.
#[inline(always)]
pub(crate) fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [LhsRow]) {
    for (index, block) in lhs.chunks_exact_mut(mr).enumerate() {
        for (out, row) in block.iter_mut().zip(rows.chunks_exact(k)) {
            let numbers = &row[k.min(index * TILE_INPUTS)..];
            let out = out.0.as_flattened_mut();
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = Element::round(*number));
        }
    }
}

/// The heights of a block of accumulators: one tile of up to 16 rows, or two tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AmxRows {
    One,
    Two,
    Four,
    Eight,
    Sixteen,
    ThirtyTwo,
}

impl TileRows for AmxRows {
    const ALL: &'static [Self] =
        &[Self::One, Self::Two, Self::Four, Self::Eight, Self::Sixteen, Self::ThirtyTwo];

    #[inline(always)]
    fn rows(self) -> usize {
        1 << self as usize
    }
}

/// [`Avx512Bf16`] with tiles, which the operating system has granted to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amx(Avx512Bf16);

impl Isa for Amx {
    const NAME: &'static str = "amx";
    const MAX_MR: Mr = Mr::Eight;
    type Base = Avx512Bf16;
    type Widening = Avx512;

    fn detect() -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        let base = Avx512Bf16::detect()?;
        GRANTED.get_or_init(|| has_tiles() && request_tiles()).then_some(Self(base))
    }

    fn base(self) -> Option<Avx512Bf16> {
        Some(self.0)
    }

    fn widening(self) -> Avx512 {
        self.0.widening()
    }

    #[inline]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        self.0.run(work)
    }
}

/// [`Amx`], with weights of 4 to 8 bits in tiles, too. It reads prompts faster with such weights and decodes more slowly,
/// so it is the default only for models that generate no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AmxPrefill(Amx);

impl AmxPrefill {
    /// Returns the set of tiles.
    pub(crate) fn tiles(self) -> Amx {
        self.0
    }
}

impl Isa for AmxPrefill {
    const NAME: &'static str = "amxprefill";
    const MAX_MR: Mr = Mr::Eight;
    type Base = Amx;
    type Widening = Avx512;

    fn detect() -> Option<Self> {
        Amx::detect().map(Self)
    }

    fn base(self) -> Option<Amx> {
        Some(self.0)
    }

    fn widening(self) -> Avx512 {
        self.0.widening()
    }

    #[inline]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        self.0.run(work)
    }
}

/// What a product does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sums {
    /// The product is added to them.
    Add,
    /// The product replaces them.
    Replace,
}

/// The operands of a product beside its panels.
pub(crate) struct Product<'a> {
    /// `[blocks][mr]` rows of 32 inputs.
    pub(crate) lhs: &'a [LhsRow],
    pub(crate) mr: AmxRows,
    /// `[panels][mr][16]`.
    pub(crate) sums: &'a mut [[f32; NR]],
    pub(crate) then: Sums,
    /// Whether the lhs is loaded past the nearest cache, so that the panels stay there. Each step then prefetches two
    /// lines of each panel, not sixteen.
    pub(crate) is_streamed: bool,
    pub(crate) prefetch: Prefetch,
}

impl Amx {
    /// Returns the set of vector instructions beside the tiles.
    pub(crate) fn vectors(self) -> Avx512Bf16 {
        self.0
    }

    /// Multiplies the lhs of each product, `[blocks][mr]` rows of 32 inputs, with each panel, `[blocks]`.
    ///
    /// # Panics
    /// Panics if a panel has fewer blocks than an lhs, or the sums are too short.
    pub(crate) fn multiply_tiles<'a>(
        self,
        products: impl Iterator<Item = Product<'a>>,
        panels: &[&[Block]],
    ) {
        let mut configured = None;
        let mut discarded = [SumRow::zeroed(); 2 * TILE_ROWS];
        let discarded = bytemuck::cast_slice_mut(&mut discarded);
        for Product { lhs, mr, sums, then, is_streamed, prefetch } in products {
            let height = mr.rows();
            let steps = lhs.len() / height;
            assert!(panels.iter().all(|panel| panel.len() >= steps));
            assert!(sums.len() >= panels.len() * height);
            if steps == 0 {
                if then == Sums::Replace {
                    sums[..panels.len() * height].fill([0.0; NR]);
                }
                continue;
            }
            if configured != Some(mr) {
                // SAFETY: the machine must have tiles, and the system must have granted them. `self` exists,
                // and `detect`, the only way to make it, checked both.
                unsafe { configure(&TileConfig::of(height.min(TILE_ROWS))) };
                configured = Some(mr);
            }
            for (panels, sums) in panels.chunks(2).zip(sums.chunks_mut(2 * height)) {
                let (first, second) = sums.split_at_mut(height);
                let second = if panels.len() == 2 { second } else { &mut discarded[..height] };
                let work = Work {
                    lhs: lhs.as_ptr(),
                    panels: [panels[0].as_ptr(), panels[panels.len() - 1].as_ptr()],
                    sums: [first.as_mut_ptr(), second.as_mut_ptr()],
                    lhs_step: height * size_of::<LhsRow>(),
                    panel_step: size_of::<Block>(),
                    steps,
                    prefetch,
                };
                // SAFETY: tiles must be configured for rows of this height, and every tile that is read
                // or written must lie in the lhs, the panels and the sums: `steps` tiles of `height` rows by
                // 64 bytes, of 16 rows by 64 bytes, and `height` rows of 64 bytes. The assertions above
                // checked the lengths, and `configure` set the shape. There must be a step: a product without one was
                // left out above.
                unsafe {
                    match (height > TILE_ROWS, then, is_streamed) {
                        (true, Sums::Add, true) => multiply_two_streamed(work),
                        (true, Sums::Replace, true) => replace_two_streamed(work),
                        (true, Sums::Add, false) => multiply_two_by_two(work),
                        (true, Sums::Replace, false) => replace_two_by_two(work),
                        (false, Sums::Add, true) => multiply_one_streamed(work),
                        (false, Sums::Replace, true) => replace_one_streamed(work),
                        (false, Sums::Add, false) => multiply_one_by_two(work),
                        (false, Sums::Replace, false) => replace_one_by_two(work),
                    }
                }
            }
        }
    }

    /// Tells the processor that the tiles of this thread hold nothing that is needed later. Otherwise the system would
    /// save them when it switches between threads.
    pub(crate) fn release(self) {
        // SAFETY: as for `configure`.
        unsafe { asm!("tilerelease", options(nostack)) };
    }

    /// Multiplies two by two tiles `count` times, all from the nearest cache. Returns the number of
    /// floating-point operations.
    pub(crate) fn exercise(self, count: usize) -> f64 {
        let lhs = [LhsRow::zeroed(); 2 * TILE_ROWS];
        let panel = [LhsRow::zeroed(); PAIRS];
        let panel: &[Block] = bytemuck::cast_slice(&panel);
        let mut sums = [[SumRow::zeroed(); 2 * TILE_ROWS]; 2];
        let [first, second] = sums.each_mut().map(|sums| bytemuck::cast_slice_mut(sums));
        let work = Work {
            lhs: lhs.as_ptr(),
            panels: [panel.as_ptr(); 2],
            sums: [first.as_mut_ptr(), second.as_mut_ptr()],
            lhs_step: 0,
            panel_step: 0,
            steps: count,
            prefetch: Prefetch::NONE,
        };
        // SAFETY: as in `multiply_tiles`. All steps read the same tiles, which the arrays hold.
        unsafe {
            configure(&TileConfig::of(TILE_ROWS));
            multiply_two_by_two(work);
        }
        self.release();
        (count * 4 * 2 * TILE_ROWS * NR * 2 * PAIRS) as f64
    }
}

/// Returns whether the processor has tiles and multiplies BF16 numbers in them (CPUID leaf 7).
fn has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

/// Asks the operating system to save tiles when it switches between threads of this process.
#[cfg(target_os = "linux")]
fn request_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_int = 18;
    // SAFETY: this system call has two numbers and touches no memory of this process. A system that does not
    // know the call returns an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Returns false, because AMX has not been tried on other systems.
#[cfg(not(target_os = "linux"))]
fn request_tiles() -> bool {
    false
}

/// The operand of `ldtilecfg`. It holds the bytes of a row and the number of rows of each tile.
#[derive(PartialEq)]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Returns the configuration for tiles of this height. Tiles 0 to 3 hold sums. Tiles 4 and 5 hold rows of
    /// the lhs. These six have this height. Tiles 6 and 7 hold panels.
    fn of(height: usize) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..6].fill(height as u8);
        config.rows[6..8].fill(PAIRS as u8);
        config
    }
}

/// Sets the shape of every tile.
///
/// # Safety
/// The machine must have AMX tiles, and the operating system must have granted them to the process.
unsafe fn configure(config: &TileConfig) {
    let mut current = TileConfig::of(0);
    // SAFETY: the first instruction writes and the second one reads 64 bytes, which `TileConfig` has; the caller guarantees
    // the rest.
    unsafe {
        // Ten times as fast as a new configuration, which waits for all tiles.
        asm!("sttilecfg [{}]", in(reg) &raw mut current, options(nostack));
        if current != *config {
            asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly));
        }
    }
}

/// The addresses of a product's tiles, and the distances in bytes from each to the next.
struct Work {
    /// `[steps][height]`.
    lhs: *const LhsRow,
    /// `[steps]` each.
    panels: [*const Block; 2],
    /// `[height][16]` each.
    sums: [*mut [f32; NR]; 2],
    lhs_step: usize,
    panel_step: usize,
    steps: usize,
    prefetch: Prefetch,
}

/// Defines a function that multiplies the tiles of a [`Work`] by the given instructions. Each step also prefetches at
/// the addresses `p` and `q`, one for each panel.
macro_rules! multiply {
    ($(#[$doc:meta])* $name:ident, [$($load:literal),*], [$($step:expr),*], [$($prefetch:expr),*], [$($store:literal),*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Tiles must be configured for rows of this height. All tiles of the work must lie in memory that
        /// may be read, and the sums in memory that may be written. There must be at least one step.
        unsafe fn $name(work: Work) {
            let ahead = |panel: *const Block| panel.wrapping_byte_add(work.prefetch.distance);
            // SAFETY: the caller guarantees the tiles that are loaded and stored, and the steps lead
            // from each tile to the next. An address that is only prefetched may lie anywhere.
            unsafe {
                asm!(
                    $($load,)*
                    "2:",
                    $($step,)*
                    $($prefetch,)*
                    "add {a}, {a_step}",
                    "add {b}, {b_step}",
                    "add {c}, {b_step}",
                    "add {p}, {p_step}",
                    "add {q}, {p_step}",
                    "dec {n}",
                    "jnz 2b",
                    $($store,)*
                    a = inout(reg) work.lhs => _,
                    b = inout(reg) work.panels[0] => _,
                    c = inout(reg) work.panels[1] => _,
                    p = inout(reg) ahead(work.panels[0]) => _,
                    q = inout(reg) ahead(work.panels[1]) => _,
                    n = inout(reg) work.steps => _,
                    y = in(reg) work.sums[0],
                    z = in(reg) work.sums[1],
                    s = in(reg) 64usize,
                    a_step = in(reg) work.lhs_step,
                    b_step = in(reg) work.panel_step,
                    p_step = in(reg) PAIRS * work.prefetch.stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The prefetches of a line of each panel, into the second cache.
macro_rules! prefetch_line {
    ($offset:literal) => {
        concat!("prefetcht1 [{p} + ", $offset, "]\nprefetcht1 [{q} + ", $offset, "]")
    };
}

/// Defines two functions that multiply: one adds the products to the sums, the other replaces the sums.
macro_rules! multiply_and_replace {
    (
        $(#[$doc:meta])* $multiply:ident, $replace:ident, [$($load:literal),*], [$($zero:literal),*], $step:tt,
        $prefetch:tt, $store:tt
    ) => {
        multiply!($(#[$doc])* $multiply, [$($load),*], $step, $prefetch, $store);
        multiply!($(#[$doc])* $replace, [$($zero),*], $step, $prefetch, $store);
    };
}

/// Defines functions that multiply two tiles of sixteen rows by two panels, with an instruction that loads the lhs.
macro_rules! multiply_two {
    ($(#[$doc:meta])* $multiply:ident, $replace:ident, $load:literal, $prefetch:tt) => {
        multiply_and_replace!(
            $(#[$doc])*
            $multiply,
            $replace,
            [
                "tileloadd tmm0, [{y} + {s}]",
                "tileloadd tmm1, [{z} + {s}]",
                "tileloadd tmm2, [{y} + {s} + 1024]",
                "tileloadd tmm3, [{z} + {s} + 1024]"
            ],
            ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
            [
                concat!($load, " tmm4, [{a} + {s}]"),
                "tileloadd tmm6, [{b} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{c} + {s}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                concat!($load, " tmm5, [{a} + {s} + 1024]"),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ],
            $prefetch,
            [
                "tilestored [{y} + {s}], tmm0",
                "tilestored [{z} + {s}], tmm1",
                "tilestored [{y} + {s} + 1024], tmm2",
                "tilestored [{z} + {s} + 1024], tmm3"
            ]
        );
    };
}

multiply_two!(
    /// Multiplies two tiles of sixteen rows by two panels, and prefetches as much as it multiplies.
    multiply_two_by_two, replace_two_by_two, "tileloadd",
    [
        prefetch_line!(0),
        prefetch_line!(64),
        prefetch_line!(128),
        prefetch_line!(192),
        prefetch_line!(256),
        prefetch_line!(320),
        prefetch_line!(384),
        prefetch_line!(448),
        prefetch_line!(512),
        prefetch_line!(576),
        prefetch_line!(640),
        prefetch_line!(704),
        prefetch_line!(768),
        prefetch_line!(832),
        prefetch_line!(896),
        prefetch_line!(960)
    ]
);
multiply_two!(
    /// Multiplies two tiles of sixteen rows by two panels, which several other tiles use. So the lhs is loaded past the
    /// nearest cache, where the panels stay, and each step prefetches two lines of each panel.
    multiply_two_streamed, replace_two_streamed, "tileloaddt1",
    [prefetch_line!(0), prefetch_line!(64)]
);
/// Defines functions that multiply one tile of up to sixteen rows by two panels.
macro_rules! multiply_one {
    ($(#[$doc:meta])* $multiply:ident, $replace:ident, $prefetch:tt) => {
        multiply_and_replace!(
            $(#[$doc])*
            $multiply,
            $replace,
            ["tileloadd tmm0, [{y} + {s}]", "tileloadd tmm1, [{z} + {s}]"],
            ["tilezero tmm0", "tilezero tmm1"],
            [
                "tileloadd tmm4, [{a} + {s}]",
                "tileloadd tmm6, [{b} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{c} + {s}]",
                "tdpbf16ps tmm1, tmm4, tmm7"
            ],
            $prefetch,
            ["tilestored [{y} + {s}], tmm0", "tilestored [{z} + {s}], tmm1"]
        );
    };
}

multiply_one!(
    /// Multiplies one tile of up to sixteen rows by two panels, and prefetches as much as it multiplies.
    multiply_one_by_two, replace_one_by_two,
    [
        prefetch_line!(0),
        prefetch_line!(64),
        prefetch_line!(128),
        prefetch_line!(192),
        prefetch_line!(256),
        prefetch_line!(320),
        prefetch_line!(384),
        prefetch_line!(448),
        prefetch_line!(512),
        prefetch_line!(576),
        prefetch_line!(640),
        prefetch_line!(704),
        prefetch_line!(768),
        prefetch_line!(832),
        prefetch_line!(896),
        prefetch_line!(960)
    ]
);
multiply_one!(
    /// Multiplies one tile of up to sixteen rows by two panels, and prefetches two lines of each panel.
    multiply_one_streamed, replace_one_streamed, [prefetch_line!(0), prefetch_line!(64)]
);

#[cfg(test)]
mod tests {
    use super::super::super::super::tests::oracle;
    use super::*;

    /// Covers every height and several numbers of panels.
    #[test]
    fn multiply_tiles_agrees_with_the_oracle() {
        let Some(isa) = Amx::detect() else {
            println!("skipped: no AMX");
            return;
        };
        for mr in AmxRows::ALL {
            for panel_count in [1, 2, 3, 4] {
                for steps in [0, 1, 2, 5] {
                    check(isa, *mr, panel_count, steps);
                }
            }
        }
    }

    fn check(isa: Amx, mr: AmxRows, panel_count: usize, steps: usize) {
        let height = mr.rows();
        let numbers = |count, seed| -> Vec<bf16> {
            oracle::numbers(count, seed).map(bf16::from_f32).collect()
        };
        let pairs = steps * PAIRS;
        let mut lhs = vec![LhsRow::zeroed(); steps * height];
        bytemuck::cast_slice_mut(&mut lhs).copy_from_slice(&numbers(2 * pairs * height, 1));
        let panels: Vec<Vec<bf16>> =
            (0..panel_count).map(|p| numbers(2 * pairs * NR, 2 + p as u64)).collect();
        let as_blocks: Vec<&[Block]> =
            panels.iter().map(|panel| bytemuck::cast_slice(panel)).collect();
        let mut sums = vec![[0.5; NR]; panel_count * height];
        let prefetch = Prefetch { distance: 4096, stride: 64 };
        let then = Sums::Add;
        let is_streamed = steps > 2;
        let product = Product { lhs: &lhs, mr, sums: &mut sums, then, is_streamed, prefetch };
        isa.multiply_tiles([product].into_iter(), &as_blocks);
        for (panel, sums) in panels.iter().zip(sums.chunks_exact(height)) {
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let terms = (0..pairs).flat_map(|pair| {
                        let x = lhs[pair / PAIRS * height + row].0[pair % PAIRS];
                        let weights = &panel[(pair * NR + column) * 2..][..2];
                        [0, 1].map(|i| (x[i].to_f32(), weights[i].to_f32()))
                    });
                    let exact = oracle::dot(0.5, terms);
                    let what = format!("{height} rows, {panel_count} panels, {steps} steps");
                    exact.assert_close(*sum, 2 * pairs + 1, &what);
                }
            }
        }
    }
}

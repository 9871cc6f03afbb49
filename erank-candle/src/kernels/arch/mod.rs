//! The inner loop, compiled for each instruction set; one is chosen at run time.
//!
//! Each file exposes the same names. `portable.rs` holds the loop itself, which every other set
//! compiles again with its own instructions switched on; a set with instructions that the compiler
//! does not find by itself (tiles, BF16 dot products) brings its own loop under these names.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
pub(super) mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::LazyLock;

use half::bf16;

use super::{Ahead, Element, LANES};
use crate::error::LoadError;

/// An instruction set that this machine has: a value other than `Portable` exists only if the
/// machine was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstructionSet(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(x86_64::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512_bf16::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
}

impl InstructionSet {
    /// Every set that this machine has, the best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(amx::Amx::detect().map(|token| Self(Set::Amx(token))));
            sets.extend(
                avx512_bf16::Avx512Bf16::detect().map(|token| Self(Set::Avx512Bf16(token))),
            );
            sets.extend(x86_64::Avx512::detect().map(|token| Self(Set::Avx512(token))));
            sets.extend(x86_64::Avx2::detect().map(|token| Self(Set::Avx2(token))));
        }
        sets.push(Self(Set::Portable));
        sets
    }

    /// The best of [`available`](Self::available), for what does not depend on the set.
    pub(crate) fn best() -> Self {
        static BEST: LazyLock<InstructionSet> = LazyLock::new(|| InstructionSet::available()[0]);
        *BEST
    }

    /// The set that the caller names, else the one that the environment variable
    /// `ERANK_INSTRUCTION_SET` names, else the best.
    pub(crate) fn choose(name: Option<&str>) -> Result<Self, LoadError> {
        let variable = std::env::var("ERANK_INSTRUCTION_SET").ok().filter(|name| !name.is_empty());
        let available = Self::available();
        let Some(name) = name.or(variable.as_deref()) else { return Ok(available[0]) };
        available.iter().find(|set| set.name() == name).copied().ok_or_else(|| {
            let names: Vec<&str> = available.iter().map(|set| set.name()).collect();
            LoadError::Setting(format!(
                "there is no instruction set {name:?} on this machine; it has {}",
                names.join(", ")
            ))
        })
    }

    /// Its name, for logs and reports.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(..) => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => "amx",
        }
    }

    /// Rows of the tallest tile whose sums stay in this set's registers.
    pub(crate) fn tallest_tile(self) -> usize {
        match self.0 {
            Set::Portable => 2,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) | Set::Avx512Bf16(_) | Set::Amx(_) => 8,
        }
    }

    /// The same for [`tiles`](Self::tiles).
    pub(crate) fn tallest_of_tiles(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => amx::Amx::TALLEST,
            _ => 1,
        }
    }

    /// For each panel: `sums[r] += Σ_i x[i][r] · panel[i]`, with `x` as `[k / DEPTH][height][DEPTH]`, a
    /// panel as `[k / DEPTH][16][DEPTH]`, and sums as `[panels][height]`; meanwhile, what is `ahead` of
    /// the panels is fetched from memory. The height is 1, 2, 4 or 8; with another one, nothing is added.
    ///
    /// # Panics
    /// If a panel has no whole number of `[16][DEPTH]`.
    #[inline]
    pub(crate) fn tiles_of_singles<E: Element>(
        self,
        x: &[E::Left],
        panels: &[&[E]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        match self.0 {
            Set::Portable => portable::tiles::<E, false, 1>(x, panels, height, sums, |_, _| ()),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(token) => token.tiles(x, panels, height, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(token) => token.tiles(x, panels, height, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.avx512().tiles(x, panels, height, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => {
                token.avx512_bf16().avx512().tiles(x, panels, height, sums, ahead);
            }
        }
    }

    /// Whether [`tiles_of_pairs`](Self::tiles_of_pairs) adds anything.
    pub(crate) fn multiplies_pairs(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) | Set::Amx(_) => true,
            _ => false,
        }
    }

    /// Whether [`tiles`](Self::tiles) adds anything.
    pub(crate) fn multiplies_tiles(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => true,
            _ => false,
        }
    }

    /// The same of pairs, whose two products are added at once. Without
    /// [`multiplies_pairs`](Self::multiplies_pairs), nothing is added.
    #[inline]
    pub(crate) fn tiles_of_pairs(
        self,
        x: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.tiles(x, panels, height, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.avx512_bf16().tiles(x, panels, height, sums, ahead),
            _ => {}
        }
    }

    /// Adds weights times panels of values: see
    /// [`Products::weigh`](super::products::Products::weigh). Without
    /// [`multiplies_pairs`](Self::multiplies_pairs), nothing is added.
    #[inline]
    pub(crate) fn weigh(
        self,
        weights: &[[bf16; LANES]],
        panels: &[bf16],
        seen: usize,
        sums: &mut [[f32; LANES]],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.weigh(weights, panels, seen, sums),
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.avx512_bf16().weigh(weights, panels, seen, sums),
            _ => {}
        }
    }

    /// The same with `x` as `[k / 32][height][16]` and a height up to 32, where `k` is a multiple of 32.
    /// Without [`multiplies_tiles`](Self::multiplies_tiles), nothing is added.
    ///
    /// # Panics
    /// If a panel or the sums are too short.
    #[inline]
    pub(crate) fn tiles(
        self,
        x: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.tiles(x, panels, height, sums, ahead),
            _ => {}
        }
    }

    /// Multiplies tiles in the nearest cache `count` times; the floating-point operations of that.
    pub(crate) fn exercise_tiles(self, count: usize) -> f64 {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.exercise(count),
            _ => 0.0,
        }
    }

    /// Calls `work`, compiled with this set's instructions as far as the compiler inlines it: loops
    /// in it are vectorised for them. Its results do not depend on the set, as the compiler keeps the
    /// order of floating-point operations.
    #[inline]
    pub(crate) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self.0 {
            Set::Portable => work(),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(token) => token.run(work),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(token) => token.run(work),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.run(work),
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.avx512_bf16().run(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::products::place;
    use super::super::reference;
    use super::*;

    /// What the tests run on `available()` leaves out nothing that the processor has. With
    /// `ERANK_REQUIRE_ALL`, as at the gate, it fails otherwise.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn every_set_of_the_machine_is_available() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").expect("Linux describes processors");
        let names: Vec<&str> = InstructionSet::available().iter().map(|set| set.name()).collect();
        for (flag, name) in [
            ("amx_bf16", "amx"),
            ("avx512_bf16", "avx512bf16"),
            ("avx512f", "avx512"),
            ("avx2", "avx2"),
        ] {
            match (flags.split_whitespace().any(|word| word == flag), names.contains(&name)) {
                (true, false) if std::env::var_os("ERANK_REQUIRE_ALL").is_some() => {
                    panic!("the processor has {flag}, but {name} was not tested")
                }
                (true, true) => {}
                (has, _) => println!("skipped: {name}; the processor has {flag}: {has}"),
            }
        }
    }

    /// Every set, height and type, over lengths with and without remainders.
    #[test]
    fn every_set_agrees_with_the_oracle() {
        for set in InstructionSet::available() {
            println!("checking {}", set.name());
            for rows in [1, 2, 4, 8] {
                for k in [0, 1, 2, 3, 15, 16, 17, 64, 129, 1000] {
                    check::<f32>(set, rows, k);
                    check::<bf16>(set, rows, k);
                }
            }
        }
    }

    fn check<E: Element>(set: InstructionSet, rows: usize, k: usize) {
        const PANELS: usize = 5;
        let padded = k.next_multiple_of(E::DEPTH);
        let mut x = vec![E::Left::default(); padded / E::DEPTH * rows];
        let mut numbers = vec![E::round(0.0); PANELS * LANES * padded];
        for (i, number) in reference::numbers(rows * k, 1).enumerate() {
            x[i / rows / E::DEPTH * rows + i % rows].as_mut()[i / rows % E::DEPTH] = number;
        }
        let x_at = |i: usize, r: usize| x[i / E::DEPTH * rows + r].as_ref()[i % E::DEPTH];
        for (i, number) in reference::numbers(PANELS * LANES * k, 2).enumerate() {
            let (panel, i) = (i / (LANES * k), i % (LANES * k));
            let place = place(E::DEPTH, i / LANES, i % LANES);
            numbers[panel * LANES * padded + place] = E::round(number);
        }
        let panels: [&[E]; PANELS] =
            std::array::from_fn(|i| &numbers[i * LANES * padded..][..LANES * padded]);
        for count in [1, PANELS] {
            let mut sums = vec![[0.5; LANES]; count * rows];
            set.tiles_of_singles(&x, &panels[..count], rows, &mut sums, Ahead::NOTHING);
            for (index, row) in sums.iter().enumerate() {
                let (panel, r) = (panels[index / rows], index % rows);
                for (lane, sum) in row.iter().enumerate() {
                    let terms =
                        (0..k).map(|i| (x_at(i, r), panel[place(E::DEPTH, i, lane)].widen()));
                    let exact = reference::dot(0.5, terms);
                    exact.assert_close(*sum, k + 1, &format!("{} {rows}×{k}", set.name()));
                }
            }
        }
    }
}

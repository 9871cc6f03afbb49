//! The inner loop, compiled for each instruction set; one is chosen at run time.
//!
//! Each file exposes the same names. `portable.rs` holds the loop itself, which every other set
//! compiles again with its own instructions switched on; a set with instructions that the compiler
//! does not find by itself (tiles, BF16 dot products) brings its own loop under these names.

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
pub(super) mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use half::bf16;

use super::{Element, LANES};
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
    Avx512Bf16(x86_64::Avx512, avx512_bf16::Avx512Bf16),
}

impl InstructionSet {
    /// Every set that this machine has, the best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = x86_64::Avx512::detect();
            let both = avx512.zip(avx512_bf16::Avx512Bf16::detect());
            sets.extend(both.map(|(avx512, bf16)| Self(Set::Avx512Bf16(avx512, bf16))));
            sets.extend(avx512.map(|token| Self(Set::Avx512(token))));
            sets.extend(x86_64::Avx2::detect().map(|token| Self(Set::Avx2(token))));
        }
        sets.push(Self(Set::Portable));
        sets
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
        }
    }

    /// Rows of the tallest tile whose sums stay in this set's registers.
    pub(crate) fn tallest_tile(self) -> usize {
        match self.0 {
            Set::Portable => 2,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) | Set::Avx512Bf16(..) => 8,
        }
    }

    /// The height of a tile for the next `rows` rows: as tall as the set allows, but no taller than
    /// the next power of two.
    pub(crate) fn tile_height(self, rows: usize) -> usize {
        rows.next_power_of_two().min(self.tallest_tile())
    }

    /// `sums[r] += Σ_i x[i][r] · panel[i]`, with `x` as `[k][sums.len()]` and `panel` as `[k][16]`.
    /// There are 1, 2, 4 or 8 rows of sums; with another number, nothing is added.
    #[inline]
    pub(crate) fn tile<E: Element>(self, x: &[f32], panel: &[E], sums: &mut [[f32; LANES]]) {
        debug_assert!(matches!(sums.len(), 1 | 2 | 4 | 8));
        debug_assert_eq!(x.len() * LANES, panel.len() * sums.len());
        match self.0 {
            Set::Portable => portable::tile::<E, false>(x, panel, sums),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(token) => token.tile(x, panel, sums),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(token) | Set::Avx512Bf16(token, _) => token.tile(x, panel, sums),
        }
    }

    /// Whether [`tile_pairs`](Self::tile_pairs) can be used.
    pub(crate) fn multiplies_pairs(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(..) => true,
            _ => false,
        }
    }

    /// For one or two panels: `sums[r] = Σ_i x[i][r] · panel[i]` over pairs, with `x` as
    /// `[k / 2][height]`, and `panel` as `[k / 2][16][2]`. The tile's height is 1, 2, 4 or 8; there
    /// are as many rows of sums or fewer. Without [`multiplies_pairs`](Self::multiplies_pairs),
    /// nothing is done.
    #[inline]
    pub(crate) fn tile_pairs<const PANELS: usize>(
        self,
        x: &[[bf16; 2]],
        panels: [&[bf16]; PANELS],
        sums: [&mut [[f32; LANES]]; PANELS],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_, token) => token.tile(x, panels, sums),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

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
        let x: Vec<f32> = reference::numbers(rows * k, 1).collect();
        let panel: Vec<E> = reference::numbers(LANES * k, 2).map(E::round).collect();
        let mut sums = vec![[0.5; LANES]; rows];
        set.tile(&x, &panel, &mut sums);
        for (r, row) in sums.iter().enumerate() {
            for (lane, sum) in row.iter().enumerate() {
                let terms = (0..k).map(|i| (x[i * rows + r], panel[i * LANES + lane].widen()));
                let exact = reference::dot(0.5, terms);
                exact.assert_close(*sum, k + 1, &format!("{} {rows}×{k}", set.name()));
            }
        }
    }
}

//! Instruction sets, one file each, and the choice of one at run time.
//!
//! `generic.rs` holds the loop of the portable set, which other sets compile again with their own
//! instructions enabled. A set with instructions that the compiler does not select by itself (tile and dot
//! products) has micro-kernels of its own.
//!
//! The enum [`InstructionSet`] and `with_isa!` are generated from the list below. A format or the cache
//! that has micro-kernels for one set selects them by the token of that set.

#[macro_use]
pub(super) mod features;

#[cfg(target_arch = "aarch64")]
pub(super) mod aarch64;
pub(super) mod generic;
pub(super) mod isa;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86_64;

use std::sync::LazyLock;

pub(crate) use isa::{Isa, WideningIsa};

use crate::error::LoadError;

/// Generates [`InstructionSet`] and the macro `with_isa!` from a list of names and token types. The first
/// argument is a dollar sign, which the generated macro needs.
macro_rules! instruction_sets {
    ($dollar:tt $($(#[$cfg:meta])* $name:ident($token:ty),)*) => {
        /// An instruction set that this machine has.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) enum InstructionSet {
            $($(#[$cfg])* $name($token),)*
        }

        impl InstructionSet {
            /// Returns every set that this machine has, in the order of the list.
            pub(crate) fn available() -> Vec<Self> {
                let mut sets = Vec::new();
                $($(#[$cfg])* sets.extend(<$token as Isa>::detect().map(Self::$name));)*
                sets
            }
        }

        /// Evaluates an expression with the token of an [`InstructionSet`], in the token's own type.
        macro_rules! with_isa {
            ($dollar set:expr, $dollar isa:ident => $dollar body:expr) => {
                match $dollar set {
                    $($(#[$cfg])* $crate::kernels::arch::InstructionSet::$name($dollar isa) => $dollar body,)*
                }
            };
        }
        pub(crate) use with_isa;
    };
}

instruction_sets! { $
    // The best set comes first.
    #[cfg(target_arch = "x86_64")]
    Amx(x86_64::amx::Amx),
    #[cfg(target_arch = "x86_64")]
    AmxPrefill(x86_64::amx::AmxPrefill),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(x86_64::avx512_bf16::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(x86_64::avx512_vnni::Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(x86_64::avx_vnni::AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86_64::avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    NeonBf16(aarch64::neon_bf16::NeonBf16),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(aarch64::neon_i8mm::NeonI8mm),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(aarch64::neon_dotprod::NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::neon::Neon),
    Portable(generic::Portable),
}

impl InstructionSet {
    /// Returns the best set of this machine, for work whose results do not depend on the set.
    pub(crate) fn best() -> Self {
        static BEST: LazyLock<InstructionSet> = LazyLock::new(|| InstructionSet::available()[0]);
        *BEST
    }

    /// Returns the set that `name` names, or else the one that the environment variable
    /// `ERANK_INSTRUCTION_SET` names, or else the best: for models that only read prompts if `only_prompts`, and for
    /// models that generate tokens if not.
    ///
    /// # Errors
    /// Returns an error if this machine does not have the named set.
    pub(crate) fn choose(name: Option<&str>, only_prompts: bool) -> Result<Self, LoadError> {
        let variable = std::env::var("ERANK_INSTRUCTION_SET").ok().filter(|name| !name.is_empty());
        let available = Self::available();
        let Some(name) = name.or(variable.as_deref()) else {
            #[cfg(target_arch = "x86_64")]
            let for_prompts = available.iter().find(|set| matches!(set, Self::AmxPrefill(_)));
            #[cfg(not(target_arch = "x86_64"))]
            let for_prompts = None;
            return Ok(*for_prompts.filter(|_| only_prompts).unwrap_or(&available[0]));
        };
        available.iter().find(|set| set.name() == name).copied().ok_or_else(|| {
            let names: Vec<&str> = available.iter().map(|set| set.name()).collect();
            LoadError::Setting(format!(
                "there is no instruction set {name:?} on this machine; it has {}",
                names.join(", ")
            ))
        })
    }

    /// Returns the name for settings, logs and reports.
    pub(crate) fn name(self) -> &'static str {
        fn name_of<I: Isa>(_: I) -> &'static str {
            I::NAME
        }
        with_isa!(self, isa => name_of(isa))
    }

    /// Returns the token of `T` if this set is `T` or extends it.
    pub(crate) fn token<T: Isa>(self) -> Option<T> {
        with_isa!(self, isa => isa.token())
    }

    /// Calls `work`, compiled with this set's instructions (see [`Isa::run`]).
    #[inline]
    pub(crate) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        with_isa!(self, isa => isa.run(work))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::element::Element;
    use super::super::tests::oracle;
    use super::super::tile::{Mr, NR, Prefetch, TileRows};
    use super::*;

    /// The tests run on `available()`. With `ERANK_REQUIRE_ALL`, as at the gate, this test fails if
    /// `available()` lacks a set that the processor has.
    #[test]
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn available_lists_every_set_of_the_processor() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").expect("Linux describes processors");
        let names: Vec<&str> = InstructionSet::available().iter().map(|set| set.name()).collect();
        let sets: &[_] = match cfg!(target_arch = "x86_64") {
            true => &[
                ("amx_bf16", "amx"),
                ("avx512_bf16", "avx512bf16"),
                ("avx512_vnni", "avx512vnni"),
                ("avx512f", "avx512"),
                ("avx_vnni", "avxvnni"),
                ("avx2", "avx2"),
            ],
            false => &[
                ("bf16", "neonbf16"),
                ("i8mm", "neoni8mm"),
                ("asimddp", "neondotprod"),
                ("asimd", "neon"),
            ],
        };
        for (flag, name) in sets {
            match (flags.split_whitespace().any(|word| word == *flag), names.contains(name)) {
                (true, false) if std::env::var_os("ERANK_REQUIRE_ALL").is_some() => {
                    panic!("the processor has {flag}, but {name} was not tested")
                }
                (true, true) => {}
                (has, _) => println!("skipped: {name}; the processor has {flag}: {has}"),
            }
        }
    }

    #[test]
    fn token_finds_a_set_and_those_that_it_extends() {
        for set in InstructionSet::available() {
            assert!(set.token::<generic::Portable>().is_some(), "{}", set.name());
            #[cfg(target_arch = "x86_64")]
            {
                let is_portable = matches!(set, InstructionSet::Portable(_));
                assert_eq!(set.token::<x86_64::avx2::Avx2>().is_some(), !is_portable);
                let is_amx = matches!(set, InstructionSet::Amx(_) | InstructionSet::AmxPrefill(_));
                assert_eq!(set.token::<x86_64::amx::Amx>().is_some(), is_amx);
            }
            #[cfg(target_arch = "aarch64")]
            {
                let is_portable = matches!(set, InstructionSet::Portable(_));
                assert_eq!(set.token::<aarch64::neon::Neon>().is_some(), !is_portable);
                let is_bf16 = matches!(set, InstructionSet::NeonBf16(_));
                assert_eq!(set.token::<aarch64::neon_bf16::NeonBf16>().is_some(), is_bf16);
            }
        }
    }

    /// Covers every set, height and type, over lengths with and without remainders.
    #[test]
    fn multiply_widened_agrees_with_the_oracle() {
        for set in InstructionSet::available() {
            println!("checking {}", set.name());
            for mr in Mr::ALL {
                for k in [0, 1, 2, 3, 15, 16, 17, 64, 129, 1000] {
                    with_isa!(set, isa => {
                        check::<_, f32>(isa.widening(), *mr, k);
                        check::<_, bf16>(isa.widening(), *mr, k);
                    });
                }
            }
        }
    }

    fn check<I: WideningIsa, E: Element>(isa: I, mr: Mr, k: usize) {
        const PANELS: usize = 5;
        let rows = mr.rows();
        let padded = k.next_multiple_of(E::DEPTH);
        let mut lhs = vec![E::Lhs::default(); padded / E::DEPTH * rows];
        for (i, number) in oracle::numbers(rows * k, 1).enumerate() {
            lhs[i / rows / E::DEPTH * rows + i % rows].as_mut()[i / rows % E::DEPTH] = number;
        }
        let lhs_at = |i: usize, r: usize| lhs[i / E::DEPTH * rows + r].as_ref()[i % E::DEPTH];
        let index =
            |i: usize, column: usize| (i / E::DEPTH * NR + column) * E::DEPTH + i % E::DEPTH;
        let mut numbers = vec![E::round(0.0); PANELS * NR * padded];
        for (i, number) in oracle::numbers(PANELS * NR * k, 2).enumerate() {
            let (panel, i) = (i / (NR * k), i % (NR * k));
            numbers[panel * NR * padded + index(i / NR, i % NR)] = E::round(number);
        }
        let panel = |i: usize| &numbers[i * NR * padded..][..NR * padded];
        let panels: [&[E::Block]; PANELS] = std::array::from_fn(|i| bytemuck::cast_slice(panel(i)));
        for count in [1, PANELS] {
            let mut sums = vec![[0.5; NR]; count * rows];
            isa.multiply_widened::<E>(&lhs, &panels[..count], mr, &mut sums, Prefetch::NONE);
            for (sum_row, sums) in sums.iter().enumerate() {
                let (panel, r) = (panel(sum_row / rows), sum_row % rows);
                for (column, sum) in sums.iter().enumerate() {
                    let terms = (0..k).map(|i| (lhs_at(i, r), panel[index(i, column)].widen()));
                    let exact = oracle::dot(0.5, terms);
                    exact.assert_close(*sum, k + 1, &format!("{} {rows}×{k}", I::NAME));
                }
            }
        }
    }
}

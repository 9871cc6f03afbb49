//! AVX2 with FMA, and AVX-512: the portable loop, compiled with these instructions.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use super::super::{Element, LANES};
use super::portable;

/// Defines a token whose existence proves that the machine has these features, and its `tile`.
macro_rules! instruction_set {
    ($(#[$doc:meta])* $token:ident, $features:literal, [$($feature:tt),*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) struct $token(());

        impl $token {
            pub(super) fn detect() -> Option<Self> {
                ($(is_x86_feature_detected!($feature))&&*).then_some(Self(()))
            }

            /// See [`InstructionSet::run`](super::InstructionSet::run).
            #[inline]
            pub(super) fn run<R>(self, work: impl FnOnce() -> R) -> R {
                #[target_feature(enable = $features)]
                fn compiled<R>(work: impl FnOnce() -> R) -> R {
                    work()
                }
                // SAFETY: as in `tile`.
                unsafe { compiled(work) }
            }

            #[inline]
            pub(super) fn tile<E: Element>(
                self,
                x: &[f32],
                panel: &[E],
                sums: &mut [[f32; LANES]],
            ) {
                #[target_feature(enable = $features)]
                fn compiled<E: Element>(x: &[f32], panel: &[E], sums: &mut [[f32; LANES]]) {
                    portable::tile::<E, true>(x, panel, sums);
                }
                // SAFETY: the machine must have the features. `self` exists, and `detect`, the only
                // way to make it, saw them all.
                unsafe { compiled(x, panel, sums) }
            }
        }
    };
}

instruction_set!(
    /// 16 registers of 8 numbers.
    Avx2, "avx2,fma", ["avx2", "fma"]
);
instruction_set!(
    /// 32 registers of 16 numbers.
    Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"]
);

//! AVX2 with FMA, and AVX-512: the portable loop, compiled with these instructions.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::super::{Ahead, Element, LANES};
use super::portable;

/// Defines a token whose existence proves that the machine has these features, and its `tiles`.
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
                // SAFETY: as in `tiles`.
                unsafe { compiled(work) }
            }

            /// See [`InstructionSet::tiles_of_singles`](super::InstructionSet::tiles_of_singles).
            #[inline]
            pub(super) fn tiles<E: Element>(
                self,
                x: &[E::Left],
                panels: &[&[E]],
                height: usize,
                sums: &mut [[f32; LANES]],
                ahead: Ahead,
            ) {
                #[target_feature(enable = $features)]
                fn compiled<E: Element>(
                    x: &[E::Left],
                    panels: &[&[E]],
                    height: usize,
                    sums: &mut [[f32; LANES]],
                    ahead: Ahead,
                ) {
                    if ahead.step == 0 {
                        return portable::tiles::<E, true, 4>(x, panels, height, sums, |_, _| ());
                    }
                    portable::tiles::<E, true, 4>(
                        x,
                        panels,
                        height,
                        sums,
                        #[inline(always)]
                        |panel, step| {
                            let bytes = ahead.bytes + step * ahead.step;
                            let address = panel.as_ptr().cast::<i8>().wrapping_add(bytes);
                            _mm_prefetch::<_MM_HINT_T0>(address);
                        },
                    );
                }
                // SAFETY: the machine must have the features. `self` exists, and `detect`, the only
                // way to make it, saw them all.
                unsafe { compiled(x, panels, height, sums, ahead) }
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

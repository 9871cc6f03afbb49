//! Instruction sets of x86-64 processors.

/// Implements [`Isa::run`](super::isa::Isa::run) with these features enabled. The token's `detect` must check
/// every one of them.
macro_rules! run_with_features {
    ($features:literal) => {
        #[inline]
        fn run<R>(self, work: impl FnOnce() -> R) -> R {
            #[target_feature(enable = $features)]
            fn compiled<R>(work: impl FnOnce() -> R) -> R {
                work()
            }
            // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
            // make it, checked all of them.
            unsafe { compiled(work) }
        }
    };
}

/// Implements [`WideningIsa`](super::isa::WideningIsa) by compiling the generic loop with these features enabled.
/// The token's `detect` must check every one of them.
macro_rules! multiply_with_features {
    ($features:literal) => {
        #[inline]
        fn multiply_widened<E: Element>(
            self,
            lhs: &[E::Lhs],
            panels: &[&[E::Block]],
            mr: Mr,
            sums: &mut [[f32; NR]],
            prefetch: Prefetch,
        ) {
            #[target_feature(enable = $features)]
            fn compiled<E: Element>(
                lhs: &[E::Lhs],
                panels: &[&[E::Block]],
                mr: Mr,
                sums: &mut [[f32; NR]],
                prefetch: Prefetch,
            ) {
                if prefetch.stride == 0 {
                    return generic::multiply::<E, true, 4>(lhs, panels, mr, sums, |_, _| ());
                }
                generic::multiply::<E, true, 4>(
                    lhs,
                    panels,
                    mr,
                    sums,
                    #[inline(always)]
                    |panel, step| {
                        let bytes = prefetch.distance + step * prefetch.stride;
                        let address = panel.as_ptr().cast::<i8>().wrapping_add(bytes);
                        _mm_prefetch::<_MM_HINT_T0>(address);
                    },
                );
            }
            // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
            // make it, checked all of them.
            unsafe { compiled::<E>(lhs, panels, mr, sums, prefetch) }
        }
    };
}

pub(crate) mod amx;
pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod avx512_bf16;

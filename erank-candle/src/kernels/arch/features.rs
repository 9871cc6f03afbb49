//! Code that an instruction set compiles with its own features enabled.
#![expect(unsafe_code, reason = "an instruction that is no part of Rust")]

/// Implements [`Isa::run`](Isa::run) with these features enabled. The token's `detect` must check
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

/// Implements [`WideningIsa`](WideningIsa) by compiling the generic loop with these features enabled.
/// The token's `detect` must check every one of them. The numbers are the panels of one row and of two rows that are
/// multiplied at once.
macro_rules! multiply_with_features {
    ($features:literal, $of_one:literal, $of_two:literal) => {
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
                    return generic::multiply::<E, true, $of_one, $of_two>(
                        lhs,
                        panels,
                        mr,
                        sums,
                        |_, _| (),
                    );
                }
                generic::multiply::<E, true, $of_one, $of_two>(
                    lhs,
                    panels,
                    mr,
                    sums,
                    #[inline(always)]
                    |panel, step| {
                        let bytes = prefetch.distance + step * prefetch.stride;
                        let address = panel.as_ptr().cast::<u8>().wrapping_add(bytes);
                        $crate::kernels::arch::features::prefetch(address);
                    },
                );
            }
            // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
            // make it, checked all of them.
            unsafe { compiled::<E>(lhs, panels, mr, sums, prefetch) }
        }
    };
}

/// Asks the processor to load the cache line at an address. An invalid address has no effect.
#[inline(always)]
pub(in super::super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the machine must have SSE, which is a part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction is a part of ARMv8, and changes no register.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{}]",
            in(reg) address,
            options(nostack, preserves_flags, readonly),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

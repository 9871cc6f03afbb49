//! Code that an instruction set compiles with its own features enabled.
#![expect(unsafe_code, reason = "instructions that are no part of Rust")]

use super::super::tile::NR;

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
/// The token's `detect` must check every one of them. The numbers count the panels that are multiplied at once, for
/// tiles of one, two, four and eight rows.
macro_rules! multiply_with_features {
    ($features:literal, $of_one:literal, $of_two:literal, $of_four:literal, $of_eight:literal) => {
        const PANELS: usize =
            [$of_one, $of_two, $of_four, $of_eight][<Self as Isa>::MAX_MR as usize];

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
                    return generic::multiply::<E, true, $of_one, $of_two, $of_four, $of_eight>(
                        lhs,
                        panels,
                        mr,
                        sums,
                        |_, _| (),
                    );
                }
                generic::multiply::<E, true, $of_one, $of_two, $of_four, $of_eight>(
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

/// Writes a line without reading it into the caches first, if it is aligned as the caches' lines are. After the last
/// such write, [`finish_uncached`] must be called before another thread reads.
#[inline(always)]
pub(in super::super) fn write_uncached(to: &mut [f32; NR], from: &[f32; NR]) {
    #[cfg(target_arch = "x86_64")]
    if to.as_ptr().addr().is_multiple_of(64) {
        for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<4>().0) {
            // SAFETY: the store writes 16 bytes, which the array has, at an address that is a multiple of 16: the
            // address of the line is a multiple of 64, as checked above. Every x86-64 processor has the instructions.
            unsafe {
                let numbers = std::arch::x86_64::_mm_loadu_ps(from.as_ptr());
                std::arch::x86_64::_mm_stream_ps(to.as_mut_ptr(), numbers);
            }
        }
        return;
    }
    *to = *from;
}

/// Orders all earlier writes of [`write_uncached`] before later writes.
#[inline(always)]
pub(in super::super) fn finish_uncached() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction touches no memory, and every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

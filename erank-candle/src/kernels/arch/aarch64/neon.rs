//! NEON: 32 registers of four F32 numbers, and fused multiply-add.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use std::arch::is_aarch64_feature_detected;

use super::super::super::element::Element;
use super::super::super::tile::{Mr, NR, Prefetch};
use super::super::generic::{self, Portable};
use super::super::isa::{Isa, WideningIsa};

/// NEON, which every 64-bit ARM processor with an operating system for applications has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(Portable);

impl Isa for Neon {
    const NAME: &'static str = "neon";
    const MAX_MR: Mr = Mr::Four;
    type Base = Portable;
    type Widening = Self;

    fn detect() -> Option<Self> {
        // With big-endian memory, the lanes of a register are in another order than the kernels of this and of
        // the larger sets expect.
        let detected = cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon");
        detected.then_some(Self(Portable))
    }

    fn base(self) -> Option<Portable> {
        Some(self.0)
    }

    fn widening(self) -> Self {
        self
    }

    run_with_features!("neon");
}

impl WideningIsa for Neon {
    // Processors begin up to four vector additions in a cycle, and each takes four cycles. So 16 registers of sums
    // are needed.
    multiply_with_features!("neon", 4, 2, 1, 1);
}

//! AVX2 with FMA and F16C: 16 registers of 8 F32 numbers.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use super::super::super::element::Element;
use super::super::super::tile::{Mr, NR, Prefetch};
use super::super::generic::{self, Portable};
use super::super::isa::{Isa, WideningIsa};

/// AVX2 with FMA and F16C. Every processor with AVX2 has all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(Portable);

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const MAX_MR: Mr = Mr::Four;
    type Base = Portable;
    type Widening = Self;

    fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        detected.then_some(Self(Portable))
    }

    fn base(self) -> Option<Portable> {
        Some(self.0)
    }

    fn widening(self) -> Self {
        self
    }

    run_with_features!("avx2,fma,f16c");
}

impl WideningIsa for Avx2 {
    multiply_with_features!("avx2,fma", 4, 2, 1, 1);
}

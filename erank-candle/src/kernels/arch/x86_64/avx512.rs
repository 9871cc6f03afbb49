//! AVX-512: 32 registers of 16 F32 numbers.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use super::super::super::element::Element;
use super::super::super::tile::{Mr, NR, Prefetch};
use super::super::generic;
use super::super::isa::{Isa, WideningIsa};
use super::avx2::Avx2;

/// The parts F, BW, DQ and VL of AVX-512. Every server processor with AVX-512 has these four, except for the
/// discontinued Xeon Phi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(Avx2);

impl Isa for Avx512 {
    const NAME: &'static str = "avx512";
    const MAX_MR: Mr = Mr::Eight;
    type Base = Avx2;
    type Widening = Self;

    fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        Avx2::detect().filter(|_| detected).map(Self)
    }

    fn base(self) -> Option<Avx2> {
        Some(self.0)
    }

    fn widening(self) -> Self {
        self
    }

    run_with_features!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
}

impl WideningIsa for Avx512 {
    multiply_with_features!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 4, 4, 2, 2);
}

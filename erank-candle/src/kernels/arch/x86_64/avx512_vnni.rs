//! AVX-512 with products of bytes (`vpdpbusd`), for weights of 4 to 8 bits.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use super::super::super::tile::Mr;
use super::super::isa::Isa;
use super::avx512::Avx512;

/// [`Avx512`] with products of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Vnni(Avx512);

impl Isa for Avx512Vnni {
    const NAME: &'static str = "avx512vnni";
    const MAX_MR: Mr = Mr::Eight;
    type Base = Avx512;
    type Widening = Avx512;

    fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self)
    }

    fn base(self) -> Option<Avx512> {
        Some(self.0)
    }

    fn widening(self) -> Avx512 {
        self.0
    }

    run_with_features!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c");
}

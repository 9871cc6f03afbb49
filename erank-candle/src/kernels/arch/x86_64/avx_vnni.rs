//! AVX2 with products of bytes (`vpdpbusd`), for weights of 4 to 8 bits. Processors without AVX-512 have it since
//! 2021.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use super::super::super::tile::Mr;
use super::super::isa::Isa;
use super::avx2::Avx2;

/// [`Avx2`] with products of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AvxVnni(Avx2);

impl Isa for AvxVnni {
    const NAME: &'static str = "avxvnni";
    const MAX_MR: Mr = Mr::Four;
    type Base = Avx2;
    type Widening = Avx2;

    fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(Self)
    }

    fn base(self) -> Option<Avx2> {
        Some(self.0)
    }

    fn widening(self) -> Avx2 {
        self.0
    }

    run_with_features!("avxvnni,avx2,fma,f16c");
}

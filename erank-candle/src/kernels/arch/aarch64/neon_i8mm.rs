//! NEON with products of matrices of bytes (`smmla`), for weights of 4 to 8 bits.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use std::arch::is_aarch64_feature_detected;

use super::super::super::tile::Mr;
use super::super::isa::Isa;
use super::neon::Neon;
use super::neon_dotprod::NeonDotprod;

/// [`NeonDotprod`] with products of matrices of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonI8mm(NeonDotprod);

impl Isa for NeonI8mm {
    const NAME: &'static str = "neoni8mm";
    const MAX_MR: Mr = Mr::Eight;
    type Base = NeonDotprod;
    type Widening = Neon;

    fn detect() -> Option<Self> {
        NeonDotprod::detect().filter(|_| is_aarch64_feature_detected!("i8mm")).map(Self)
    }

    fn base(self) -> Option<NeonDotprod> {
        Some(self.0)
    }

    fn widening(self) -> Neon {
        self.0.widening()
    }

    run_with_features!("neon,dotprod,i8mm");
}

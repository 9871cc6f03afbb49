//! NEON with products of bytes (`sdot`), for weights of 4 to 8 bits.
#![expect(unsafe_code, reason = "calls of functions that need an instruction set")]

use std::arch::is_aarch64_feature_detected;

use super::super::super::tile::Mr;
use super::super::isa::Isa;
use super::neon::Neon;

/// [`Neon`] with products of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonDotprod(Neon);

impl Isa for NeonDotprod {
    const NAME: &'static str = "neondotprod";
    const MAX_MR: Mr = Mr::Four;
    type Base = Neon;
    type Widening = Neon;

    fn detect() -> Option<Self> {
        Neon::detect().filter(|_| is_aarch64_feature_detected!("dotprod")).map(Self)
    }

    fn base(self) -> Option<Neon> {
        Some(self.0)
    }

    fn widening(self) -> Neon {
        self.0
    }

    run_with_features!("neon,dotprod");
}

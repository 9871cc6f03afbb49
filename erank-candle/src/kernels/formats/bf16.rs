//! BF16 weights. A block is two inputs of 16 outputs, `[16][2]`, and has 64 bytes. Sixteen such blocks, 32
//! inputs, form a block for AMX. ARM's products of BF16 take four inputs, `[16][4]`.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use half::bf16;

#[cfg(target_arch = "aarch64")]
use super::super::arch::aarch64::neon_bf16::NeonBf16;
#[cfg(target_arch = "x86_64")]
use super::super::arch::x86_64::{amx::Amx, avx512_bf16::Avx512Bf16};
use super::super::arch::{InstructionSet, Isa, with_isa};
use super::super::micro_kernel::KernelVisitor;
use super::widened::Widened;
#[cfg(target_arch = "aarch64")]
use aarch64::Quads;
#[cfg(target_arch = "x86_64")]
use x86_64::{Pairs, Tiles};

/// Calls the visitor with the best micro-kernel of an instruction set. It uses tiles, else pairs or quads, else
/// widened numbers.
pub(super) fn with_kernel<V: KernelVisitor>(set: InstructionSet, visitor: V) -> V::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = set.token::<Amx>() {
        return visitor.visit(Tiles(isa));
    } else if let Some(isa) = set.token::<Avx512Bf16>() {
        return visitor.visit(Pairs(isa));
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(isa) = set.token::<NeonBf16>() {
        return visitor.visit(Quads(isa));
    }
    with_isa!(set, isa => visitor.visit(Widened::<_, bf16>::new(isa.widening())))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let mut outputs =
        vec![with_isa!(set, isa => visitor.visit(Widened::<_, bf16>::new(isa.widening())))];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(set.token::<Avx512Bf16>().map(|isa| visitor.visit(Pairs(isa))));
        outputs.extend(set.token::<Amx>().map(|isa| visitor.visit(Tiles(isa))));
    }
    #[cfg(target_arch = "aarch64")]
    outputs.extend(set.token::<NeonBf16>().map(|isa| visitor.visit(Quads(isa))));
    outputs
}

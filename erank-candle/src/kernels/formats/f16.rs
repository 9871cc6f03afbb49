//! F16 weights. A block is two inputs of 16 outputs, `[16][2]`, and has 64 bytes. Products have the bits of products
//! with the same numbers in F32.

use half::f16;

use super::super::arch::{InstructionSet, Isa, with_isa};
use super::super::micro_kernel::KernelVisitor;
use super::widened::Widened;

/// Calls the visitor with the micro-kernel of an instruction set.
pub(super) fn with_kernel<V: KernelVisitor>(set: InstructionSet, visitor: V) -> V::Output {
    with_isa!(set, isa => visitor.visit(Widened::<_, f16>::new(isa.widening())))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    vec![with_kernel(set, visitor)]
}

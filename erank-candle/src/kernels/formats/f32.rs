//! F32 weights. A block is one input of 16 outputs, `[16]`, and has 64 bytes.

use super::super::arch::{InstructionSet, Isa, with_isa};
use super::super::micro_kernel::KernelVisitor;
use super::widened::Widened;

/// Calls the visitor with the micro-kernel of an instruction set.
pub(super) fn with_kernel<V: KernelVisitor>(set: InstructionSet, visitor: V) -> V::Output {
    with_isa!(set, isa => visitor.visit(Widened::<_, f32>::new(isa.widening())))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    vec![with_kernel(set, visitor)]
}

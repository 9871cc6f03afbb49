//! The trait that every instruction set implements.

use std::any::Any;
use std::fmt::Debug;

use super::super::element::Element;
use super::super::tile::{Mr, NR, Prefetch};

/// The token of an instruction set. A value exists only if the machine has the set, so code that holds one
/// needs no further check.
pub(crate) trait Isa: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// The name for settings, logs and reports.
    const NAME: &'static str;
    /// The highest tile whose accumulators stay in this set's vector registers.
    const MAX_MR: Mr;
    /// Whether the set has fused multiply-add: a product and a sum in one instruction, rounded once. Without the
    /// instruction, `f32::mul_add` calls a slow function.
    const FUSED: bool = true;
    /// Largest error of a rounding, in units of 2⁻²⁴ of the number: 1 to the nearest number, 2 in other modes.
    #[cfg(test)]
    const UNITS_OF_ROUNDING: usize = 1;
    /// The set that this one extends, or the set itself if it extends none.
    type Base: Isa;
    /// The set whose loop of widened products this set uses.
    type Widening: WideningIsa;

    /// Returns the token if this machine has the set.
    fn detect() -> Option<Self>;

    /// Returns the token of the set that this one extends, if there is one.
    fn base(self) -> Option<Self::Base>;

    /// Returns the token of the set whose loop of widened products this set uses.
    fn widening(self) -> Self::Widening;

    /// Calls `work`, compiled with this set's instructions as far as the compiler inlines it. Loops in it are
    /// vectorised for these instructions. The results do not depend on the set, because the compiler keeps
    /// the order of floating-point operations.
    fn run<R>(self, work: impl FnOnce() -> R) -> R;

    /// Returns the token of `T` if this set is `T` or extends it.
    fn token<T: Isa>(self) -> Option<T> {
        let this: &dyn Any = &self;
        this.downcast_ref().copied().or_else(|| self.base()?.token())
    }
}

/// A set with a loop of its own for products in F32, which every format can use.
pub(crate) trait WideningIsa: Isa {
    /// The number of panels that are multiplied at once with the highest tile.
    const PANELS: usize;

    /// Adds the product of the lhs, `[blocks][mr][DEPTH]` in F32, and each panel, `[blocks][16][DEPTH]`
    /// widened to F32, to `sums`, `[panels][mr][16]`:
    /// `sums[panel][row][column] += Σ_k lhs[k][row] · panel[k][column]`.
    ///
    /// If the operands differ in length, the shortest one decides.
    fn multiply_widened<E: Element>(
        self,
        lhs: &[E::Lhs],
        panels: &[&[E::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    );
}

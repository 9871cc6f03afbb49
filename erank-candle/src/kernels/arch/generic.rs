//! The portable instruction set, and the micro-kernel loop that other sets compile again.
//!
//! ```text
//! for each panel, each block, each number of a block's words:
//!     for each column, each row:
//!         sums[row][column] += lhs[block][row][number] · panel[block][column][number]
//! ```
//!
//! The loop departs from that in these points:
//!
//! 1. The accumulators are a local copy of the sums, so that the compiler keeps them in registers.
//! 2. If one panel has too few accumulators, so that each addition would wait for the last, several panels are
//!    multiplied at once.
//! 3. Multiplication and addition are rounded once (`FUSED`) where the set has an instruction for it.
//! 4. Each step may prefetch a part of the data that follows.

use super::super::element::Element;
use super::super::tile::{Mr, NR, Prefetch};
use super::isa::{Isa, WideningIsa};

/// The instructions that the compiler targets without further features. Every machine has this set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portable;

impl Isa for Portable {
    const NAME: &'static str = "portable";
    const MAX_MR: Mr = Mr::Two;
    const FUSED: bool = false;
    type Base = Self;
    type Widening = Self;

    fn detect() -> Option<Self> {
        Some(Self)
    }

    fn base(self) -> Option<Self> {
        None
    }

    fn widening(self) -> Self {
        self
    }

    #[inline]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }
}

impl WideningIsa for Portable {
    const PANELS: usize = 1;

    #[inline]
    fn multiply_widened<E: Element>(
        self,
        lhs: &[E::Lhs],
        panels: &[&[E::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        _: Prefetch,
    ) {
        multiply::<E, false, 1, 1, 1, 1>(lhs, panels, mr, sums, |_, _| ());
    }
}

/// Computes [`WideningIsa::multiply_widened`]. `FUSED` multiplies and adds with one rounding. Without an instruction
/// for that, it would be a slow call. `OF_ONE`, `OF_TWO`, `OF_FOUR` and `OF_EIGHT` are the numbers of panels that are
/// multiplied at once, for tiles of one, two, four and eight rows. `prefetch` is called with each panel and the number
/// of each step.
#[inline(always)]
pub(super) fn multiply<
    E: Element,
    const FUSED: bool,
    const OF_ONE: usize,
    const OF_TWO: usize,
    const OF_FOUR: usize,
    const OF_EIGHT: usize,
>(
    lhs: &[E::Lhs],
    panels: &[&[E::Block]],
    mr: Mr,
    sums: &mut [[f32; NR]],
    prefetch: impl Fn(&[E::Block], usize),
) {
    match mr {
        Mr::One => multiply_panels::<E, FUSED, 1, OF_ONE>(lhs, panels, sums, prefetch),
        Mr::Two => multiply_panels::<E, FUSED, 2, OF_TWO>(lhs, panels, sums, prefetch),
        Mr::Four => multiply_panels::<E, FUSED, 4, OF_FOUR>(lhs, panels, sums, prefetch),
        Mr::Eight => multiply_panels::<E, FUSED, 8, OF_EIGHT>(lhs, panels, sums, prefetch),
    }
}

/// Multiplies all panels, `PANELS` at once and the rest one by one.
#[inline(always)]
fn multiply_panels<E: Element, const FUSED: bool, const MR: usize, const PANELS: usize>(
    lhs: &[E::Lhs],
    panels: &[&[E::Block]],
    sums: &mut [[f32; NR]],
    prefetch: impl Fn(&[E::Block], usize),
) {
    let lhs = lhs.as_chunks::<MR>().0;
    let sums = sums.as_chunks_mut::<MR>().0;
    let (groups, rest) = panels.as_chunks::<PANELS>();
    let (group_sums, rest_sums) = sums.split_at_mut((groups.len() * PANELS).min(sums.len()));
    for (panels, sums) in groups.iter().zip(group_sums.as_chunks_mut::<PANELS>().0) {
        multiply_tile::<E, FUSED, MR, PANELS>(lhs, panels, sums, &prefetch);
    }
    for (panel, sums) in rest.iter().zip(rest_sums.as_chunks_mut::<1>().0) {
        multiply_tile::<E, FUSED, MR, 1>(lhs, &[panel], sums, &prefetch);
    }
}

#[inline(always)]
fn multiply_tile<E: Element, const FUSED: bool, const MR: usize, const PANELS: usize>(
    lhs: &[[E::Lhs; MR]],
    panels: &[&[E::Block]; PANELS],
    sums: &mut [[[f32; NR]; MR]; PANELS],
    prefetch: impl Fn(&[E::Block], usize),
) {
    let steps = panels.iter().fold(lhs.len(), |steps, panel| steps.min(panel.len()));
    let (lhs, blocks) = (&lhs[..steps], panels.map(|panel| &panel[..steps]));
    // The accumulators are a copy, so that they are in registers.
    let mut accumulators = *sums;
    for (step, lhs) in lhs.iter().enumerate() {
        // With one variable for the panel and its blocks, rustc 1.95 spills a register in this loop.
        for ((accumulators, blocks), panel) in accumulators.iter_mut().zip(blocks).zip(panels) {
            prefetch(panel, step);
            for index in 0..E::DEPTH {
                let weights = E::column(&blocks[step], index);
                // The outer loop is over columns, and the inner loop over rows. With the loops exchanged,
                // rustc 1.95 vectorises eight rows across the rows, with a gather and a scatter for each
                // column, at a thirtieth of the speed.
                for (column, weight) in weights.iter().enumerate() {
                    for (row, lhs) in accumulators.iter_mut().zip(lhs) {
                        let (sum, lhs) = (&mut row[column], lhs.as_ref()[index]);
                        *sum = if FUSED { lhs.mul_add(*weight, *sum) } else { *sum + lhs * weight };
                    }
                }
            }
        }
    }
    *sums = accumulators;
}

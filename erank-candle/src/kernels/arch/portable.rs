//! The loop itself, written so that the compiler vectorises it.

use super::super::{Element, LANES};

/// See [`InstructionSet::tile`](super::InstructionSet::tile). `FUSED` multiplies and adds in one
/// rounding; without the instruction for it, that would be a slow call.
#[inline(always)]
pub(super) fn tile<E: Element, const FUSED: bool>(
    x: &[f32],
    panel: &[E],
    sums: &mut [[f32; LANES]],
) {
    match sums.len() {
        1 => tile_of::<E, FUSED, 1>(x, panel, sums),
        2 => tile_of::<E, FUSED, 2>(x, panel, sums),
        4 => tile_of::<E, FUSED, 4>(x, panel, sums),
        8 => tile_of::<E, FUSED, 8>(x, panel, sums),
        _ => {}
    }
}

#[inline(always)]
fn tile_of<E: Element, const FUSED: bool, const ROWS: usize>(
    x: &[f32],
    panel: &[E],
    sums: &mut [[f32; LANES]],
) {
    let Some(sums) = sums.as_chunks_mut::<ROWS>().0.first_mut() else { return };
    // A copy, so that the sums live in registers.
    let mut local = *sums;
    for (x, weights) in x.as_chunks::<ROWS>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        let weights = weights.map(E::widen);
        // Lanes outside, rows inside: the other way round, rustc 1.95 vectorises eight rows across
        // the rows, with a gather and a scatter for each lane, at a thirtieth of the speed.
        for (lane, weight) in weights.iter().enumerate() {
            for (row, x) in local.iter_mut().zip(x) {
                let sum = &mut row[lane];
                *sum = if FUSED { x.mul_add(*weight, *sum) } else { *sum + x * weight };
            }
        }
    }
    *sums = local;
}

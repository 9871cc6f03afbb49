//! The loop itself, written so that the compiler vectorises it.

use super::super::{Element, LANES};

/// See [`InstructionSet::tiles_of_singles`](super::InstructionSet::tiles_of_singles). `FUSED` multiplies
/// and adds in one rounding; without the instruction for it, that would be a slow call. With one row, so
/// few sums that each addition would wait for the last, `PANELS` are multiplied at once. `fetch` is called
/// with a panel and the number of each step, to have something fetched from memory meanwhile.
#[inline(always)]
pub(super) fn tiles<E: Element, const FUSED: bool, const PANELS: usize>(
    x: &[E::Left],
    panels: &[&[E]],
    height: usize,
    sums: &mut [[f32; LANES]],
    fetch: impl Fn(&[E], usize),
) {
    match height {
        1 => tiles_of::<E, FUSED, 1, PANELS>(x, panels, sums, fetch),
        2 => tiles_of::<E, FUSED, 2, 1>(x, panels, sums, fetch),
        4 => tiles_of::<E, FUSED, 4, 1>(x, panels, sums, fetch),
        8 => tiles_of::<E, FUSED, 8, 1>(x, panels, sums, fetch),
        _ => {}
    }
}

#[inline(always)]
fn tiles_of<E: Element, const FUSED: bool, const ROWS: usize, const PANELS: usize>(
    x: &[E::Left],
    panels: &[&[E]],
    sums: &mut [[f32; LANES]],
    fetch: impl Fn(&[E], usize),
) {
    let x = x.as_chunks::<ROWS>().0;
    let sums = sums.as_chunks_mut::<ROWS>().0;
    let (blocks, rest) = panels.as_chunks::<PANELS>();
    let (block_sums, rest_sums) = sums.split_at_mut((blocks.len() * PANELS).min(sums.len()));
    for (panels, sums) in blocks.iter().zip(block_sums.as_chunks_mut::<PANELS>().0) {
        tile::<E, FUSED, ROWS, PANELS>(x, panels, sums, &fetch);
    }
    for (panel, sums) in rest.iter().zip(rest_sums.as_chunks_mut::<1>().0) {
        tile::<E, FUSED, ROWS, 1>(x, &[panel], sums, &fetch);
    }
}

#[inline(always)]
fn tile<E: Element, const FUSED: bool, const ROWS: usize, const PANELS: usize>(
    x: &[[E::Left; ROWS]],
    panels: &[&[E]; PANELS],
    sums: &mut [[[f32; LANES]; ROWS]; PANELS],
    fetch: impl Fn(&[E], usize),
) {
    let groups: [&[E::Group]; PANELS] = panels.map(bytemuck::cast_slice);
    let steps = groups.iter().fold(x.len(), |steps, groups| steps.min(groups.len()));
    let (x, groups) = (&x[..steps], groups.map(|groups| &groups[..steps]));
    // A copy, so that the sums live in registers.
    let mut local = *sums;
    for (step, x) in x.iter().enumerate() {
        for ((local, groups), panel) in local.iter_mut().zip(groups).zip(panels) {
            fetch(panel, step);
            for place in 0..E::DEPTH {
                let weights = E::lanes(&groups[step], place);
                // Lanes outside, rows inside: the other way round, rustc 1.95 vectorises eight rows
                // across the rows, with a gather and a scatter for each lane, at a thirtieth of the speed.
                for (lane, weight) in weights.iter().enumerate() {
                    for (row, x) in local.iter_mut().zip(x) {
                        let (sum, x) = (&mut row[lane], x.as_ref()[place]);
                        *sum = if FUSED { x.mul_add(*weight, *sum) } else { *sum + x * weight };
                    }
                }
            }
        }
    }
    *sums = local;
}

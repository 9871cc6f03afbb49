//! Packing: rows of activations into the lhs of a product, and rows of weights into panels.
//!
//! In every layout here, a word of 32 bits holds `DEPTH` neighbouring numbers of a row, and a panel is
//! `[words][16 rows]`: 64 bytes for each word of a row.
//!
//! ```text
//! for each word of a row, each of 16 rows:
//!     panel[word][row] = row[word], converted
//! ```
//!
//! For weights, the code differs from that in one point:
//!
//! 1. Sixteen words of each row are converted at a time. So whole cache lines of a row are read, whole cache
//!    lines are written, and the conversion is one loop without a branch on the type.

use half::bf16;

use super::arch::features;
use super::element::Element;
use super::stored::StoredRow;
use super::tile::NR;

/// Number of words that are converted at a time. They fill a cache line.
const WORDS: usize = 16;

/// Packs rows of `k` numbers as `[k / DEPTH][mr][DEPTH]`, rounded to `E` and widened again. If there are
/// fewer than `mr` rows, the places of the missing rows in `lhs` are not written.
#[inline(always)]
pub(super) fn pack_widened<E: Element>(rows: &[f32], k: usize, mr: usize, lhs: &mut [E::Lhs]) {
    for (r, row) in rows.chunks_exact(k).enumerate() {
        for (slots, values) in lhs.chunks_exact_mut(mr).zip(row.chunks(E::DEPTH)) {
            for (slot, value) in slots[r].as_mut().iter_mut().zip(values) {
                *slot = E::round_activation(*value);
            }
        }
    }
}

/// Packs rows of `k` numbers as `[k / N][mr][N]`, rounded to BF16. Numbers past `k` are 0. If there are fewer than `mr`
/// rows, the places of the missing rows in `lhs` are not written.
#[inline(always)]
pub(super) fn pack_groups<const N: usize>(
    rows: &[f32],
    k: usize,
    mr: usize,
    lhs: &mut [[bf16; N]],
) {
    // Numbers that are rounded together, in one loop that the compiler vectorises.
    const PART: usize = 64;
    for (r, row) in rows.chunks_exact(k).enumerate() {
        for (slots, numbers) in lhs.chunks_mut(mr * PART / N).zip(row.chunks(PART)) {
            prefetch_later(numbers);
            let mut rounded = [bf16::ZERO; PART];
            for (rounded, number) in rounded.iter_mut().zip(numbers) {
                *rounded = Element::round(*number);
            }
            let groups = &rounded.as_chunks::<N>().0[..numbers.len().div_ceil(N)];
            for (slots, group) in slots.chunks_exact_mut(mr).zip(groups) {
                slots[r] = *group;
            }
        }
    }
}

/// Prefetches numbers of the rows of activations that follow `numbers`. Rows are packed once after they are written,
/// often by another thread, so most come from memory.
#[inline(always)]
fn prefetch_later(numbers: &[f32]) {
    const BYTES_AHEAD: usize = 4096;
    for line in numbers.chunks(NR) {
        features::prefetch(line.as_ptr().wrapping_byte_add(BYTES_AHEAD).cast());
    }
}

/// Packs up to 16 rows of the same length into a panel, `[words][16][DEPTH]`. Numbers past a row's end are 0.
/// If there are fewer than 16 rows, the places of the missing rows in `panel` are not written.
#[inline(always)]
pub(super) fn pack_panel<E: Element>(rows: &[StoredRow<'_>], panel: &mut [E::Block]) {
    let panel: &mut [[u32; NR]] = bytemuck::cast_slice_mut(panel);
    for (index, blocks) in panel.chunks_mut(WORDS).enumerate() {
        let start = index * WORDS * E::DEPTH;
        let mut words = [[0u32; WORDS]; NR];
        for (words, row) in words.iter_mut().zip(rows) {
            let length = row.len().saturating_sub(start).min(WORDS * E::DEPTH);
            read::<E>(row.part(start.min(row.len()), length), words);
        }
        for (word, block) in blocks.iter_mut().enumerate() {
            for (column, words) in block.iter_mut().zip(&words[..rows.len()]) {
                *column = words[word];
            }
        }
    }
}

/// Converts numbers of a row to `E`, `DEPTH` per word. If the row is too short to fill all words, the rest of
/// the words stays unchanged.
#[inline(always)]
fn read<E: Element>(numbers: StoredRow<'_>, words: &mut [u32; WORDS]) {
    let bits: &mut [u16; 2 * WORDS] = bytemuck::cast_mut(words);
    if let Some(numbers) = E::bits_of(numbers) {
        // The types are the same, so this is a copy.
        for (bits, bytes) in bits.iter_mut().zip(numbers) {
            *bits = u16::from_le_bytes(*bytes);
        }
        return;
    }
    let mut widened = [0.0; 2 * WORDS];
    let widened = &mut widened[..numbers.len()];
    numbers.to_f32(widened);
    let elements: &mut [E] = bytemuck::cast_slice_mut(words.as_mut_slice());
    for (element, number) in elements.iter_mut().zip(widened) {
        *element = E::round(*number);
    }
}

/// Writes the first `out.len()` numbers of one column of a panel, widened.
pub(super) fn unpack_row<E: Element>(panel: &[E::Block], column: usize, out: &mut [f32]) {
    for (block, out) in panel.iter().zip(out.chunks_mut(E::DEPTH)) {
        for (index, out) in out.iter_mut().enumerate() {
            *out = E::column(block, index)[column];
        }
    }
}

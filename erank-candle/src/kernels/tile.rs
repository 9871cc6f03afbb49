//! The shape of a tile, the block of accumulators that a micro-kernel keeps in registers: MR rows of the
//! lhs by NR columns of the rhs.

use std::fmt::Debug;

use bytemuck::{Pod, Zeroable};

/// Columns of a tile and of a panel: the outputs that are multiplied side by side.
pub(crate) const NR: usize = 16;

/// Rows of the highest tile in vector registers, of any set.
pub(crate) const MAX_ROWS: usize = 8;

/// The sums of one row of a tile. They fill a line of the cache, so that no load and no store touches two.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct SumRow(pub(crate) [f32; NR]);

/// The heights of tile that a micro-kernel has.
pub(crate) trait TileRows: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Every height, the lowest first.
    const ALL: &'static [Self];

    /// Returns the number of rows of a tile of this height.
    fn rows(self) -> usize;

    /// Returns the lowest height for `count` rows, or the highest if `count` exceeds it.
    #[inline]
    fn holding(count: usize) -> Self {
        let fits = Self::ALL.iter().find(|height| height.rows() >= count);
        *fits.unwrap_or(&Self::ALL[Self::ALL.len() - 1])
    }
}

/// The heights of a tile in vector registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mr {
    One,
    Two,
    Four,
    Eight,
}

impl TileRows for Mr {
    const ALL: &'static [Self] = &[Self::One, Self::Two, Self::Four, Self::Eight];

    #[inline(always)]
    fn rows(self) -> usize {
        1 << self as usize
    }
}

/// Where a micro-kernel prefetches, relative to each panel. For every 64 bytes of the panel that it
/// multiplies, the prefetch address advances by `stride` bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefetch {
    /// Bytes from the start of the panel to the first address.
    pub(crate) distance: usize,
    /// Bytes from one address to the next.
    pub(crate) stride: usize,
}

impl Prefetch {
    /// Prefetches nothing by instructions. The processor may still prefetch by itself.
    pub(crate) const NONE: Self = Self { distance: 0, stride: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holding_returns_the_lowest_height_that_fits() {
        for (count, rows) in [(0, 1), (1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (100, 8)] {
            assert_eq!(Mr::holding(count).rows(), rows, "{count} rows");
        }
    }
}

//! A row-major matrix as blocks of columns that several threads write at the same time.
#![expect(unsafe_code, reason = "blocks of columns interleave in memory, so no slice can hold one")]

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::arch::features;
use super::tile::{NR, SumRow};

/// Neighbouring columns of a row-major matrix: the output of a projection.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    /// `[rows][stride]`.
    pub(super) matrix: &'a mut [f32],
    /// Numbers from one row to the next.
    pub(super) stride: usize,
    /// The columns.
    pub(super) range: Range<usize>,
}

impl<'a> Columns<'a> {
    /// Returns all columns of a matrix.
    pub(super) fn all(matrix: &'a mut [f32], stride: usize) -> Self {
        Self { matrix, stride, range: 0..stride }
    }
}

/// A block of neighbouring columns. It has exclusive access to their elements.
pub(super) struct ColumnBlock<'a> {
    /// The first element of the first row.
    start: *mut f32,
    rows: usize,
    /// Elements from one row to the next.
    stride: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block may move to another thread if its elements may be written there. It has exclusive access to
// them, like a `&mut [f32]`.
unsafe impl Send for ColumnBlock<'_> {}

impl ColumnBlock<'_> {
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Prefetches columns of some rows.
    pub(super) fn prefetch(&self, rows: Range<usize>, columns: Range<usize>) {
        for row in rows {
            for column in columns.clone().step_by(NR) {
                features::prefetch(self.start.wrapping_add(row * self.stride + column).cast());
            }
        }
    }

    /// Returns the block's part of a row.
    ///
    /// # Panics
    /// Panics if there are fewer rows.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the elements must lie in the matrix, and no other reference to them may exist while the
        // slice lives. `par_column_blocks` made the block of columns inside a whole number of rows, the row
        // is one of them, and its blocks do not overlap; the slice borrows this block as a whole.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) }
    }
}

/// Memory for the sums of a block of columns.
pub(super) type Sums = Vec<SumRow>;

/// Calls `work(sums, index, block)` for every `width` columns, on rayon's current threads. The last block may be
/// narrower. Several blocks use the same memory for sums, one after another.
///
/// # Panics
/// Panics if the columns exceed the stride.
pub(super) fn par_column_blocks(
    y: Columns<'_>,
    width: usize,
    work: &(dyn Fn(&mut Sums, usize, ColumnBlock<'_>) + Sync),
) {
    let Columns { matrix, stride, range } = y;
    assert!(range.end <= stride, "columns {range:?} of {stride}");
    let rows = matrix.len().checked_div(stride).unwrap_or(0);
    let end = range.end;
    // All blocks derive from one pointer. Another borrow of the matrix would end the access of earlier blocks.
    let start = matrix.as_mut_ptr();
    let blocks: Vec<ColumnBlock<'_>> = range
        .step_by(width.max(1))
        .filter(|_| rows > 0)
        .map(|first| ColumnBlock {
            start: start.wrapping_add(first),
            rows,
            stride,
            columns: width.min(end - first),
            matrix: PhantomData,
        })
        .collect();
    // Several pieces for each thread, so that no thread waits long for another at the end.
    let pieces = 16 * rayon::current_num_threads();
    let most = (blocks.len() / pieces).max(1);
    blocks
        .into_par_iter()
        .enumerate()
        .with_max_len(most)
        .for_each_init(Sums::new, |sums, (index, block)| work(sums, index, block));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn par_column_blocks_visits_every_element_of_its_columns_once() {
        for (rows, stride, range, width) in [
            (1, 1, 0..1, 1),
            (3, 7, 0..7, 2),
            (5, 16, 0..16, 16),
            (2, 33, 0..33, 32),
            (3, 40, 16..33, 16),
            (0, 4, 0..4, 2),
        ] {
            let mut matrix = vec![0.0; rows * stride];
            let columns = Columns { matrix: &mut matrix, stride, range: range.clone() };
            par_column_blocks(columns, width, &|_, index, mut block| {
                for row in 0..rows {
                    for (column, element) in block.row(row).iter_mut().enumerate() {
                        let column = range.start + index * width + column;
                        *element += (1 + 1000 * row + column) as f32;
                    }
                }
            });
            for (index, element) in matrix.iter().enumerate() {
                let (row, column) = (index / stride, index % stride);
                let expected = if range.contains(&column) { 1 + 1000 * row + column } else { 0 };
                assert_eq!(*element, expected as f32);
            }
        }
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn row_refuses_a_row_past_the_last() {
        let mut matrix = [0.0; 8];
        let columns = Columns::all(&mut matrix, 4);
        par_column_blocks(columns, 4, &|_, _, mut block| block.row(2)[0] = 1.0);
    }
}

//! A row-major matrix as blocks of columns that threads write at the same time.
#![expect(unsafe_code, reason = "blocks of columns interleave in memory, so no slice can hold one")]

use std::marker::PhantomData;

use rayon::prelude::*;

/// Some neighbouring columns of a row-major matrix, alone in having them.
pub(super) struct ColumnBlock<'a> {
    /// The first element of the first row.
    start: *mut f32,
    rows: usize,
    /// From one row to the next.
    stride: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block may go to another thread if what it points to may be written there. It is as good
// as a `&mut [f32]`: nobody else has its elements.
unsafe impl Send for ColumnBlock<'_> {}

impl ColumnBlock<'_> {
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The block's part of a row.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the elements must lie in the matrix, and nobody else may use them while the slice
        // lives. `par_columns` made the block of columns inside a whole number of rows, the row is
        // one of them, and its blocks do not overlap; the slice borrows this block as a whole.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) }
    }
}

/// Calls `work(scratch, index, block)` for every `width` columns of a matrix with rows of `stride`
/// elements, on rayon's current threads. The last block may be narrower. `scratch` makes what is used
/// for several blocks, one after another.
pub(super) fn par_columns<T>(
    matrix: &mut [f32],
    stride: usize,
    width: usize,
    scratch: impl Fn() -> T + Sync + Send,
    work: impl Fn(&mut T, usize, ColumnBlock<'_>) + Sync,
) {
    let rows = matrix.len().checked_div(stride).unwrap_or(0);
    let blocks: Vec<ColumnBlock<'_>> = (0..stride)
        .step_by(width.max(1))
        .filter(|_| rows > 0)
        .map(|first| ColumnBlock {
            start: matrix[first..].as_mut_ptr(),
            rows,
            stride,
            columns: width.min(stride - first),
            matrix: PhantomData,
        })
        .collect();
    // Several pieces for each thread, so that none waits long for another at the end.
    let pieces = 16 * rayon::current_num_threads();
    let most = (blocks.len() / pieces).max(1);
    blocks
        .into_par_iter()
        .enumerate()
        .with_max_len(most)
        .for_each_init(scratch, |scratch, (index, block)| work(scratch, index, block));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_one_block() {
        for (rows, stride, width) in [(1, 1, 1), (3, 7, 2), (5, 16, 16), (2, 33, 32), (0, 4, 2)] {
            let mut matrix = vec![0.0; rows * stride];
            par_columns(
                &mut matrix,
                stride,
                width,
                || (),
                |(), index, mut block| {
                    for row in 0..rows {
                        for (column, element) in block.row(row).iter_mut().enumerate() {
                            *element += (1000 * row + index * width + column) as f32;
                        }
                    }
                },
            );
            for (place, element) in matrix.iter().enumerate() {
                assert_eq!(*element, (1000 * (place / stride) + place % stride) as f32);
            }
        }
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_that_is_not_there_is_refused() {
        par_columns(&mut [0.0; 8], 4, 4, || (), |(), _, mut block| block.row(2)[0] = 1.0);
    }
}

//! Grouped-query attention over a paged KV cache, through candle's own operations.
//!
//! Attention is computed in F32 over the keys and values as the cache holds them.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::model::operations::AttentionShape;
use crate::model::step::{BLOCK_TOKENS, Step, StepRow};

/// Maximum number of pairs of a token and a cache position that one group attends to. The copies of one
/// position's keys and values take about 16 KiB in a model of ERank-4B's shape.
const MAX_PAIRS: usize = 1 << 15;

/// Neighbouring rows with the same number of tokens, which attend together.
pub(super) struct RowGroup {
    /// Index of the first row's first token in the step.
    start: usize,
    rows: usize,
    /// Tokens of each row.
    tokens: usize,
    /// Blocks of each row, padded to the longest row's.
    blocks: usize,
    /// The rows' block ids, row after row. A shorter row repeats its last block.
    ids: Tensor,
    /// The positions that a row holds, `[rows, 1, positions, 1]`. The values at other positions are replaced by 0,
    /// because an earlier sequence may have left infinity there, and 0 times infinity is NaN.
    held: Mask,
    /// The positions that a token sees, `[rows, 1, 1, tokens, positions]`. The scores of other positions are
    /// replaced by negative infinity.
    seen: Mask,
}

impl RowGroup {
    /// Groups all rows of a step.
    pub(super) fn all(step: &Step, device: &Device) -> Result<Vec<Self>> {
        let rows: Vec<StepRow<'_>> = step.rows().collect();
        let mut start = 0;
        let mut groups = Vec::new();
        for rows in split(&rows) {
            groups.push(Self::new(rows, start, device)?);
            start += rows.len() * rows[0].tokens;
        }
        Ok(groups)
    }

    fn new(rows: &[StepRow<'_>], start: usize, device: &Device) -> Result<Self> {
        let tokens = rows[0].tokens;
        let blocks = rows.iter().map(StepRow::used_blocks).max().unwrap_or(0);
        let positions = blocks * BLOCK_TOKENS;
        let mut ids = Vec::with_capacity(rows.len() * blocks);
        let mut held = Vec::with_capacity(rows.len() * positions);
        let mut seen = Vec::with_capacity(rows.len() * tokens * positions);
        for row in rows {
            let last = row.used_blocks() - 1;
            ids.extend((0..blocks).map(|index| row.blocks[index.min(last)]));
            let up_to = |end: usize| (0..positions).map(move |position| u8::from(position < end));
            held.extend(up_to(row.end()));
            (1..=tokens).for_each(|token| seen.extend(up_to(row.position + token)));
        }
        Ok(Self {
            start,
            rows: rows.len(),
            tokens,
            blocks,
            ids: Tensor::new(ids, device)?,
            held: Mask::new(held, &[rows.len(), 1, positions, 1], 0.0, device)?,
            seen: Mask::new(
                seen,
                &[rows.len(), 1, 1, tokens, positions],
                f32::NEG_INFINITY,
                device,
            )?,
        })
    }

    /// Attends with this group's part of the step's queries, `[tokens, query heads, head_dim]`, to one layer of
    /// the cache: `[tokens of the group, query heads × head_dim]`. The queries are divided by √head_dim already.
    pub(super) fn attend(
        &self,
        shape: AttentionShape,
        queries: &Tensor,
        cache: &Tensor,
    ) -> Result<Tensor> {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        let (rows, tokens, heads) = (self.rows, self.tokens, query_heads / kv_heads);
        let positions = self.blocks * BLOCK_TOKENS;
        let keys_and_values = cache
            .index_select(&self.ids, 0)?
            .reshape(&[rows, self.blocks, 2, BLOCK_TOKENS, kv_heads, head_dim][..])?
            .permute((2, 0, 4, 1, 3, 5))?
            .to_dtype(DType::F32)?
            .contiguous()?
            .reshape((2, rows, kv_heads, positions, head_dim))?;
        let (keys, values) = (keys_and_values.get(0)?, keys_and_values.get(1)?);
        let values = self.held.apply(&values)?;
        // The query heads of one KV head are the rows of one product.
        let queries = queries
            .narrow(0, self.start, rows * tokens)?
            .reshape((rows, tokens, kv_heads, heads, head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((rows, kv_heads, heads * tokens, head_dim))?;
        let scores =
            queries.matmul(&keys.t()?)?.reshape((rows, kv_heads, heads, tokens, positions))?;
        let weights = softmax_last_dim(&self.seen.apply(&scores)?)?;
        weights
            .reshape((rows, kv_heads, heads * tokens, positions))?
            .matmul(&values)?
            .reshape((rows, kv_heads, heads, tokens, head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .reshape((rows * tokens, shape.query_width()))
    }
}

/// The numbers to keep, and what replaces the others. It lies on the device, so that a layer copies nothing there.
struct Mask {
    keep: Tensor,
    otherwise: Tensor,
}

impl Mask {
    fn new(keep: Vec<u8>, shape: &[usize], otherwise: f32, device: &Device) -> Result<Self> {
        let keep = Tensor::from_vec(keep, shape, device)?;
        Ok(Self { keep, otherwise: Tensor::new(otherwise, device)? })
    }

    fn apply(&self, numbers: &Tensor) -> Result<Tensor> {
        let shape = numbers.shape();
        self.keep.broadcast_as(shape)?.where_cond(numbers, &self.otherwise.broadcast_as(shape)?)
    }
}

/// Splits rows into groups. Neighbours stay together while they have the same number of tokens, padding at most
/// doubles their blocks, and [`MAX_PAIRS`] is not exceeded. A single row may exceed it.
fn split<'a, 'b>(rows: &'a [StepRow<'b>]) -> Vec<&'a [StepRow<'b>]> {
    let mut groups = Vec::new();
    let mut start = 0;
    let (mut longest, mut needed) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        let blocks = row.used_blocks();
        (longest, needed) = (longest.max(blocks), needed + blocks);
        let padded = longest * (index + 1 - start);
        let fits = row.tokens == rows[start].tokens
            && padded <= 2 * needed
            && padded * BLOCK_TOKENS * row.tokens <= MAX_PAIRS;
        if !fits && index > start {
            groups.push(&rows[start..index]);
            (start, longest, needed) = (index, blocks, blocks);
        }
    }
    groups.extend((start < rows.len()).then(|| &rows[start..]));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_keeps_rows_together_while_padding_is_small() {
        let sizes = |rows: &[(usize, usize)]| -> Vec<usize> {
            let row =
                |&(position, tokens): &(usize, usize)| StepRow { tokens, position, blocks: &[] };
            let rows: Vec<StepRow<'_>> = rows.iter().map(row).collect();
            split(&rows).iter().map(|group| group.len()).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[(0, 1), (15, 1), (30, 1), (0, 2), (16, 2)]), [3, 2]);
        // A row of ten blocks is followed by rows of one block.
        assert_eq!(sizes(&[(150, 1), (0, 1), (0, 1)]), [2, 1]);
        assert_eq!(sizes(&[(150, 1), (150, 1), (0, 1), (0, 1), (0, 1)]), [4, 1]);
        // A row is never split.
        assert_eq!(sizes(&[(100_000, 1), (100_000, 1), (0, 9000)]), [1, 1, 1]);
        assert_eq!(sizes(&[(1 << 13, 1); 8]), [3, 3, 2]);
    }
}

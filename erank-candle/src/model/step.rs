//! The rows of one forward pass, checked against the model and the cache.

use candle_core::{Result, bail};

use super::rotary::RotaryEmbedding;

/// Tokens in one block of the KV cache.
pub const BLOCK_TOKENS: usize = crate::kernels::attention::BLOCK_TOKENS;

/// The index of a block in a [`KvCache`](super::kv_cache::KvCache): [`BLOCK_TOKENS`] tokens in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub(crate) u32);

/// One sequence's part of a step: some of its tokens, directly after those that the cache holds.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The tokens to compute, at least one.
    pub tokens: &'a [u32],
    /// The position of the first token in its sequence; the cache holds all earlier ones.
    pub position: usize,
    /// The sequence's blocks in order, enough for all its tokens up to the last one of this row.
    pub blocks: &'a [BlockId],
    /// Number of trailing tokens to return logits for: 0 while a prompt is only written to the cache, 1 to
    /// decode the next token, more to verify speculative tokens.
    pub logits: usize,
}

/// The checked rows of a step as one list of tokens, row after row.
#[derive(Debug)]
pub(crate) struct Step {
    tokens: Vec<u32>,
    /// Each token's position in its sequence.
    positions: Vec<usize>,
    /// Each token's row.
    rows: Vec<usize>,
    /// Each row's blocks, as indices into the cache.
    blocks: Vec<Vec<u32>>,
    /// Tokens of the longest row.
    longest_row: usize,
    /// Indices of the tokens whose logits are wanted.
    wanted: Vec<u32>,
    rotary: Rotary,
}

/// One row of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepRow<'a> {
    /// Number of tokens.
    pub(crate) tokens: usize,
    /// Position of the first token in its sequence.
    pub(crate) position: usize,
    /// The sequence's blocks, as indices into the cache.
    pub(crate) blocks: &'a [u32],
}

impl StepRow<'_> {
    /// Returns the number of positions that the cache holds after the step.
    pub(crate) fn end(&self) -> usize {
        self.position + self.tokens
    }

    /// Returns the number of blocks that hold these positions.
    pub(crate) fn used_blocks(&self) -> usize {
        self.end().div_ceil(BLOCK_TOKENS)
    }
}

/// The rotary embedding's cosines and sines, `[tokens, head_dim / 2]` each.
#[derive(Debug)]
struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half_dim: usize,
}

/// Upper limits of a step's numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepLimits {
    /// Positions of the model.
    pub(crate) positions: usize,
    /// Token ids of the model.
    pub(crate) vocab_size: usize,
    /// Blocks of the cache.
    pub(crate) blocks: usize,
}

impl Step {
    /// Checks `rows` and lays their tokens out.
    ///
    /// # Errors
    /// Returns an error that names the first row outside `limits`.
    pub(crate) fn new(
        rows: &[Row<'_>],
        rotary: &RotaryEmbedding,
        limits: StepLimits,
    ) -> Result<Self> {
        let mut step = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            rows: Vec::new(),
            blocks: Vec::new(),
            longest_row: 1,
            wanted: Vec::new(),
            rotary: Rotary { cos: Vec::new(), sin: Vec::new(), half_dim: rotary.half_dim() },
        };
        for (index, row) in rows.iter().enumerate() {
            check(index, row, limits)?;
            let end = row.position + row.tokens.len();
            step.longest_row = step.longest_row.max(row.tokens.len());
            step.tokens.extend(row.tokens);
            step.positions.extend(row.position..end);
            step.rows.extend(row.tokens.iter().map(|_| index));
            step.blocks.push(row.blocks.iter().map(|block| block.0).collect());
            let count = step.tokens.len();
            step.wanted.extend((count - row.logits..count).map(|token| token as u32));
            for position in row.position..end {
                rotary.rotate(position, &mut step.rotary.cos, &mut step.rotary.sin);
            }
        }
        Ok(step)
    }

    /// Returns the token ids, row after row.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the indices of the tokens whose logits are wanted.
    pub(crate) fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Returns the number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the rows in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = StepRow<'_>> {
        let tokens_of_rows = self.rows.chunk_by(|a, b| a == b);
        let mut start = 0;
        tokens_of_rows.zip(&self.blocks).map(move |(tokens, blocks)| {
            let row = StepRow { tokens: tokens.len(), position: self.positions[start], blocks };
            start += tokens.len();
            row
        })
    }

    /// Returns the number of tokens of the longest row.
    pub(crate) fn longest_row(&self) -> usize {
        self.longest_row
    }

    /// Returns the block and the slot within it that hold `token`'s key and value.
    pub(crate) fn cache_slot(&self, token: usize) -> (usize, usize) {
        let position = self.positions[token];
        (self.blocks(token)[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS)
    }

    /// Returns the blocks of `token`'s sequence.
    pub(crate) fn blocks(&self, token: usize) -> &[u32] {
        &self.blocks[self.rows[token]]
    }

    /// Returns `token`'s position in its sequence.
    pub(crate) fn position(&self, token: usize) -> usize {
        self.positions[token]
    }

    /// Returns the cosines and sines of `token`'s rotary embedding, `head_dim / 2` each.
    pub(crate) fn rotation(&self, token: usize) -> (&[f32], &[f32]) {
        let Rotary { cos, sin, half_dim } = &self.rotary;
        let range = token * half_dim..(token + 1) * half_dim;
        (&cos[range.clone()], &sin[range])
    }

    /// Returns the cosines and sines of all tokens, `[tokens, head_dim / 2]` each.
    pub(crate) fn rotations(&self) -> (&[f32], &[f32]) {
        (&self.rotary.cos, &self.rotary.sin)
    }
}

/// Checks one row.
fn check(index: usize, row: &Row<'_>, limits: StepLimits) -> Result<()> {
    let end = row.position.saturating_add(row.tokens.len());
    if row.tokens.is_empty() {
        bail!("row {index} has no tokens");
    }
    if end > limits.positions {
        bail!("row {index} reaches position {end} of a model with {}", limits.positions);
    }
    if row.blocks.len() * BLOCK_TOKENS < end {
        bail!("row {index} has {} blocks for {end} tokens", row.blocks.len());
    }
    if row.logits > row.tokens.len() {
        bail!("row {index} wants {} logits of {} tokens", row.logits, row.tokens.len());
    }
    if let Some(id) = row.tokens.iter().find(|id| **id as usize >= limits.vocab_size) {
        bail!("row {index} has token id {id}, but the vocabulary has {} ids", limits.vocab_size);
    }
    if let Some(block) = row.blocks.iter().find(|block| block.0 as usize >= limits.blocks) {
        bail!("row {index} names KV block {} of a cache of {} blocks", block.0, limits.blocks);
    }
    Ok(())
}

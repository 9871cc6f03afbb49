//! A step with the orders in which the CPU kernels visit its tokens.

use std::ops::Deref;

use crate::kernels::attention::Visible;
use crate::model::step::Step;

/// A step, with its tokens sorted for attention and for writing to the KV cache.
#[derive(Debug)]
pub(crate) struct OrderedStep<'a> {
    step: &'a Step,
    /// The tokens, those with common first blocks next to each other.
    attention_order: Vec<usize>,
    /// Each token's index in `attention_order`.
    attention_indices: Vec<usize>,
    /// The tokens, sorted by the block and slot that they are written to.
    write_order: Vec<usize>,
}

impl<'a> OrderedStep<'a> {
    pub(crate) fn new(step: &'a Step) -> Self {
        let mut attention_order: Vec<usize> = (0..step.len()).collect();
        attention_order.sort_by_key(|token| step.blocks(*token));
        let mut attention_indices = vec![0; step.len()];
        for (index, token) in attention_order.iter().enumerate() {
            attention_indices[*token] = index;
        }
        let mut write_order: Vec<usize> = (0..step.len()).collect();
        write_order.sort_by_key(|token| step.cache_slot(*token));
        Self { step, attention_order, attention_indices, write_order }
    }

    /// Returns the tokens, those that see common blocks next to each other.
    pub(crate) fn attention_order(&self) -> &[usize] {
        &self.attention_order
    }

    /// Returns `token`'s index in [`attention_order`](Self::attention_order).
    pub(crate) fn attention_index(&self, token: usize) -> usize {
        self.attention_indices[token]
    }

    /// Returns the tokens grouped by the block that they are written to, in the order of the cache.
    pub(crate) fn by_block(&self) -> impl Iterator<Item = &[usize]> {
        self.write_order.chunk_by(|a, b| self.cache_slot(*a).0 == self.cache_slot(*b).0)
    }

    /// Returns the part of the cache that `token` attends to: its sequence's blocks, up to and including its own
    /// position.
    pub(crate) fn visible(&self, token: usize) -> Visible<'_> {
        Visible { blocks: self.step.blocks(token), position: self.step.position(token) }
    }
}

impl Deref for OrderedStep<'_> {
    type Target = Step;

    fn deref(&self) -> &Step {
        self.step
    }
}

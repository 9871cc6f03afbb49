//! The scheduler. It decides which sequences run, and what each step computes.
//!
//! ```text
//! waiting, by caller ──admit, if the cache has blocks for the prompt──▶ running ──answer──▶ the caller
//!         ▲                                                                │
//!         └───── preempt, if the cache has no block for the next token ────┘
//! ```
//!
//! A step is a ragged list of rows: one token of each sequence that decodes, chunks of prompts, and speculative
//! tokens ([`step_plan`](super::step_plan)). Callers with fewer running sequences are scheduled first, so that a
//! large request does not delay a small one. A preempted sequence frees its blocks and computes its tokens again
//! later, with the same result.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use erank_core::{Cause, Completion, DocumentError, TokenCounts};
use rayon::prelude::*;

use super::block_allocator::BlockAllocator;
use super::caller::{Caller, CallerId, Event};
use super::limits::Limits;
use super::prefix_cache::{NodeId, PrefixCache, PrefixMatch};
use super::sequence::{Outcome, Sequence};
use super::statistics::Statistics;
use super::step_plan::{pending_counts, speculative_share};
use crate::model::Model;
use crate::model::kv_cache::KvCache;
use crate::model::step::{BLOCK_TOKENS, BlockId, Row};

/// A running sequence with its blocks.
struct Running {
    caller: CallerId,
    sequence: Sequence,
    blocks: Vec<BlockId>,
    /// The prefix cache's nodes of the first blocks.
    path: Vec<NodeId>,
}

/// The part of a running sequence that a step computes.
struct Chunk {
    /// Index of the running sequence.
    index: usize,
    /// The tokens to compute. These are pending tokens, and speculative tokens may follow only if these are
    /// all of the pending ones.
    tokens: Vec<u32>,
    /// Number of speculative tokens.
    speculative: usize,
    /// Whether the chunk has all pending tokens, so that its logits are wanted.
    is_last: bool,
}

/// The result of computing a chunk.
struct ChunkResult {
    index: usize,
    outcome: Outcome,
    counts: TokenCounts,
    /// Number of speculative tokens that were accepted.
    accepted: usize,
}

impl Running {
    /// Advances the sequence by a computed chunk.
    fn advance(&mut self, chunk: &Chunk, logits: &[f32]) -> ChunkResult {
        let (pending, speculative) = chunk.tokens.split_at(chunk.tokens.len() - chunk.speculative);
        let before = self.sequence.generated();
        let is_prompt = !chunk.is_last || pending.len() > 1;
        let (outcome, accepted) = match chunk.is_last {
            true => self.sequence.advance(speculative, logits),
            false => {
                self.sequence.advance_prompt(pending.len());
                (None, 0)
            }
        };
        let after = match &outcome {
            Some(Ok(completion)) => completion.usage.generated,
            _ => self.sequence.generated(),
        };
        let prompt = if is_prompt { pending.len() } else { 0 };
        let counts = TokenCounts::new(prompt, after - before);
        ChunkResult { index: chunk.index, outcome, counts, accepted }
    }
}

/// The result of an attempt to admit a sequence.
enum Admission {
    Admitted,
    /// Another sequence is computing a common prefix, and this sequence waits for that.
    Deferred,
    /// The batch or the cache is full.
    Full,
}

pub(super) struct Scheduler {
    model: Arc<dyn Model>,
    threads: Arc<rayon::ThreadPool>,
    limits: Limits,
    cache: KvCache,
    allocator: BlockAllocator,
    prefixes: PrefixCache,
    /// Registered callers, the oldest first.
    callers: Vec<Caller>,
    /// Running sequences, the earliest admitted first.
    running: Vec<Running>,
    counters: Statistics,
    /// The counters for other threads to read.
    published: Arc<Mutex<Statistics>>,
}

impl Scheduler {
    /// # Errors
    /// Returns an error if the model's device has no memory for the KV cache.
    pub(super) fn new(
        model: Arc<dyn Model>,
        threads: Arc<rayon::ThreadPool>,
        limits: Limits,
        published: Arc<Mutex<Statistics>>,
    ) -> Result<Self, Cause> {
        let mut scheduler = Self {
            cache: model.new_cache(limits.blocks)?,
            model,
            threads,
            limits,
            allocator: BlockAllocator::new(limits.blocks),
            prefixes: PrefixCache::default(),
            callers: Vec::new(),
            running: Vec::new(),
            counters: Statistics { total_blocks: limits.blocks, ..Statistics::default() },
            published,
        };
        scheduler.publish();
        Ok(scheduler)
    }

    /// Returns whether no sequence runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.callers.iter().all(|caller| caller.waiting.is_empty())
    }

    pub(super) fn add_caller(&mut self, caller: Caller) {
        self.callers.push(caller);
    }

    /// Queues a sequence. Ignores a sequence of a caller that has left.
    pub(super) fn submit(&mut self, caller: CallerId, sequence: Sequence) {
        if let Some(caller) = self.caller(caller) {
            caller.waiting.push_back(sequence);
        }
    }

    /// Discards a caller and all its sequences.
    pub(super) fn remove_caller(&mut self, id: CallerId) {
        self.callers.retain(|caller| caller.id != id);
        for index in (0..self.running.len()).rev() {
            if self.running[index].caller == id {
                self.remove(index);
            }
        }
        self.publish();
    }

    /// Runs one step: reports cancelled sequences, admits waiting ones, and computes.
    pub(super) fn step(&mut self) {
        self.drop_cancelled();
        self.admit();
        let result = match self.running.is_empty() {
            true => Ok(()),
            false => self.compute(),
        };
        if let Err(error) = result {
            self.fail(&error.to_string());
        }
        self.publish();
    }

    /// Starts over after a panicked step: reports `problem` to all callers, and discards every sequence and the
    /// cache, which the step may have left inconsistent.
    ///
    /// # Errors
    /// Returns an error if the device has no memory for another cache.
    pub(super) fn reset(&mut self, problem: &str) -> Result<(), Cause> {
        let failed: Vec<Caller> = self.callers.drain(..).collect();
        self.running.clear();
        self.prefixes = PrefixCache::default();
        self.allocator = BlockAllocator::new(self.limits.blocks);
        self.publish();
        failed.iter().for_each(|caller| caller.send(Event::Failed(problem.to_owned())));
        self.cache = self.model.new_cache(self.limits.blocks)?;
        Ok(())
    }

    fn caller(&mut self, id: CallerId) -> Option<&mut Caller> {
        self.callers.iter_mut().find(|caller| caller.id == id)
    }

    /// Reports the sequences of cancelled callers and removes them.
    fn drop_cancelled(&mut self) {
        let mut ended: Vec<(CallerId, usize)> = Vec::new();
        for caller in 0..self.callers.len() {
            if !self.callers[caller].cancellation.is_cancelled() {
                continue;
            }
            let id = self.callers[caller].id;
            let waiting = self.callers[caller].waiting.drain(..);
            ended.extend(waiting.map(|sequence| (id, sequence.index)));
            for index in (0..self.running.len()).rev() {
                if self.running[index].caller == id {
                    ended.push((id, self.remove(index).index));
                }
            }
        }
        let cancelled = |(id, index)| (id, index, Err(DocumentError::Cancelled));
        self.complete(ended.into_iter().map(cancelled).collect());
    }

    /// Sends results of removed sequences to their callers. The counters are published first, because a caller may read
    /// them when it has its last result.
    fn complete(&mut self, results: Vec<(CallerId, usize, Result<Completion, DocumentError>)>) {
        if results.is_empty() {
            return;
        }
        self.publish();
        for (id, index, result) in results {
            if let Some(caller) = self.caller(id) {
                caller.send(Event::Completed(index, result));
            }
        }
    }

    /// Reports a failed step to the callers that had sequences in it, and removes these callers.
    fn fail(&mut self, problem: &str) {
        let ids: HashSet<CallerId> = self.running.iter().map(|running| running.caller).collect();
        let callers = self.callers.drain(..);
        let (failed, others): (Vec<Caller>, _) =
            callers.partition(|caller| ids.contains(&caller.id));
        self.callers = others;
        for index in (0..self.running.len()).rev() {
            self.remove(index);
        }
        self.publish();
        failed.iter().for_each(|caller| caller.send(Event::Failed(problem.to_owned())));
    }

    /// Moves sequences from waiting to running while the batch and the cache have room. The caller with the fewest
    /// running sequences comes first. If a sequence is deferred, its caller's next one is tried.
    fn admit(&mut self) {
        let mut deferred: HashMap<CallerId, usize> = HashMap::new();
        loop {
            let next = |caller: &Caller| deferred.get(&caller.id).copied().unwrap_or(0);
            let ready = self.callers.iter().filter(|caller| next(caller) < caller.waiting.len());
            let Some((id, next)) = ready
                .min_by_key(|caller| self.running_of(caller.id))
                .map(|caller| (caller.id, next(caller)))
            else {
                return;
            };
            match self.try_admit(id, next) {
                Admission::Admitted => {}
                Admission::Deferred => *deferred.entry(id).or_default() += 1,
                Admission::Full => {
                    // A caller without running sequences replaces one of a caller that has several.
                    match self.preemption_victim() {
                        Some(victim)
                            if self.running_of(id) == 0
                                && self.running_of(self.running[victim].caller) > 1 =>
                        {
                            self.preempt(victim);
                        }
                        _ => return,
                    }
                }
            }
        }
    }

    /// Returns the number of a caller's running sequences.
    fn running_of(&self, caller: CallerId) -> usize {
        self.running.iter().filter(|running| running.caller == caller).count()
    }

    /// Tries to admit the caller's waiting sequence at index `next`.
    fn try_admit(&mut self, id: CallerId, next: usize) -> Admission {
        if self.running.len() >= self.limits.max_num_seqs {
            return Admission::Full;
        }
        let caller = self.callers.iter().find(|caller| caller.id == id);
        let Some(sequence) = caller.and_then(|caller| caller.waiting.get(next)) else {
            return Admission::Deferred;
        };
        let PrefixMatch { path, next_is_computing } = self.prefixes.find(sequence.shareable());
        if next_is_computing {
            return Admission::Deferred;
        }
        let missing = sequence.tokens().len().div_ceil(BLOCK_TOKENS) - path.len();
        let available = self.allocator.free_blocks() + self.prefixes.evictable_blocks()
            - self.prefixes.unused_among(&path);
        // One more block is required, so that a new sequence does not cause a preemption in the next step.
        if missing + 1 > available && !self.running.is_empty() {
            return Admission::Full;
        }
        let Some(sequence) = self.caller(id).and_then(|caller| caller.waiting.remove(next)) else {
            return Admission::Deferred;
        };
        self.prefixes.acquire(&path);
        let mut running = Running {
            caller: id,
            blocks: path.iter().map(|node| self.prefixes.block(*node)).collect(),
            path,
            sequence,
        };
        let cached = running.path.len() * BLOCK_TOKENS;
        running.sequence.restart_at(cached);
        self.counters.cached_tokens += cached as u64;
        self.share_prompt(&mut running);
        self.extend(&mut running, 0);
        self.running.push(running);
        Admission::Admitted
    }

    /// Allocates blocks for the prompt's full blocks, and registers them in the prefix cache.
    fn share_prompt(&mut self, running: &mut Running) {
        let shareable = running.sequence.shareable().as_chunks().0.to_vec();
        for block_tokens in &shareable[running.path.len()..] {
            let Some(block) = self.allocate() else { return };
            running.blocks.push(block);
            let parent = running.path.last().copied();
            let Some(node) = self.prefixes.insert(parent, *block_tokens, block) else { return };
            running.path.push(node);
        }
    }

    /// Allocates blocks for a sequence's tokens and `more` further tokens. Returns whether there were enough
    /// blocks.
    fn extend(&mut self, running: &mut Running, more: usize) -> bool {
        let needed = (running.sequence.tokens().len() + more).div_ceil(BLOCK_TOKENS);
        while running.blocks.len() < needed {
            let Some(block) = self.allocate() else { return false };
            running.blocks.push(block);
        }
        true
    }

    /// Allocates a block. If no block is free, evicts the least recently used prefix.
    fn allocate(&mut self) -> Option<BlockId> {
        if self.allocator.free_blocks() == 0
            && let Some(block) = self.prefixes.evict()
        {
            self.allocator.free(block);
        }
        self.allocator.allocate()
    }

    /// Removes a sequence from the batch. Its blocks become free or stay as cached prefixes.
    fn remove(&mut self, index: usize) -> Sequence {
        let Running { sequence, blocks, path, .. } = self.running.remove(index);
        for block in blocks[path.len()..].iter().copied().chain(self.prefixes.release(&path)) {
            self.allocator.free(block);
        }
        sequence
    }

    /// Moves a running sequence back to the front of its caller's queue.
    fn preempt(&mut self, index: usize) {
        let id = self.running[index].caller;
        let mut sequence = self.remove(index);
        sequence.restart_at(0);
        if let Some(caller) = self.caller(id) {
            caller.waiting.push_front(sequence);
        }
        self.counters.preemptions += 1;
    }

    /// Returns the latest admitted sequence of the caller with the most running sequences. The earliest admitted
    /// sequence of all is therefore never preempted while others run.
    fn preemption_victim(&self) -> Option<usize> {
        let indices = 0..self.running.len();
        indices.max_by_key(|index| (self.running_of(self.running[*index].caller), *index))
    }

    /// Computes one step and advances each sequence whose logits it gives.
    fn compute(&mut self) -> Result<(), Cause> {
        self.make_room()?;
        let chunks = self.plan();
        let rows: Vec<Row<'_>> = chunks
            .iter()
            .map(|chunk| {
                let running = &self.running[chunk.index];
                Row {
                    tokens: &chunk.tokens,
                    position: running.sequence.computed(),
                    blocks: &running.blocks,
                    logits: if chunk.is_last { chunk.speculative + 1 } else { 0 },
                }
            })
            .collect();
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        let _span = tracing::trace_span!("step", rows = rows.len(), tokens).entered();
        let logits = self.threads.install(|| self.model.forward(&rows, &self.cache))?;
        let results = self.advance(&chunks, &logits);
        self.counters.steps += 1;
        self.counters.drafted_tokens +=
            chunks.iter().map(|chunk| chunk.speculative as u64).sum::<u64>();
        self.report(results);
        Ok(())
    }

    /// Allocates blocks for all tokens of every running sequence, if necessary by preempting others.
    fn make_room(&mut self) -> Result<(), Cause> {
        let mut index = 0;
        while index < self.running.len() {
            let mut running = self.running.remove(index);
            let has_room = self.extend(&mut running, 0);
            self.running.insert(index, running);
            if has_room {
                index += 1;
                continue;
            }
            match self.preemption_victim() {
                Some(victim) if self.running.len() > 1 => {
                    self.preempt(victim);
                    index -= usize::from(victim < index);
                }
                _ => return Err("the KV cache is too small for an admitted sequence".into()),
            }
        }
        Ok(())
    }

    /// Chooses the tokens of this step.
    fn plan(&mut self) -> Vec<Chunk> {
        let pending = |running: &Running| (running.caller, running.sequence.pending().len());
        let running: Vec<(CallerId, usize)> = self.running.iter().map(pending).collect();
        let counts = pending_counts(&running, self.limits.max_num_batched_tokens);
        let share = speculative_share(&running, &counts, self.limits.speculative_tokens);
        let mut budget = self.limits.max_num_batched_tokens.saturating_sub(counts.iter().sum());
        let mut chunks = Vec::with_capacity(counts.len());
        for (index, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let sequence = &self.running[index].sequence;
            let mut tokens = sequence.pending()[..count].to_vec();
            let is_last = count == running[index].1;
            let draft = if is_last { sequence.draft(share) } else { &[] };
            let draft = draft[..draft.len().min(budget)].to_vec();
            let speculative = self.extend_for_speculation(index, draft.len());
            budget -= speculative;
            tokens.extend(&draft[..speculative]);
            chunks.push(Chunk { index, tokens, speculative, is_last });
        }
        chunks
    }

    /// Allocates blocks for `more` speculative tokens without preempting other sequences. Returns the number of
    /// tokens that fit.
    fn extend_for_speculation(&mut self, index: usize, more: usize) -> usize {
        let mut running = self.running.remove(index);
        self.extend(&mut running, more);
        let fit = running.blocks.len() * BLOCK_TOKENS - running.sequence.tokens().len();
        self.running.insert(index, running);
        fit.min(more)
    }

    /// Advances the sequences by their computed chunks, on all threads.
    fn advance(&mut self, chunks: &[Chunk], logits: &[f32]) -> Vec<ChunkResult> {
        let logits_per_token = self.model.shape().logits;
        let mut logits = logits;
        let mut chunks = chunks.iter().peekable();
        let mut work = Vec::with_capacity(chunks.len());
        for (index, running) in self.running.iter_mut().enumerate() {
            let Some(chunk) = chunks.next_if(|chunk| chunk.index == index) else { continue };
            let count = if chunk.is_last { (chunk.speculative + 1) * logits_per_token } else { 0 };
            let (own, rest) = logits.split_at(count);
            logits = rest;
            work.push((running, chunk, own));
        }
        self.threads.install(|| {
            let advance = |(running, chunk, logits): (&mut Running, &Chunk, &[f32])| {
                running.advance(chunk, logits)
            };
            work.into_par_iter().map(advance).collect()
        })
    }

    /// Reports a step's results to the callers, and removes completed sequences.
    fn report(&mut self, results: Vec<ChunkResult>) {
        let mut by_caller: Vec<(CallerId, TokenCounts)> = Vec::new();
        for ChunkResult { index, counts, accepted, .. } in &results {
            let running = &mut self.running[*index];
            for node in running.path.iter().take(running.sequence.computed() / BLOCK_TOKENS) {
                self.prefixes.set_computed(*node);
            }
            let (id, piece) = (running.caller, running.sequence.take_new_text());
            match by_caller.iter_mut().find(|(of, _)| *of == id) {
                Some((_, sum)) => *sum += *counts,
                None => by_caller.push((id, *counts)),
            }
            if let (Some(piece), Some(caller)) = (piece, self.caller(id)) {
                caller.send(Event::Text(piece));
            }
            self.counters.prompt_tokens += counts.prompt as u64;
            self.counters.generated_tokens += counts.generated as u64;
            self.counters.accepted_tokens += *accepted as u64;
        }
        for (id, counts) in by_caller {
            if let Some(caller) = self.caller(id) {
                caller.send(Event::Advanced(counts));
            }
        }
        let mut completed = Vec::new();
        for ChunkResult { index, outcome, .. } in results.into_iter().rev() {
            let Some(result) = outcome else { continue };
            let id = self.running[index].caller;
            completed.push((id, self.remove(index).index, result));
        }
        self.counters.completed += completed.len() as u64;
        self.complete(completed);
    }

    /// Makes the counters visible to other threads.
    fn publish(&mut self) {
        let counters = &mut self.counters;
        counters.callers = self.callers.len();
        counters.running = self.running.len();
        counters.waiting = self.callers.iter().map(|caller| caller.waiting.len()).sum();
        counters.prefix_blocks = self.prefixes.evictable_blocks();
        counters.used_blocks =
            counters.total_blocks - self.allocator.free_blocks() - counters.prefix_blocks;
        // No code that holds this lock can panic.
        *self.published.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = *counters;
    }
}

#[cfg(test)]
mod tests;

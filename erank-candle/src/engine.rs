//! Runs a job: its sequences share one running batch.
//!
//! ```text
//! waiting ──admit: room for the prompt──▶ running ──answer──▶ sink
//!    ▲                                      │
//!    └──── no room for the next token ──────┘   the youngest gives its blocks back
//! ```
//!
//! A step is a ragged list of rows under a budget of tokens: the sequences that decode take one
//! token each, then prompts are computed in chunks. What the prompts have in common, up to the
//! document, is computed once and its blocks are shared. A sequence that had to give its blocks back
//! computes its tokens again later, with the same result.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use candle_core::{Result, Tensor, bail};
use erank_core::backend::{DocumentError, Sink, Stop, TokenCounts};

use crate::kv_cache::{BLOCK_TOKENS, BlockId, KvCache};
use crate::model::{Qwen3, Row, WantedLogits};
use crate::sequence::{Outcome, Sequence, Task};
use crate::tokenizer::PromptFrame;

/// A model with its cache and threads. Jobs take turns.
pub(crate) struct Engine {
    model: Qwen3,
    threads: rayon::ThreadPool,
    cache: Mutex<KvCache>,
    blocks: usize,
    /// Most tokens in one step.
    step_tokens: usize,
}

impl Engine {
    pub(crate) fn new(
        model: Qwen3,
        threads: rayon::ThreadPool,
        blocks: usize,
        step_tokens: usize,
    ) -> Result<Self> {
        let cache = Mutex::new(KvCache::new(model.config(), model.dtype(), blocks)?);
        Ok(Self { model, threads, cache, blocks, step_tokens })
    }

    pub(crate) fn model(&self) -> &Qwen3 {
        &self.model
    }

    /// Tokens that one sequence may have: the model's positions, or what fits the cache.
    pub(crate) fn limit(&self) -> usize {
        self.model.config().max_position_embeddings.min(self.blocks * BLOCK_TOKENS)
    }

    /// Generates for every document, and reports each to `sink`.
    pub(crate) fn run(
        &self,
        task: &Task<'_>,
        frame: &PromptFrame,
        documents: &[&str],
        stop: &Stop,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let Some(mut cache) = self.take_turn(stop) else {
            (0..documents.len()).for_each(|i| sink.completed(i, Err(DocumentError::Stopped)));
            return Ok(());
        };
        let mut batch = Batch {
            engine: self,
            cache: &mut cache,
            task,
            frame,
            documents,
            unread: 0..documents.len(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefix: Prefix::default(),
        };
        batch.compute_prefix(sink)?;
        while !stop.is_set() {
            batch.admit(sink);
            if batch.running.is_empty() {
                return Ok(());
            }
            batch.step(sink)?;
        }
        batch.abandon(sink);
        Ok(())
    }

    /// Computes the logits of every one of `ids`, in order, `step_tokens` at a time.
    pub(crate) fn every_logits(&self, ids: &[u32], mut each: impl FnMut(&[f32])) -> Result<()> {
        let Some(mut cache) = self.take_turn(&Stop::new()) else { return Ok(()) };
        let blocks: Vec<BlockId> =
            (0..ids.len().div_ceil(BLOCK_TOKENS)).filter_map(|_| cache.take()).collect();
        for (index, tokens) in ids.chunks(self.step_tokens.min(LOGITS_AT_ONCE)).enumerate() {
            let position = index * self.step_tokens.min(LOGITS_AT_ONCE);
            let row = Row { tokens, position, blocks: &blocks, logits: WantedLogits::All };
            let logits = self.forward(&[row], &cache)?;
            for row in logits.chunks_exact(self.model.config().vocab_size) {
                each(row);
            }
        }
        Ok(())
    }

    fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> Result<Vec<f32>> {
        let logits = self.threads.install(|| self.model.forward(rows, cache))?;
        logits.flatten_all().and_then(|logits: Tensor| logits.to_vec1())
    }

    /// Waits until no other job runs; `None` if this one is stopped before. The cache is empty.
    fn take_turn(&self, stop: &Stop) -> Option<MutexGuard<'_, KvCache>> {
        const POLL: Duration = Duration::from_millis(2);
        loop {
            let mut cache = match self.cache.try_lock() {
                Ok(cache) => cache,
                // A caller's sink panicked; what its job held is dropped below.
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if stop.is_set() => return None,
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            cache.release_all();
            return Some(cache);
        }
    }
}

/// Logits of a large vocabulary take space: 151,936 × 4 bytes a token.
const LOGITS_AT_ONCE: usize = 64;

/// The tokens that all prompts of a job begin with, and the full blocks that hold them.
#[derive(Default)]
struct Prefix {
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
}

/// The running batch of one job.
struct Batch<'a> {
    engine: &'a Engine,
    cache: &'a mut KvCache,
    task: &'a Task<'a>,
    frame: &'a PromptFrame,
    documents: &'a [&'a str],
    /// Documents that are not yet tokenized.
    unread: std::ops::Range<usize>,
    /// Tokenized, without blocks, next first.
    waiting: VecDeque<Sequence>,
    /// With blocks, oldest first.
    running: Vec<Sequence>,
    prefix: Prefix,
}

impl Batch<'_> {
    /// Computes what the first two prompts have in common: everything up to the document.
    fn compute_prefix(&mut self, sink: &mut dyn Sink) -> Result<()> {
        while self.waiting.len() < 2 && self.read_next(sink) {}
        let [first, second] = [self.waiting.front(), self.waiting.get(1)];
        let (Some(first), Some(second)) = (first, second) else { return Ok(()) };
        let length = common_length(&first.tokens, &second.tokens) / BLOCK_TOKENS * BLOCK_TOKENS;
        let tokens = first.tokens[..length].to_vec();
        // Not if it would leave a sequence too little room to finish.
        let longest = self.waiting.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        if (length + longest).div_ceil(BLOCK_TOKENS) >= self.cache.blocks() {
            return Ok(());
        }
        let blocks: Vec<_> = (0..length / BLOCK_TOKENS).filter_map(|_| self.cache.take()).collect();
        for (index, tokens) in tokens.chunks(self.engine.step_tokens).enumerate() {
            let position = index * self.engine.step_tokens;
            let row = Row { tokens, position, blocks: &blocks, logits: WantedLogits::None };
            self.engine.forward(&[row], self.cache)?;
            sink.advanced(TokenCounts { prompt: tokens.len(), generated: 0 });
        }
        self.prefix = Prefix { tokens, blocks };
        Ok(())
    }

    /// Tokenizes the next document; its error, if any, goes to `sink`. False when there is none.
    fn read_next(&mut self, sink: &mut dyn Sink) -> bool {
        let Some(index) = self.unread.next() else { return false };
        let prompt = self.frame.encode(self.documents[index]);
        match prompt.and_then(|prompt| Sequence::new(index, prompt, self.task)) {
            Ok(sequence) => self.waiting.push_back(sequence),
            Err(error) => sink.completed(index, Err(error)),
        }
        true
    }

    /// Moves sequences from waiting to running while there is room for all their tokens.
    fn admit(&mut self, sink: &mut dyn Sink) {
        while self.running.len() < self.engine.step_tokens {
            while self.waiting.is_empty() && self.read_next(sink) {}
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let needed = sequence.tokens.len().div_ceil(BLOCK_TOKENS);
            // The last token is always computed, for its logits.
            let shared = common_length(&self.prefix.tokens, &sequence.tokens)
                .min(sequence.tokens.len() - 1)
                / BLOCK_TOKENS;
            // One more, so that a new sequence does not at once push out another.
            if needed - shared + 1 > self.cache.free_blocks() && !self.running.is_empty() {
                self.waiting.push_front(sequence);
                return;
            }
            for block in &self.prefix.blocks[..shared] {
                self.cache.share(*block);
                sequence.blocks.push(*block);
            }
            sequence.computed = shared * BLOCK_TOKENS;
            self.running.push(sequence);
        }
    }

    /// Computes one step and lets each sequence whose logits are there go on.
    fn step(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let counts = self.plan()?;
        let rows: Vec<Row<'_>> = self
            .running
            .iter()
            .zip(&counts)
            .filter(|(_, count)| **count > 0)
            .map(|(sequence, count)| {
                let pending = sequence.pending();
                let logits = match *count == pending.len() {
                    true => WantedLogits::Last,
                    false => WantedLogits::None,
                };
                let tokens = &pending[..*count];
                Row { tokens, position: sequence.computed, blocks: &sequence.blocks, logits }
            })
            .collect();
        let logits = self.engine.forward(&rows, self.cache)?;
        let mut logits = logits.chunks_exact(self.engine.model.config().vocab_size);

        let mut progress = TokenCounts::default();
        let mut done = Vec::new();
        for (place, (sequence, count)) in self.running.iter_mut().zip(counts).enumerate() {
            progress.prompt += if count > 1 { count } else { 0 };
            sequence.computed += count;
            if count == 0 || !sequence.pending().is_empty() {
                continue;
            }
            let Some(logits) = logits.next() else { bail!("a sequence without its logits") };
            let before = sequence.generated();
            match sequence.advance(logits, self.task) {
                Outcome::Continues => progress.generated += sequence.generated() - before,
                Outcome::Done(outcome) => {
                    let after = outcome.as_ref().map_or(before, |done| done.usage.generated);
                    progress.generated += after - before;
                    done.push((place, outcome));
                }
            }
        }
        sink.advanced(progress);
        for (place, outcome) in done.into_iter().rev() {
            let sequence = self.running.remove(place);
            self.release(&sequence);
            sink.completed(sequence.index, outcome);
        }
        Ok(())
    }

    /// How many tokens of each running sequence this step computes, with blocks for them: first one
    /// each for those that decode, then chunks of prompts, the oldest first.
    fn plan(&mut self) -> Result<Vec<usize>> {
        let mut counts = vec![0; self.running.len()];
        let mut budget = self.engine.step_tokens;
        for decoding in [true, false] {
            let mut place = 0;
            while place < self.running.len() {
                let pending = self.running[place].pending().len();
                if (pending == 1) == decoding {
                    let count = pending.min(budget);
                    if !self.make_room(place, count)? {
                        // This one had to go, being the youngest.
                        break;
                    }
                    counts[place] = count;
                    budget -= count;
                }
                place += 1;
            }
        }
        counts.truncate(self.running.len());
        Ok(counts)
    }

    /// Gives the sequence at `place` blocks for `count` more tokens, if need be by sending the
    /// youngest back to wait. False if that was this one.
    fn make_room(&mut self, place: usize, count: usize) -> Result<bool> {
        loop {
            let sequence = &mut self.running[place];
            let needed = (sequence.computed + count).div_ceil(BLOCK_TOKENS);
            while sequence.blocks.len() < needed {
                let Some(block) = self.cache.take() else { break };
                sequence.blocks.push(block);
            }
            if sequence.blocks.len() >= needed {
                return Ok(true);
            }
            if self.running.len() == 1 {
                bail!("the KV cache has no room for a sequence that was admitted");
            }
            let Some(mut youngest) = self.running.pop() else { return Ok(false) };
            self.release(&youngest);
            youngest.blocks.clear();
            youngest.computed = 0;
            self.waiting.push_front(youngest);
            if place == self.running.len() {
                return Ok(false);
            }
        }
    }

    fn release(&mut self, sequence: &Sequence) {
        sequence.blocks.iter().for_each(|block| self.cache.release(*block));
    }

    /// Reports everything that is not done as stopped.
    fn abandon(self, sink: &mut dyn Sink) {
        let started = self.running.into_iter().chain(self.waiting).map(|sequence| sequence.index);
        for index in started.chain(self.unread) {
            sink.completed(index, Err(DocumentError::Stopped));
        }
    }
}

/// Tokens that both begin with.
fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

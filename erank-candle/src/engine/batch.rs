//! The running batch: which sequences run, and what each step computes.
//!
//! ```text
//! waiting, by caller ──admit: room for the prompt──▶ running ──answer──▶ the caller
//!         ▲                                             │
//!         └────────── no room for the next token ───────┘  one gives its blocks back
//! ```
//!
//! A step is a ragged list of rows under a budget of tokens: the sequences that decode take one
//! token each, and a few guessed ones while they are few; then prompts are computed in chunks. A
//! caller with fewer running sequences goes first, and callers share the budget for prompts evenly,
//! so that a small request is not stuck behind a large one. Who had to give blocks back computes its
//! tokens again later, with the same result.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Result, Storage, bail};
use erank_core::{CancellationToken, Completion, DocumentError, TokenCounts};
use rayon::prelude::*;

use super::Limits;
use super::prefix_cache::{Found, NodeId, PrefixCache};
use super::sequence::{Outcome, Sequence};
use super::statistics::Statistics;
use crate::kv_cache::{BLOCK_TOKENS, BlockId, KvCache};
use crate::model::{Qwen3, Row};
use crate::ops::contiguous;

/// What the engine tells a caller.
pub(super) enum Event {
    /// Work went on.
    Advanced(TokenCounts),
    /// A sequence of this document is done.
    Completed(usize, std::result::Result<Completion, DocumentError>),
    /// A step failed that this caller had a part in; nothing more comes.
    Failed(String),
}

/// Names a caller.
pub(super) type CallId = u64;

/// A caller with the sequences that wait.
pub(super) struct Call {
    pub(super) id: CallId,
    pub(super) stop: CancellationToken,
    pub(super) events: Sender<Event>,
    /// Next first.
    pub(super) waiting: VecDeque<Sequence>,
}

impl Call {
    fn complete(&self, index: usize, result: std::result::Result<Completion, DocumentError>) {
        // A caller that is gone is forgotten when its leaving is read.
        let _ = self.events.send(Event::Completed(index, result));
    }
}

/// A running sequence with its blocks.
struct Slot {
    call: CallId,
    sequence: Sequence,
    blocks: Vec<BlockId>,
    /// The first blocks' nodes in the prefix cache.
    path: Vec<NodeId>,
}

/// What a step computes of one running sequence.
struct Part {
    place: usize,
    /// Pending tokens, and guessed ones behind them if those are all that are pending.
    tokens: Vec<u32>,
    drafted: usize,
    /// Whether all pending tokens are among them, so that the sequence goes on.
    is_last: bool,
}

/// What came of a part.
struct Advanced {
    place: usize,
    outcome: Outcome,
    counts: TokenCounts,
    /// Guessed tokens that were right.
    agreed: usize,
}

impl Slot {
    fn advance(&mut self, part: &Part, logits: &[f32]) -> Advanced {
        let (pending, draft) = part.tokens.split_at(part.tokens.len() - part.drafted);
        let before = self.sequence.generated();
        let is_prompt = !part.is_last || pending.len() > 1;
        let (outcome, agreed) = match part.is_last {
            true => self.sequence.advance(draft, logits),
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
        Advanced { place: part.place, outcome, counts, agreed }
    }
}

/// What came of trying to admit a caller's next sequence.
enum Admission {
    Admitted,
    /// Another sequence computes what this one begins with.
    Later,
    NoRoom,
}

pub(super) struct Batch {
    model: Arc<Qwen3>,
    threads: Arc<rayon::ThreadPool>,
    limits: Limits,
    cache: KvCache,
    prefixes: PrefixCache,
    /// Open calls, the oldest first.
    calls: Vec<Call>,
    /// The longest admitted first.
    running: Vec<Slot>,
    counters: Statistics,
    /// The counters for others to read.
    published: Arc<Mutex<Statistics>>,
}

impl Batch {
    pub(super) fn new(
        model: Arc<Qwen3>,
        threads: Arc<rayon::ThreadPool>,
        limits: Limits,
        cache: KvCache,
        published: Arc<Mutex<Statistics>>,
    ) -> Self {
        let counters = Statistics { total_blocks: cache.blocks(), ..Statistics::default() };
        Self {
            model,
            threads,
            limits,
            cache,
            prefixes: PrefixCache::default(),
            calls: Vec::new(),
            running: Vec::new(),
            counters,
            published,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.calls.iter().all(|call| call.waiting.is_empty())
    }

    pub(super) fn open(&mut self, call: Call) {
        self.calls.push(call);
    }

    pub(super) fn submit(&mut self, call: CallId, sequence: Sequence) {
        if let Some(call) = self.call(call) {
            call.waiting.push_back(sequence);
        }
    }

    /// Forgets a caller and everything of it.
    pub(super) fn close(&mut self, id: CallId) {
        self.calls.retain(|call| call.id != id);
        for place in (0..self.running.len()).rev() {
            if self.running[place].call == id {
                self.remove(place);
            }
        }
        self.publish();
    }

    /// One step: reports what is stopped, admits what there is room for, computes.
    pub(super) fn step(&mut self) {
        self.drop_stopped();
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

    fn call(&mut self, id: CallId) -> Option<&mut Call> {
        self.calls.iter_mut().find(|call| call.id == id)
    }

    fn drop_stopped(&mut self) {
        for index in 0..self.calls.len() {
            let call = &mut self.calls[index];
            if !call.stop.is_cancelled() {
                continue;
            }
            let id = call.id;
            for sequence in std::mem::take(&mut call.waiting) {
                self.calls[index].complete(sequence.index, Err(DocumentError::Cancelled));
            }
            for place in (0..self.running.len()).rev() {
                if self.running[place].call == id {
                    let sequence = self.remove(place);
                    self.calls[index].complete(sequence.index, Err(DocumentError::Cancelled));
                }
            }
        }
    }

    /// Tells the callers that have rows running, and drops everything of theirs.
    fn fail(&mut self, problem: &str) {
        let ids: Vec<CallId> = self.running.iter().map(|slot| slot.call).collect();
        for id in ids {
            if let Some(call) = self.call(id) {
                let _ = call.events.send(Event::Failed(problem.to_owned()));
            }
            self.close(id);
        }
    }

    /// Begins anew after a step that panicked: nothing that it may have had in hand is relied on, and
    /// all callers are told.
    ///
    /// # Errors
    /// If there is no memory for another cache.
    pub(super) fn start_over(&mut self, problem: &str) -> Result<()> {
        for call in self.calls.drain(..) {
            let _ = call.events.send(Event::Failed(problem.to_owned()));
        }
        self.running.clear();
        self.prefixes = PrefixCache::default();
        self.cache = self.model.new_cache(self.cache.blocks())?;
        self.publish();
        Ok(())
    }

    /// Moves sequences from waiting to running while there is room, the caller with the fewest
    /// running first. A sequence whose beginning another one computes waits for it, and the caller's
    /// next is tried.
    fn admit(&mut self) {
        // By caller: how many of its sequences wait for others.
        let mut passed: HashMap<CallId, usize> = HashMap::new();
        loop {
            let place = |call: &Call| passed.get(&call.id).copied().unwrap_or(0);
            let ready = self.calls.iter().filter(|call| place(call) < call.waiting.len());
            let Some((id, place)) = ready
                .min_by_key(|call| self.running_of(call.id))
                .map(|call| (call.id, place(call)))
            else {
                return;
            };
            match self.admit_next(id, place) {
                Admission::Admitted => {}
                Admission::Later => *passed.entry(id).or_default() += 1,
                Admission::NoRoom => {
                    // Who has none running gets the place of one who has several.
                    match self.youngest_of_most() {
                        Some(place)
                            if self.running_of(id) == 0
                                && self.running_of(self.running[place].call) > 1 =>
                        {
                            self.preempt(place);
                        }
                        _ => return,
                    }
                }
            }
        }
    }

    fn running_of(&self, call: CallId) -> usize {
        self.running.iter().filter(|slot| slot.call == call).count()
    }

    /// Tries the caller's sequence at this place of its waiting ones.
    fn admit_next(&mut self, id: CallId, place: usize) -> Admission {
        if self.running.len() >= self.limits.sequences {
            return Admission::NoRoom;
        }
        let call = self.calls.iter().find(|call| call.id == id);
        let Some(sequence) = call.and_then(|call| call.waiting.get(place)) else {
            return Admission::Later;
        };
        let Found { path, more_to_come } = self.prefixes.find(sequence.shareable());
        if more_to_come {
            return Admission::Later;
        }
        let missing = sequence.tokens().len().div_ceil(BLOCK_TOKENS) - path.len();
        let available = self.cache.free_blocks() + self.prefixes.evictable_blocks()
            - self.prefixes.unused_among(&path);
        // One more, so that a new sequence does not at once push out another.
        if missing + 1 > available && !self.running.is_empty() {
            return Admission::NoRoom;
        }
        let Some(sequence) = self.call(id).and_then(|call| call.waiting.remove(place)) else {
            return Admission::Later;
        };
        self.prefixes.acquire(&path);
        let mut slot = Slot {
            call: id,
            blocks: path.iter().map(|node| self.prefixes.block(*node)).collect(),
            path,
            sequence,
        };
        let cached = slot.path.len() * BLOCK_TOKENS;
        slot.sequence.restart_at(cached);
        self.counters.cached_tokens += cached as u64;
        self.share_prompt(&mut slot);
        self.extend(&mut slot, 0);
        self.running.push(slot);
        Admission::Admitted
    }

    /// Takes blocks for what a prompt has in whole blocks, for others to find.
    fn share_prompt(&mut self, slot: &mut Slot) {
        let shareable = slot.sequence.shareable().as_chunks().0.to_vec();
        for block_tokens in &shareable[slot.path.len()..] {
            let Some(block) = self.take_block() else { return };
            slot.blocks.push(block);
            let parent = slot.path.last().copied();
            let Some(node) = self.prefixes.insert(parent, *block_tokens, block) else { return };
            slot.path.push(node);
        }
    }

    /// Takes blocks for a sequence's tokens and `more`; false if there are too few.
    fn extend(&mut self, slot: &mut Slot, more: usize) -> bool {
        let needed = (slot.sequence.tokens().len() + more).div_ceil(BLOCK_TOKENS);
        while slot.blocks.len() < needed {
            let Some(block) = self.take_block() else { return false };
            slot.blocks.push(block);
        }
        true
    }

    /// A free block, if need be from the prefix that was used the longest ago.
    fn take_block(&mut self) -> Option<BlockId> {
        if self.cache.free_blocks() == 0
            && let Some(block) = self.prefixes.evict()
        {
            self.cache.release(block);
        }
        self.cache.take()
    }

    /// Takes a sequence out of the batch; its blocks are free or stay as prefixes.
    fn remove(&mut self, place: usize) -> Sequence {
        let Slot { sequence, blocks, path, .. } = self.running.remove(place);
        for block in blocks[path.len()..].iter().copied().chain(self.prefixes.release(&path)) {
            self.cache.release(block);
        }
        sequence
    }

    /// Sends a running sequence back to wait.
    fn preempt(&mut self, place: usize) {
        let id = self.running[place].call;
        let mut sequence = self.remove(place);
        sequence.restart_at(0);
        if let Some(call) = self.call(id) {
            call.waiting.push_front(sequence);
        }
        self.counters.preemptions += 1;
    }

    /// The youngest sequence of the caller that has the most. So the oldest of all is safe as long
    /// as others run.
    fn youngest_of_most(&self) -> Option<usize> {
        let places = 0..self.running.len();
        places.max_by_key(|place| (self.running_of(self.running[*place].call), *place))
    }

    /// Computes one step and lets each sequence whose logits are there go on.
    fn compute(&mut self) -> Result<()> {
        self.make_room()?;
        let parts = self.plan();
        let rows: Vec<Row<'_>> = parts
            .iter()
            .map(|part| {
                let slot = &self.running[part.place];
                Row {
                    tokens: &part.tokens,
                    position: slot.sequence.computed(),
                    blocks: &slot.blocks,
                    logits: if part.is_last { part.drafted + 1 } else { 0 },
                }
            })
            .collect();
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        let _span = tracing::trace_span!("step", rows = rows.len(), tokens).entered();
        let logits = self.threads.install(|| self.model.forward(&rows, &self.cache))?;
        let logits = logits.to_device(&Device::Cpu)?.contiguous()?;
        let (storage, layout) = logits.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("logits on another device") };
        let advanced = self.advance(&parts, contiguous(storage, layout)?);
        self.counters.steps += 1;
        self.counters.drafted_tokens += parts.iter().map(|part| part.drafted as u64).sum::<u64>();
        self.report(advanced);
        Ok(())
    }

    /// Sees to it that every running sequence has blocks for all its tokens, if need be by sending
    /// others back to wait.
    fn make_room(&mut self) -> Result<()> {
        let mut place = 0;
        while place < self.running.len() {
            let mut slot = self.running.remove(place);
            let has_room = self.extend(&mut slot, 0);
            self.running.insert(place, slot);
            if has_room {
                place += 1;
                continue;
            }
            match self.youngest_of_most() {
                Some(victim) if self.running.len() > 1 => {
                    self.preempt(victim);
                    place -= usize::from(victim < place);
                }
                _ => bail!("the KV cache has no room for a sequence that was admitted"),
            }
        }
        Ok(())
    }

    /// What this step computes of each running sequence: one token of those that decode, chunks of
    /// prompts with what is left of the budget, and guesses while there are few tokens.
    fn plan(&mut self) -> Vec<Part> {
        let pending: Vec<usize> =
            self.running.iter().map(|slot| slot.sequence.pending().len()).collect();
        let mut counts: Vec<usize> = pending.iter().map(|count| usize::from(*count == 1)).collect();
        let mut budget = self.limits.max_num_batched_tokens.saturating_sub(counts.iter().sum());

        let mut callers: Vec<CallId> = Vec::new();
        for (slot, _) in self.running.iter().zip(&pending).filter(|(_, pending)| **pending > 1) {
            if !callers.contains(&slot.call) {
                callers.push(slot.call);
            }
        }
        // Even shares first; then, in order, what nobody needed of them.
        let shares = callers.iter().enumerate().map(|(i, id)| (Some(*id), callers.len() - i));
        for (caller, sharers) in shares.chain([(None, 1)]).collect::<Vec<_>>() {
            let mut share = budget / sharers;
            for (place, slot) in self.running.iter().enumerate() {
                if pending[place] > 1 && caller.is_none_or(|caller| caller == slot.call) {
                    let count = (pending[place] - counts[place]).min(share);
                    counts[place] += count;
                    share -= count;
                    budget -= count;
                }
            }
        }

        let tokens: usize = counts.iter().sum();
        let last = counts.iter().zip(&pending).filter(|(count, pending)| count == pending).count();
        let guesses = self.limits.speculative_tokens.saturating_sub(tokens) / last.max(1);
        let mut parts = Vec::with_capacity(counts.len());
        for (place, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let sequence = &self.running[place].sequence;
            let mut tokens = sequence.pending()[..count].to_vec();
            let is_last = count == pending[place];
            let draft = if is_last { sequence.draft(guesses) } else { &[] };
            let draft = draft[..draft.len().min(budget)].to_vec();
            let drafted = self.room_to_guess(place, draft.len());
            budget -= drafted;
            tokens.extend(&draft[..drafted]);
            parts.push(Part { place, tokens, drafted, is_last });
        }
        parts
    }

    /// How many of `more` tokens there are blocks for, without taking any from other sequences.
    fn room_to_guess(&mut self, place: usize, more: usize) -> usize {
        let mut slot = self.running.remove(place);
        self.extend(&mut slot, more);
        let room = slot.blocks.len() * BLOCK_TOKENS - slot.sequence.tokens().len();
        self.running.insert(place, slot);
        room.min(more)
    }

    /// Lets the sequences go on with what was computed of them, on all threads.
    fn advance(&mut self, parts: &[Part], logits: &[f32]) -> Vec<Advanced> {
        let vocab_size = self.model.config().vocab_size;
        let mut logits = logits;
        let mut parts = parts.iter().peekable();
        let mut work = Vec::with_capacity(parts.len());
        for (place, slot) in self.running.iter_mut().enumerate() {
            let Some(part) = parts.next_if(|part| part.place == place) else { continue };
            let count = if part.is_last { (part.drafted + 1) * vocab_size } else { 0 };
            let (own, rest) = logits.split_at(count);
            logits = rest;
            work.push((slot, part, own));
        }
        self.threads.install(|| {
            work.into_par_iter().map(|(slot, part, logits)| slot.advance(part, logits)).collect()
        })
    }

    /// Tells the callers what was done, and removes what is complete.
    fn report(&mut self, advanced: Vec<Advanced>) {
        let mut by_call: Vec<(CallId, TokenCounts)> = Vec::new();
        for Advanced { place, counts, agreed, .. } in &advanced {
            let slot = &self.running[*place];
            for node in slot.path.iter().take(slot.sequence.computed() / BLOCK_TOKENS) {
                self.prefixes.set_computed(*node);
            }
            match by_call.iter_mut().find(|(id, _)| *id == slot.call) {
                Some((_, sum)) => *sum += *counts,
                None => by_call.push((slot.call, *counts)),
            }
            self.counters.prompt_tokens += counts.prompt as u64;
            self.counters.generated_tokens += counts.generated as u64;
            self.counters.accepted_tokens += *agreed as u64;
        }
        for (id, counts) in by_call {
            if let Some(call) = self.call(id) {
                let _ = call.events.send(Event::Advanced(counts));
            }
        }
        for Advanced { place, outcome, .. } in advanced.into_iter().rev() {
            let Some(result) = outcome else { continue };
            let id = self.running[place].call;
            let sequence = self.remove(place);
            self.counters.completed += 1;
            if let Some(call) = self.call(id) {
                call.complete(sequence.index, result);
            }
        }
    }

    fn publish(&mut self) {
        let counters = &mut self.counters;
        counters.calls = self.calls.len();
        counters.running = self.running.len();
        counters.waiting = self.calls.iter().map(|call| call.waiting.len()).sum();
        counters.prefix_blocks = self.prefixes.evictable_blocks();
        counters.used_blocks =
            counters.total_blocks - self.cache.free_blocks() - counters.prefix_blocks;
        // Nothing that holds this lock can panic.
        *self.published.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = *counters;
    }
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use std::sync::mpsc::channel;

    use erank_core::{AnswerFormat, Mode, ScoringOptions};

    use super::super::labels::Labels;
    use super::super::sequence::Task;
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::tokenizer::{EncodedPrompt, PromptTokenizer};

    fn task(checkpoint: &Checkpoint) -> Task {
        let json = checkpoint.tokenizer.as_deref().expect("bundled");
        let tokenizer = PromptTokenizer::new(json, checkpoint.tokenizer_config.as_deref(), None);
        let tokenizer = tokenizer.expect("usable");
        let format = AnswerFormat::zero_to_ten();
        let label = |label| tokenizer.encode_trusted(label).expect("tokens");
        let labels = Labels::new(format.answers().map(|(text, _)| label(text)).collect());
        let mut options = ScoringOptions::default();
        options.mode = Mode::AnswerOnly;
        Task {
            tokenizer,
            format,
            labels,
            options,
            eos_token_ids: Vec::new(),
            end_of_thought: None,
            opens_thought: false,
            limit: 2048,
        }
    }

    /// Samples of a document wait until its prompt is computed; the next documents do not wait for
    /// them.
    #[test]
    fn samples_do_not_hold_up_the_next_documents() {
        let checkpoint = Checkpoint::tiny();
        let model = Arc::new(Qwen3::load(&checkpoint, None, None).expect("bundled"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let cache = model.new_cache(200).expect("a cache");
        let limits = Limits { max_num_batched_tokens: 4096, sequences: 64, speculative_tokens: 0 };
        let mut batch = Batch::new(model, Arc::new(pool), limits, cache, Arc::default());
        let task = Arc::new(task(&checkpoint));
        let (events, reports) = channel();
        batch.open(Call {
            id: 0,
            stop: CancellationToken::new(),
            events,
            waiting: VecDeque::new(),
        });
        let (documents, samples) = (6, 3);
        for document in 0..documents {
            // Two blocks of tokens in common, and two of its own.
            let ids = [[10; 32], [11 + document as u32; 32]].concat();
            for sample in 0..samples {
                let (query_truncated, document_truncated) = (false, false);
                let prompt =
                    EncodedPrompt { ids: ids.clone(), query_truncated, document_truncated };
                let sequence = Sequence::new(document, sample, prompt, Arc::clone(&task));
                batch.submit(0, sequence.expect("room"));
            }
        }
        let mut steps = 0;
        while !batch.is_idle() {
            batch.step();
            steps += 1;
        }
        // The first prompt, the others, and what waited for those.
        assert_eq!(steps, 3);
        let is_done = |event: &Event| matches!(event, Event::Completed(_, Ok(_)));
        assert_eq!(reports.try_iter().filter(is_done).count(), documents * samples);
    }
}

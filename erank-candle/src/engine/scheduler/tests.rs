//! Tests of the scheduler with a model made for the tests. It has no weights and no tensors.

mod schedules;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{LazyLock, Mutex};

use erank_core::{AnswerFormat, CancellationToken, Completion, Mode, ScoringOptions};

use super::super::answer_trie::AnswerTrie;
use super::super::sequence::JobContext;
use super::*;
use crate::model::{Head, ModelShape};
use crate::tokenizer::tests::tokenizer;
use crate::tokenizer::{EncodedPrompt, PromptTokenizer};

static TOKENIZER: LazyLock<PromptTokenizer> = LazyLock::new(tokenizer);

/// Ids of the test tokenizer.
const VOCABULARY: usize = 263;

/// A model that keeps the tokens themselves in its cache. Its next token depends on all earlier tokens of the
/// sequence. A block that the scheduler mixes up therefore changes the result or fails the step.
struct TokenCacheModel {
    /// The tokens by block and slot; `None` was never written.
    slots: Mutex<Vec<Option<u32>>>,
    /// The tokens that the model may generate.
    alphabet: Vec<u32>,
    /// Fails a step whose rows hold this token.
    poison: Option<u32>,
}

impl TokenCacheModel {
    fn next_token(&self, context: &[u32]) -> u32 {
        let mix = |hash: usize, id: &u32| hash.wrapping_mul(31).wrapping_add(*id as usize + 1);
        self.alphabet[context.iter().fold(7, mix) % self.alphabet.len()]
    }
}

impl Model for TokenCacheModel {
    fn shape(&self) -> ModelShape {
        ModelShape {
            head: Head::LanguageModel,
            logits: VOCABULARY,
            max_tokens: 2048,
            block_bytes: 1,
        }
    }

    fn new_cache(&self, blocks: usize) -> Result<KvCache, Cause> {
        *self.slots.lock().expect("no panic") = vec![None; blocks * BLOCK_TOKENS];
        Ok(KvCache::new(0, 0, candle_core::DType::F32, blocks, &candle_core::Device::Cpu)?)
    }

    fn forward(&self, rows: &[Row<'_>], _: &KvCache) -> Result<Vec<f32>, Cause> {
        let mut slots = self.slots.lock().expect("no panic");
        let slot = |row: &Row<'_>, position: usize| {
            row.blocks[position / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        };
        for row in rows {
            if row.tokens.iter().any(|token| Some(*token) == self.poison) {
                return Err("poisoned".into());
            }
            for (offset, token) in row.tokens.iter().enumerate() {
                slots[slot(row, row.position + offset)] = Some(*token);
            }
        }
        let mut logits = Vec::new();
        for row in rows {
            let end = row.position + row.tokens.len();
            let context: Option<Vec<u32>> = (0..end).map(|i| slots[slot(row, i)]).collect();
            let context = context.ok_or("a row reads a slot that was never written")?;
            for wanted in end - row.logits..end {
                let mut row = vec![0.0; VOCABULARY];
                row[self.next_token(&context[..=wanted]) as usize] = 9.0;
                logits.extend(row);
            }
        }
        Ok(logits)
    }
}

/// A scheduler over a [`TokenCacheModel`].
struct Fixture {
    scheduler: Scheduler,
    context: Arc<JobContext>,
}

impl Fixture {
    fn new(mode: Mode, limits: Limits, poison: Option<u32>) -> Self {
        let alphabet = encode(&TOKENIZER, "abcdefg");
        let model = TokenCacheModel { slots: Mutex::default(), alphabet, poison };
        let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let scheduler = Scheduler::new(Arc::new(model), Arc::new(threads), limits, Arc::default());
        Self { scheduler: scheduler.expect("memory"), context: Arc::new(context(mode)) }
    }

    fn add_caller(&mut self, id: CallerId) -> (CancellationToken, Receiver<Event>) {
        let (sender, events) = channel();
        let token = CancellationToken::new();
        self.scheduler.add_caller(Caller::new(id, token.clone(), sender));
        (token, events)
    }

    fn submit(&mut self, caller: CallerId, index: usize, sample: usize, ids: Vec<u32>) {
        let prompt = EncodedPrompt { ids, query_truncated: false, document_truncated: false };
        let sequence = Sequence::new(index, sample, prompt, Arc::clone(&self.context));
        self.scheduler.submit(caller, sequence.expect("a prompt that fits"));
    }

    /// Runs steps until nothing is left, and returns their number.
    fn run(&mut self) -> usize {
        let mut steps = 0;
        while !self.scheduler.is_idle() {
            self.scheduler.step();
            steps += 1;
            assert!(steps < 10_000, "the scheduler makes no progress");
        }
        steps
    }

    fn assert_no_block_is_in_use(&self) {
        let Scheduler { allocator, prefixes, .. } = &self.scheduler;
        assert_eq!(
            allocator.free_blocks() + prefixes.evictable_blocks(),
            allocator.blocks(),
            "blocks were lost"
        );
    }
}

fn context(mode: Mode) -> JobContext {
    let tokenizer = TOKENIZER.clone();
    let format = AnswerFormat::zero_to_ten();
    let labels = format.answers().map(|(label, _)| encode(&tokenizer, label)).collect();
    let mut options = ScoringOptions::default();
    options.mode = mode;
    JobContext {
        tokenizer,
        format,
        answers: AnswerTrie::new(labels),
        head: Head::LanguageModel,
        options,
        eos_token_ids: Vec::new(),
        thought_end_id: None,
        prompt_opens_thought: false,
        wants_text: false,
        max_tokens: 2048,
    }
}

/// Encodes each character alone, so that a word and its characters have the same tokens.
fn encode(tokenizer: &PromptTokenizer, text: &str) -> Vec<u32> {
    let characters = text.chars().map(|c| tokenizer.encode_trusted(&c.to_string()));
    characters.flat_map(|ids| ids.expect("tokens")).collect()
}

fn limits(blocks: usize) -> Limits {
    Limits { blocks, max_num_batched_tokens: 64, max_num_seqs: 8, speculative_tokens: 8 }
}

/// Returns a prompt of `length` tokens that differs from others in every block.
fn prompt(number: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| 10 + (i * 7 + number * 13) % 200).collect()
}

/// Returns the completions by document, with their number of generated tokens. Drops errors.
fn completions(events: &Receiver<Event>) -> Vec<(usize, Completion)> {
    let mut completions: Vec<(usize, Completion)> = events
        .try_iter()
        .filter_map(|event| match event {
            Event::Completed(index, Ok(completion)) => Some((index, completion)),
            _ => None,
        })
        .collect();
    completions.sort_by_key(|(index, completion)| (*index, completion.sample));
    completions
}

#[test]
fn admit_defers_samples_of_a_prompt_but_not_the_next_documents() {
    let limits = Limits {
        blocks: 200,
        max_num_batched_tokens: 4096,
        max_num_seqs: 64,
        speculative_tokens: 0,
    };
    let mut fixture = Fixture::new(Mode::AnswerOnly, limits, None);
    let (_, events) = fixture.add_caller(0);
    let (documents, samples) = (6, 3);
    for document in 0..documents {
        // Two common blocks of tokens, then two of the document's own.
        let ids = [[10; 32], [11 + document as u32; 32]].concat();
        for sample in 0..samples {
            fixture.submit(0, document, sample, ids.clone());
        }
    }
    // The steps compute the first prompt, then the others, then the samples that waited for those.
    assert_eq!(fixture.run(), 3);
    assert_eq!(completions(&events).len(), documents * samples);
    fixture.assert_no_block_is_in_use();
}

#[test]
fn preempted_sequences_complete_with_the_same_result() {
    let run = |blocks| {
        let mut fixture = Fixture::new(Mode::Reason { max_tokens: 60 }, limits(blocks), None);
        let (_, events) = fixture.add_caller(0);
        (0..8).for_each(|i| fixture.submit(0, i, 0, prompt(i as u32, 40 + 3 * i)));
        fixture.run();
        fixture.assert_no_block_is_in_use();
        (completions(&events), fixture.scheduler.counters.preemptions)
    };
    let ((roomy, none), (tight, some)) = (run(200), run(16));
    assert_eq!(none, 0);
    assert!(some > 0, "a cache of 16 blocks must cause preemptions");
    assert_eq!(roomy.len(), 8);
    assert_eq!(tight, roomy);
}

#[test]
fn results_do_not_depend_on_chunks_speculation_or_other_sequences() {
    let run = |limits: Limits, documents: std::ops::Range<usize>| {
        let mut fixture = Fixture::new(Mode::Reason { max_tokens: 30 }, limits, None);
        let (_, events) = fixture.add_caller(0);
        documents.for_each(|i| fixture.submit(0, i, 0, prompt(i as u32, 50)));
        fixture.run();
        completions(&events)
    };
    let all = run(limits(200), 0..6);
    assert_eq!(all.len(), 6);
    let small = Limits { max_num_batched_tokens: 7, max_num_seqs: 3, ..limits(200) };
    assert_eq!(run(small, 0..6), all);
    assert_eq!(run(Limits { speculative_tokens: 0, ..limits(200) }, 0..6), all);
    assert_eq!(run(limits(200), 4..5), all[4..5]);
}

#[test]
fn admit_runs_a_small_request_beside_a_large_one() {
    let mut fixture = Fixture::new(Mode::Reason { max_tokens: 20 }, limits(200), None);
    let (_, large) = fixture.add_caller(0);
    (0..100).for_each(|i| fixture.submit(0, i, 0, prompt(i as u32, 40)));
    (0..4).for_each(|_| fixture.scheduler.step());
    let (_, small) = fixture.add_caller(1);
    fixture.submit(1, 0, 0, prompt(500, 40));
    while completions(&small).is_empty() {
        fixture.scheduler.step();
    }
    let before = completions(&large).len();
    assert!(before < 24, "{before} of 100 documents came before the small request");
}

#[test]
fn step_reports_cancelled_sequences_and_frees_their_blocks() {
    let mut fixture = Fixture::new(Mode::Reason { max_tokens: 50 }, limits(200), None);
    let (token, events) = fixture.add_caller(0);
    (0..20).for_each(|i| fixture.submit(0, i, 0, prompt(i as u32, 40)));
    (0..3).for_each(|_| fixture.scheduler.step());
    token.cancel();
    fixture.scheduler.step();
    assert!(fixture.scheduler.is_idle());
    let is_cancelled =
        |event: &Event| matches!(event, Event::Completed(_, Err(DocumentError::Cancelled)));
    assert_eq!(events.try_iter().filter(is_cancelled).count(), 20);
    fixture.assert_no_block_is_in_use();
}

#[test]
fn step_publishes_the_counters_before_it_reports_a_completion() {
    let mut fixture = Fixture::new(Mode::AnswerOnly, limits(200), None);
    let (_, events) = fixture.add_caller(0);
    let published = Arc::clone(&fixture.scheduler.published);
    let reader = std::thread::spawn(move || {
        let is_completion = |event: &Event| matches!(event, Event::Completed(..));
        let counts = events.iter().filter(is_completion).take(50);
        counts.map(|_| published.lock().expect("a lock").completed).collect::<Vec<_>>()
    });
    for i in 0..50 {
        fixture.submit(0, i, 0, prompt(i as u32, 40));
        fixture.run();
    }
    let counts = reader.join().expect("the reader does not panic");
    assert!((1..).zip(&counts).all(|(least, count)| *count >= least), "{counts:?}");
}

#[test]
fn drop_cancelled_publishes_the_counters_that_its_reports_are_in() {
    let mut fixture = Fixture::new(Mode::Reason { max_tokens: 50 }, limits(200), None);
    let (token, events) = fixture.add_caller(0);
    (0..20).for_each(|i| fixture.submit(0, i, 0, prompt(i as u32, 40)));
    fixture.scheduler.step();
    let published = Arc::clone(&fixture.scheduler.published);
    let state = || {
        let counters = published.lock().expect("a lock");
        (counters.running, counters.waiting)
    };
    assert_eq!(state(), (8, 12));
    token.cancel();
    fixture.scheduler.drop_cancelled();
    assert_eq!(events.try_iter().filter(|event| matches!(event, Event::Completed(..))).count(), 20);
    assert_eq!(state(), (0, 0));
}

#[test]
fn failed_step_is_reported_to_its_callers_alone() {
    const POISON: u32 = 5;
    let mut fixture = Fixture::new(Mode::Reason { max_tokens: 5 }, limits(200), Some(POISON));
    let (_, healthy) = fixture.add_caller(0);
    let (_, poisoned) = fixture.add_caller(1);
    fixture.submit(1, 0, 0, vec![POISON; 20]);
    fixture.run();
    assert!(poisoned.try_iter().any(|event| matches!(event, Event::Failed(_))));
    fixture.submit(0, 0, 0, prompt(1, 40));
    fixture.run();
    assert_eq!(completions(&healthy).len(), 1);
    fixture.assert_no_block_is_in_use();
}

#[test]
fn reset_reports_to_every_caller_and_leaves_an_empty_scheduler() {
    let mut fixture = Fixture::new(Mode::Reason { max_tokens: 50 }, limits(200), None);
    let callers = [fixture.add_caller(0), fixture.add_caller(1)];
    (0..2).for_each(|i| fixture.submit(i, 0, 0, prompt(i as u32, 40)));
    fixture.scheduler.step();
    fixture.scheduler.reset("a step panicked").expect("memory");
    for (_, events) in &callers {
        assert!(events.try_iter().any(|event| matches!(event, Event::Failed(_))));
    }
    assert!(fixture.scheduler.is_idle());
    let (_, events) = fixture.add_caller(2);
    fixture.submit(2, 0, 0, prompt(9, 40));
    fixture.run();
    assert_eq!(completions(&events).len(), 1);
}

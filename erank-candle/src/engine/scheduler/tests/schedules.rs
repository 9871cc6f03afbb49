//! Random schedules: callers that come, wait, cancel and leave, caches that are too small, and steps that fail or
//! panic. Each result is compared with that of its sequence alone.
//!
//! `ERANK_SCHEDULES` is the number of schedules, 1,000 by default.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// How a caller ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It waits for all results.
    Waits,
    /// It cancels before this step.
    Cancels(usize),
    /// It leaves before this step.
    Leaves(usize),
    /// Its deadline has passed when it comes.
    Late,
}

#[derive(Debug, Clone)]
struct PlannedCaller {
    /// The step before which the caller comes.
    arrival: usize,
    documents: Vec<PlannedDocument>,
    samples: usize,
    end: End,
}

/// A prompt. Prompts with the same `common` number share a beginning.
#[derive(Debug, Clone, Copy)]
struct PlannedDocument {
    common: u32,
    common_length: usize,
    own_length: usize,
}

#[derive(Debug, Clone)]
struct Schedule {
    limits: Limits,
    mode: Mode,
    callers: Vec<PlannedCaller>,
    faults: Vec<Fault>,
}

/// A forward pass that goes wrong.
#[derive(Debug, Clone, Copy)]
struct Fault {
    pass: usize,
    panics: bool,
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let limits = (7..60_usize, 1..80_usize, 1..10_usize, 0..9_usize).prop_map(
        |(blocks, max_num_batched_tokens, max_num_seqs, speculative_tokens)| Limits {
            blocks,
            max_num_batched_tokens,
            max_num_seqs,
            speculative_tokens,
        },
    );
    let mode = prop_oneof![
        1 => Just(Mode::AnswerOnly),
        3 => (0..40_usize).prop_map(|max_tokens| Mode::Reason { max_tokens }),
    ];
    let end = prop_oneof![
        6 => Just(End::Waits),
        2 => (0..60_usize).prop_map(End::Cancels),
        2 => (0..60_usize).prop_map(End::Leaves),
        1 => Just(End::Late),
    ];
    let document =
        (0..3_u32, 0..40_usize, 1..30_usize).prop_map(|(common, common_length, own_length)| {
            PlannedDocument { common, common_length, own_length }
        });
    let caller = (0..40_usize, vec(document, 0..7), 1..3_usize, end).prop_map(
        |(arrival, documents, samples, end)| PlannedCaller { arrival, documents, samples, end },
    );
    let fault = (0..60_usize, any::<bool>()).prop_map(|(pass, panics)| Fault { pass, panics });
    let faults = prop_oneof![3 => Just(Vec::new()), 1 => vec(fault, 1..3)];
    (limits, mode, vec(caller, 1..5), faults).prop_map(|(limits, mode, callers, faults)| Schedule {
        limits,
        mode,
        callers,
        faults,
    })
}

static THREADS: LazyLock<Arc<rayon::ThreadPool>> = LazyLock::new(|| {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads"))
});

fn model() -> TokenCacheModel {
    static ALPHABET: LazyLock<Vec<u32>> = LazyLock::new(|| encode(&TOKENIZER, "abcdefg"));
    TokenCacheModel { slots: Mutex::default(), alphabet: ALPHABET.clone(), poison: None }
}

/// A [`TokenCacheModel`] with faults.
struct FaultyModel {
    model: TokenCacheModel,
    faults: Vec<Fault>,
    passes: AtomicUsize,
}

impl Model for FaultyModel {
    fn shape(&self) -> ModelShape {
        self.model.shape()
    }

    fn new_cache(&self, blocks: usize) -> Result<KvCache, Cause> {
        self.model.new_cache(blocks)
    }

    fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> Result<Vec<f32>, Cause> {
        let pass = self.passes.fetch_add(1, Ordering::Relaxed);
        match self.faults.iter().find(|fault| fault.pass == pass) {
            // No message of the panic is printed.
            Some(Fault { panics: true, .. }) => resume_unwind(Box::new("planned")),
            Some(_) => Err("planned".into()),
            None => self.model.forward(rows, cache),
        }
    }
}

/// Returns a sequence's completion without a scheduler: token after token, without cache, chunks and speculation.
fn completion_alone(mut sequence: Sequence) -> Completion {
    let model = model();
    loop {
        let mut logits = vec![0.0; VOCABULARY];
        logits[model.next_token(sequence.tokens()) as usize] = 9.0;
        if let (Some(result), _) = sequence.advance(&[], &logits) {
            return result.expect("finite logits");
        }
    }
}

/// A caller that has come.
struct Client {
    cancellation: CancellationToken,
    events: Receiver<Event>,
    /// The completions alone, by document and sample.
    expected: HashMap<(usize, usize), Completion>,
    /// The number of results that each document still lacks.
    missing: HashMap<usize, usize>,
    completed: HashSet<(usize, usize)>,
    has_cancelled: bool,
    has_failed: bool,
    has_left: bool,
}

impl Client {
    /// Checks the new events. `has_failed` tells whether a step failed meanwhile.
    fn read(&mut self, has_failed: bool) {
        for event in self.events.try_iter() {
            assert!(!self.has_failed, "an event follows a failure");
            match event {
                Event::Completed(index, result) => {
                    let missing = self.missing.get_mut(&index).expect("a document of the caller");
                    *missing = missing.checked_sub(1).expect("one result for each sample");
                    match result {
                        Ok(completion) => {
                            let key = (index, completion.sample);
                            assert_eq!(completion, self.expected[&key]);
                            assert!(self.completed.insert(key), "{key:?} is reported twice");
                        }
                        Err(DocumentError::Cancelled) => {
                            assert!(self.has_cancelled, "nobody cancelled document {index}");
                        }
                        Err(error) => panic!("document {index}: {error}"),
                    }
                }
                Event::Failed(_) => {
                    assert!(has_failed, "no step failed");
                    self.has_failed = true;
                }
                Event::Advanced(_) | Event::Text(_) => {}
            }
        }
    }

    fn assert_complete(&self) {
        assert!(self.missing.values().all(|missing| *missing == 0), "results are missing");
        assert!(self.has_cancelled || self.completed.len() == self.expected.len());
    }
}

impl Schedule {
    fn run(&self) {
        let faults = self.faults.clone();
        let model = FaultyModel { model: model(), faults, passes: AtomicUsize::default() };
        let threads = Arc::clone(&THREADS);
        let scheduler = Scheduler::new(Arc::new(model), threads, self.limits, Arc::default());
        let mut context = context(self.mode);
        context.max_tokens = context.max_tokens.min(self.limits.blocks * BLOCK_TOKENS);
        let mut fixture =
            Fixture { scheduler: scheduler.expect("memory"), context: Arc::new(context) };
        let mut clients: Vec<Option<Client>> = self.callers.iter().map(|_| None).collect();
        for step in 0.. {
            assert!(step < 20_000, "the scheduler makes no progress");
            for (id, (caller, client)) in self.callers.iter().zip(&mut clients).enumerate() {
                caller.act(step, id as CallerId, client, &mut fixture);
            }
            let has_failed = fixture.step();
            let present = clients.iter_mut().flatten().filter(|client| !client.has_left);
            present.for_each(|client| client.read(has_failed));
            if fixture.scheduler.is_idle() && clients.iter().all(Option::is_some) {
                break;
            }
        }
        fixture.assert_no_block_is_in_use();
        let rest = clients.iter().flatten().filter(|client| !client.has_left && !client.has_failed);
        rest.for_each(Client::assert_complete);
    }
}

impl PlannedCaller {
    /// Does what the caller does before a step.
    fn act(&self, step: usize, id: CallerId, client: &mut Option<Client>, fixture: &mut Fixture) {
        if step == self.arrival {
            *client = Some(self.join(fixture, id));
        }
        let Some(client) = client else { return };
        match self.end {
            End::Cancels(at) if at <= step => {
                client.cancellation.cancel();
                client.has_cancelled = true;
            }
            End::Leaves(at) if at <= step && !client.has_left => {
                client.has_left = true;
                fixture.scheduler.remove_caller(id);
            }
            _ => {}
        }
    }

    fn join(&self, fixture: &mut Fixture, id: CallerId) -> Client {
        let (sender, events) = channel();
        let is_late = matches!(self.end, End::Late);
        let cancellation = match is_late {
            true => CancellationToken::with_deadline(Instant::now()),
            false => CancellationToken::new(),
        };
        fixture.scheduler.add_caller(Caller::new(id, cancellation.clone(), sender));
        let mut client = Client {
            cancellation,
            events,
            expected: HashMap::new(),
            missing: HashMap::new(),
            completed: HashSet::new(),
            has_cancelled: is_late,
            has_failed: false,
            has_left: false,
        };
        for (index, document) in self.documents.iter().enumerate() {
            let PlannedDocument { common, common_length, own_length } = *document;
            let own = prompt(10 + index as u32, own_length);
            let ids = [prompt(common, common_length), own].concat();
            for sample in 0..self.samples {
                let ids = ids.clone();
                let prompt =
                    EncodedPrompt { ids, query_truncated: false, document_truncated: false };
                let new =
                    |prompt| Sequence::new(index, sample, prompt, Arc::clone(&fixture.context));
                // A prompt that is too long for the cache never reaches the scheduler.
                let (Ok(alone), Ok(sequence)) = (new(prompt.clone()), new(prompt)) else {
                    continue;
                };
                client.expected.insert((index, sample), completion_alone(alone));
                *client.missing.entry(index).or_default() += 1;
                fixture.scheduler.submit(id, sequence);
            }
        }
        client
    }
}

impl Fixture {
    /// Runs a step as the engine's thread does, and checks the scheduler. Returns whether the step failed.
    fn step(&mut self) -> bool {
        self.scheduler.drop_cancelled();
        self.scheduler.admit();
        // If a sequence waits for a prefix, and the sequence that computes the prefix is then preempted, the former is
        // admitted one step later.
        self.scheduler.admit();
        self.assert_fair();
        let (steps, has_work) = (self.scheduler.counters.steps, !self.scheduler.running.is_empty());
        let result = catch_unwind(AssertUnwindSafe(|| self.scheduler.step()));
        if result.is_err() {
            self.scheduler.reset("a step panicked").expect("memory");
        }
        self.assert_blocks_have_one_owner();
        has_work && self.scheduler.counters.steps == steps
    }

    /// Asserts that no caller waits without a running sequence while another has several. A sequence may wait for a
    /// prefix that is being computed.
    fn assert_fair(&self) {
        let Scheduler { callers, running, prefixes, limits, .. } = &self.scheduler;
        assert!(running.len() <= limits.max_num_seqs, "too many sequences run");
        let most = callers.iter().map(|caller| self.scheduler.running_of(caller.id)).max();
        for caller in callers {
            let mut waiting = caller.waiting.iter();
            let can_run =
                waiting.any(|sequence| !prefixes.find(sequence.shareable()).next_is_computing);
            let is_starved = can_run && self.scheduler.running_of(caller.id) == 0;
            assert!(!is_starved || most <= Some(1), "caller {} is starved", caller.id);
        }
    }

    fn assert_blocks_have_one_owner(&self) {
        let Scheduler { running, allocator, prefixes, .. } = &self.scheduler;
        let split = |running: &Running| {
            let (shared, own) = running.blocks.split_at(running.path.len());
            (shared.to_vec(), own.to_vec())
        };
        let (shared, own): (Vec<_>, Vec<_>) = running.iter().map(split).unzip();
        let (shared, own) = (shared.concat(), own.concat());
        let shared: HashSet<BlockId> = shared.into_iter().collect();
        let owned: HashSet<BlockId> = own.iter().copied().collect();
        assert_eq!(owned.len(), own.len(), "two sequences own one block");
        assert!(owned.is_disjoint(&shared), "a block is owned and shared");
        let unused = allocator.free_blocks() + prefixes.evictable_blocks();
        assert_eq!(owned.len() + shared.len() + unused, allocator.blocks(), "blocks were lost");
    }
}

#[test]
fn random_schedules_lose_nothing_and_change_no_result() {
    let cases = std::env::var("ERANK_SCHEDULES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(1000);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // On a thread of the pool, a step needs no switch of threads.
    let result = THREADS.install(|| {
        TestRunner::new(config).run(&schedules(), |schedule| {
            schedule.run();
            Ok(())
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

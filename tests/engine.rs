//! Tests the engine with the bundled model: continuous batching, prefix cache, sampling, cancellation and
//! reproducible bits.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use erank_candle::internals::instruction_sets;
use erank_candle::{CandleBackend, CandleSettings};
use erank_core::{
    AsyncReranker, CancellationToken, Cascade, FinishReason, Mode, PromptTemplate, Request,
    Reranker, Sampling, ScoringBackend, ScoringOptions, Sink,
};
use erank_core::{Completion, DocumentError, Job, TokenCounts};
use erank_tests::local::{
    BLOCK_BYTES, DOCUMENTS, INSTRUCTION, QUERY, REASON, completions, idle, options, run, samples,
    tiny, tiny_with,
};
use proptest::prelude::*;

/// A query whose tokens fill several cache blocks.
const LONG_QUERY: &str = "jet noise measured at night in the inner city, where engine oil is cheap, \
    trams are loud, the council meets on Tuesday, bread is made with salt, flour, yeast and water, \
    pilots sleep badly, microphones stand at several distances, turbines whine, neighbours complain, \
    and reports about aircraft, airports, runways, schedules and insulation fill whole shelves";

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("not 0")
}

fn sampled(temperature: f32, samples: usize, seed: u64) -> ScoringOptions {
    let mut options = options(REASON);
    options.sampling = Sampling::with_temperature(temperature);
    options.sampling.seed = seed;
    options.samples = samples;
    options
}

/// Returns a strategy for the numbers of tokens in a step, sequences, speculative tokens, cache blocks and
/// threads.
fn settings() -> impl Strategy<Value = (usize, usize, usize, usize, usize)> {
    (1..40usize, 1..9usize, 0..12usize, 17..60usize, 1..4usize)
}

/// Returns the bundled model with default settings, for each instruction set of the machine.
fn references() -> &'static [(&'static str, CandleBackend)] {
    static REFERENCES: OnceLock<Vec<(&str, CandleBackend)>> = OnceLock::new();
    REFERENCES.get_or_init(|| {
        let with = |set: &'static str| {
            (set, tiny_with(|settings| settings.instruction_set = Some(set.to_owned())))
        };
        instruction_sets().into_iter().map(with).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Every log-probability equals that of a call with one document and default settings.
    #[test]
    fn completions_have_the_same_bits_with_any_settings_and_callers(
        (max_num_batched_tokens, sequences, speculative_tokens, blocks, threads) in settings(),
        callers in proptest::collection::vec(
            (proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 1..6), 0..4usize),
            1..4,
        ),
    ) {
        let modes = [
            options(REASON),
            options(Mode::AnswerOnly),
            options(Mode::Reason { max_tokens: 5 }),
            sampled(0.9, 1, 3),
        ];
        for (set, reference) in references() {
            let backend = tiny_with(|settings: &mut CandleSettings| {
                settings.instruction_set = Some((*set).to_owned());
                settings.max_num_batched_tokens = number(max_num_batched_tokens);
                settings.max_num_seqs = number(sequences);
                settings.speculative_tokens = speculative_tokens;
                settings.kv_cache_memory_bytes = Some(blocks * BLOCK_BYTES);
                settings.threads = Some(number(threads));
            });
            std::thread::scope(|scope| {
                for (documents, mode) in &callers {
                    let (backend, mode) = (&backend, modes[*mode]);
                    scope.spawn(move || {
                        let texts: Vec<&str> =
                            documents.iter().map(|index| DOCUMENTS[*index]).collect();
                        let found = completions(backend, &texts, mode);
                        for (text, found) in texts.iter().zip(found) {
                            let alone = completions(reference, &[text], mode);
                            assert_eq!(found, alone[0], "{text}, {mode:?}, {set}");
                        }
                    });
                }
            });
            idle(&backend);
        }
    }
}

#[test]
fn prefix_cache_serves_the_next_page_of_a_query() {
    let backend = tiny_with(|_| {});
    let page = |backend, documents| samples(backend, LONG_QUERY, documents, options(REASON));
    let cold = page(&backend, &DOCUMENTS[..3]);
    let first = idle(&backend);
    assert!(first.prefix_blocks > 0, "{first:?}");
    let warm = page(&backend, &DOCUMENTS[3..]);
    let second = idle(&backend);
    assert!(second.cached_tokens > first.cached_tokens, "{second:?}");
    assert_eq!(warm, page(tiny(), &DOCUMENTS[3..]));
    // The first page is ranked again. Only the last blocks of its prompts are computed.
    assert_eq!(page(&backend, &DOCUMENTS[..3]), cold);
    let third = idle(&backend);
    let computed = third.prompt_tokens - second.prompt_tokens;
    let read = third.cached_tokens - second.cached_tokens;
    assert!(read > 2 * computed, "{read} from the cache, {computed} computed");
}

/// All prompts of a job arrive at the same time.
#[test]
fn shared_prefix_of_a_job_is_computed_once() {
    let backend = tiny_with(|_| {});
    let template = PromptTemplate::erank();
    let prompt = template.bind(INSTRUCTION, LONG_QUERY);
    let prefix = backend.encode(&prompt, "", &options(REASON)).expect("a prompt").1.ids.len();
    let documents = DOCUMENTS.repeat(5);
    samples(&backend, LONG_QUERY, &documents, options(Mode::AnswerOnly));
    let statistics = idle(&backend);
    let shared = (prefix / 16 - 2) * 16 * (documents.len() - 1);
    assert!(shared > 0 && statistics.cached_tokens as usize >= shared, "{statistics:?}");
}

#[test]
fn answer_only_takes_one_step() {
    let backend = tiny_with(|_| {});
    completions(&backend, &DOCUMENTS[..1], options(Mode::AnswerOnly));
    // The step that reads the prompt also probes for the second digit of "10".
    assert_eq!(idle(&backend).steps, 1);
}

#[test]
fn speculative_tokens_save_steps_and_keep_the_output() {
    // The bundled model spells the query's words, so words with the same beginning are often guessed right.
    let query = "xylophone xylograph xylem xylitol xylene zebra zealot zenith zephyr zeppelin";
    let with = |speculative_tokens, document| {
        let backend = tiny_with(|settings| settings.speculative_tokens = speculative_tokens);
        let found = samples(&backend, query, &[document], options(REASON));
        (found, idle(&backend))
    };
    for document in &DOCUMENTS[..2] {
        let (plain, without) = with(0, document);
        // The only guess is the probe for the answer's second digit.
        assert_eq!((without.drafted_tokens, without.accepted_tokens), (1, 1));
        for speculative_tokens in [2, 8, 32] {
            let (guessed, statistics) = with(speculative_tokens, document);
            assert_eq!(guessed, plain);
            assert!(statistics.accepted_tokens > without.accepted_tokens, "{statistics:?}");
            assert!(statistics.accepted_tokens <= statistics.drafted_tokens, "{statistics:?}");
            assert!(statistics.steps < without.steps, "{statistics:?}, not {}", without.steps);
        }
    }
}

#[test]
fn samples_share_their_prompt_and_depend_only_on_the_seed() {
    let backend = tiny_with(|_| {});
    let three = samples(&backend, LONG_QUERY, &DOCUMENTS, sampled(1.5, 3, 1));
    let numbers: Vec<usize> = three[0].iter().map(|completion| completion.sample).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let texts = |samples: &[Vec<Completion>]| -> Vec<String> {
        samples.iter().flatten().map(|completion| completion.text.clone()).collect()
    };
    assert!(three.iter().any(|of| of.iter().any(|sample| sample.text != of[0].text)));
    assert_ne!(
        texts(&three),
        texts(&samples(&backend, LONG_QUERY, &DOCUMENTS, sampled(1.5, 3, 2)))
    );
    // In another batch, the first two samples are the same.
    let alone = samples(tiny(), LONG_QUERY, &DOCUMENTS[2..3], sampled(1.5, 2, 1));
    assert_eq!(alone[0], three[2][..2]);
    // Two of three prompts came from the cache, except their last blocks.
    let statistics = idle(&backend);
    assert!(statistics.cached_tokens > statistics.prompt_tokens, "{statistics:?}");

    let reranker = Reranker::builder(&backend)
        .sampling(Sampling::with_temperature(1.0))
        .samples(4)
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new(QUERY, DOCUMENTS)).expect("a ranking");
    assert_eq!(ranking.documents[0].index, 0);
    for document in &ranking.documents {
        assert_eq!(document.samples.len(), 4);
        let mean = document.samples.iter().map(|sample| sample.score).sum::<f64>() / 4.0;
        assert_eq!(document.score, mean);
        assert!(document.answer.entropy.is_some_and(|entropy| entropy >= 0.0));
    }
}

#[test]
fn presence_penalty_prevents_repeated_tokens() {
    let mut options = options(REASON);
    options.sampling.presence_penalty = 50.0;
    let text = &completions(tiny(), &[DOCUMENTS[0]], options)[0];
    let mut pieces: Vec<&str> = text.tokens.iter().map(|t| &text.text[t.bytes.clone()]).collect();
    let count = pieces.len();
    pieces.sort_unstable();
    pieces.dedup();
    // No token occurs twice, but one pair of tokens may have the same text.
    assert!(pieces.len() + 1 >= count, "{}", text.text);
}

#[test]
fn cascade_reads_the_prompts_of_its_second_pass_from_the_cache() {
    let backend = tiny_with(|_| {});
    let plain = Reranker::builder(tiny()).build().expect("valid");
    let cascade = Reranker::builder(&backend).cascade(Cascade::best(6)).build().expect("valid");
    let request = Request::new(LONG_QUERY, DOCUMENTS);
    let mut expected = plain.rerank(&request).expect("a ranking").documents;
    let mut found = cascade.rerank(&request).expect("a ranking").documents;
    // The model thought about all documents, so only the order of ties can differ.
    assert!(found.is_sorted_by(|a, b| a.score >= b.score));
    expected.sort_by_key(|document| document.index);
    found.sort_by_key(|document| document.index);
    assert_eq!(found, expected);
    let statistics = idle(&backend);
    assert!(statistics.cached_tokens > statistics.prompt_tokens, "{statistics:?}");

    let best = Reranker::builder(&backend).cascade(Cascade::best(2)).build().expect("valid");
    let ranking = best.rerank(&request).expect("a ranking");
    let modes: Vec<bool> = ranking.documents.iter().map(|d| d.mode.is_reason()).collect();
    assert_eq!(modes, [true, true, false, false, false, false]);
}

#[test]
fn small_request_is_scheduled_while_a_large_one_waits() {
    struct Counting<'a>(&'a AtomicUsize);
    impl Sink for Counting<'_> {
        fn completed(&mut self, _: usize, outcome: Result<Completion, DocumentError>) {
            outcome.expect("a completion");
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    // The large request alone fills all four sequences.
    let backend = tiny_with(|settings| settings.max_num_seqs = number(4));
    let large = DOCUMENTS.repeat(100);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let template = PromptTemplate::erank();
            let prompt = template.bind(INSTRUCTION, QUERY);
            let job = Job::new(prompt, &large).with_options(options(REASON));
            backend.score(&job, &mut Counting(&done)).expect("a run");
        });
        while backend.statistics().running < 4 {
            std::thread::yield_now();
        }
        let before = done.load(Ordering::Relaxed);
        completions(&backend, &DOCUMENTS[..2], options(REASON));
        let meanwhile = done.load(Ordering::Relaxed) - before;
        // The two documents get half of the sequences. So while they run, the large request completes some
        // four documents.
        assert!(meanwhile < 12, "{meanwhile} documents of the large request were done first");
    });
    assert_eq!(done.load(Ordering::Relaxed), large.len());
}

#[test]
fn cancellation_frees_the_sequences_of_its_job_only() {
    let backend = tiny_with(|settings| settings.kv_cache_memory_bytes = Some(60 * BLOCK_BYTES));
    let expected = completions(tiny(), &DOCUMENTS, options(REASON));
    let many = DOCUMENTS.repeat(200);
    std::thread::scope(|scope| {
        let cancelled = scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_millis(30);
            let cancellation = CancellationToken::with_deadline(deadline);
            run(&backend, &many, options(REASON), cancellation).0
        });
        for _ in 0..3 {
            assert_eq!(completions(&backend, &DOCUMENTS, options(REASON)), expected);
        }
        let outcomes = cancelled.join().expect("no panic");
        assert!(outcomes.iter().any(|o| matches!(o, Err(DocumentError::Cancelled))));
        for (index, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(completion) => assert_eq!(completion, &expected[index % DOCUMENTS.len()]),
                Err(error) => assert!(matches!(error, DocumentError::Cancelled), "{error}"),
            }
        }
    });
    let statistics = idle(&backend);
    assert_eq!(statistics.waiting, 0);
    assert_eq!(completions(&backend, &DOCUMENTS, options(REASON)), expected);
}

/// The engine drops the sequences at its next step.
#[test]
fn dropped_future_frees_its_sequences() {
    let backend = Arc::new(tiny_with(|settings| settings.max_num_seqs = number(4)));
    let ((send_done, done), (release, wait)) = (channel(), channel());
    let wait = Mutex::new(Some(wait));
    let reranker = Reranker::builder(Arc::clone(&backend))
        .on_progress(move |progress| {
            // When the first document is done, this thread waits until the future is dropped.
            if progress.documents_done > 0
                && let Some(wait) = wait.lock().expect("no panic").take()
            {
                send_done.send(()).expect("the test waits");
                wait.recv().expect("the test releases the thread");
            }
            ControlFlow::Continue(())
        })
        .build()
        .expect("valid");
    let reranker = AsyncReranker::new(reranker).expect("threads");
    let many = Request::new(QUERY, DOCUMENTS.repeat(100));
    let future = reranker.try_rerank(many).expect("the queue is empty");
    done.recv_timeout(Duration::from_secs(60)).expect("a document is done");
    drop(future);
    release.send(()).expect("the thread waits");
    // The engine had already received twice as many documents as run at once.
    let completed = idle(&backend).completed;
    assert!(completed <= 8, "{completed}");

    let next = reranker.rerank(Request::new(QUERY, DOCUMENTS));
    let found = pollster::block_on(next).expect("a ranking").documents;
    let expected = Reranker::builder(tiny()).build().expect("valid");
    assert_eq!(found, expected.rerank(&Request::new(QUERY, DOCUMENTS)).expect("one").documents);
}

#[test]
fn dropped_backend_joins_its_thread() {
    let backend = tiny_with(|_| {});
    completions(&backend, &DOCUMENTS[..1], options(REASON));
    let (sender, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Joins the engine's thread.
        drop(backend);
        sender.send(()).expect("a receiver");
    });
    dropped.recv_timeout(Duration::from_secs(10)).expect("the thread ends");
}

#[test]
fn thousand_documents_use_cache_blocks_only_while_they_run() {
    let blocks = 200;
    let backend = tiny_with(|settings| settings.kv_cache_memory_bytes = Some(blocks * BLOCK_BYTES));
    let expected = completions(tiny(), &DOCUMENTS, options(Mode::AnswerOnly));
    let many: Vec<&str> = DOCUMENTS.iter().copied().cycle().take(1000).collect();
    // Blocks of the longest prompt with its answer.
    let prompts = expected.iter().map(|completion| completion.usage.prompt + 20);
    let longest = prompts.max().expect("some").div_ceil(16);
    let is_over = AtomicBool::new(false);
    let (mut samples, mut most_used) = (0, 0);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let found = completions(&backend, &many, options(Mode::AnswerOnly));
            is_over.store(true, Ordering::Relaxed);
            found
        });
        while !is_over.load(Ordering::Relaxed) {
            let now = backend.statistics();
            assert!(now.used_blocks <= now.running * longest, "{now:?}");
            assert!(now.used_blocks + now.prefix_blocks <= blocks, "{now:?}");
            // A caller tokenizes at most twice as many documents as may run.
            assert!(now.waiting <= 2 * 64, "{now:?}");
            samples += usize::from(now.running > 0);
            most_used = most_used.max(now.used_blocks);
            std::thread::yield_now();
        }
        for (index, found) in run.join().expect("no panic").iter().enumerate() {
            assert_eq!(found, &expected[index % DOCUMENTS.len()]);
            assert_eq!(found.finish_reason, FinishReason::Answered);
        }
    });
    assert!(samples > 10 && most_used > 0, "sampled {samples} times while running");
    let statistics = idle(&backend);
    assert_eq!((statistics.total_blocks, statistics.completed), (blocks, 1000));
}

#[test]
fn cancellation_takes_effect_before_the_next_step() {
    /// Cancels its job after 20 events, and records the number of steps until then.
    struct Cancelling<'a> {
        backend: &'a CandleBackend,
        cancellation: CancellationToken,
        events: usize,
        steps: Option<u64>,
    }
    impl Sink for Cancelling<'_> {
        fn completed(&mut self, _: usize, _: Result<Completion, DocumentError>) {}

        fn tokens_processed(&mut self, _: TokenCounts) {
            self.events += 1;
            if self.events == 20 {
                self.cancellation.cancel();
                self.steps = Some(self.backend.statistics().steps);
            }
        }
    }
    let backend = tiny_with(|_| {});
    let (cancellation, many) = (CancellationToken::new(), DOCUMENTS.repeat(100));
    let template = PromptTemplate::erank();
    let job = Job::new(template.bind(INSTRUCTION, QUERY), &many)
        .with_options(options(REASON))
        .with_cancellation(cancellation.clone());
    let mut sink = Cancelling { backend: &backend, cancellation, events: 0, steps: None };
    backend.score(&job, &mut sink).expect("a run");
    let before = sink.steps.expect("some steps");
    let all = idle(&backend).steps;
    // The step that was being computed still ends.
    assert!(all <= before + 1, "{all} steps, cancelled after {before}");
}

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::cascade::{Cascade, FirstPass};
use crate::completion::{Completion, TokenCounts};
use crate::distribution::AnswerDistribution;
use crate::options::{Mode, Sampling};
use crate::prompt::PromptTemplate;
use crate::ranking::{DocumentFailure, RankedDocument, Ranking};
use crate::request::Request;
use crate::reranker::Reranker;
use crate::reranker_builder::RerankerBuilder;
use crate::score::ScoreKind;
use crate::testing::{ScriptedBackend, answered};

/// Returns windows of `tokens` tokens without overlap.
fn disjoint(tokens: usize) -> Windows {
    Windows { overlap: 0, ..Windows::with_tokens(tokens) }
}

fn words(text: &str, count: usize) -> Result<Vec<usize>, Infallible> {
    Ok(ScriptedBackend::new([]).token_ends(text, count).expect("it counts words"))
}

/// Returns the ends of tokens of one byte each, as far as they are character boundaries.
fn bytes(text: &str, count: usize) -> Result<Vec<usize>, Infallible> {
    Ok((1..=text.len()).take(count).map(|end| text.floor_char_boundary(end)).collect())
}

fn texts<'a>(windows: &Windows, text: &'a str) -> Vec<&'a str> {
    let Ok(split) = windows.split(text, words);
    split.windows.into_iter().map(|bytes| &text[bytes]).collect()
}

#[test]
fn windows_end_at_sentences_then_words_then_tokens() {
    let text = "One two three. Four five six seven. Eight";
    assert_eq!(texts(&disjoint(4), text), ["One two three. ", "Four five six seven.", " Eight"]);
    // The first sentence ends too early for windows of 6 tokens.
    assert_eq!(texts(&disjoint(6), text), ["One two three. Four five six", " seven. Eight"]);
    assert_eq!(
        texts(&disjoint(4), "one two three\n\nfour five six"),
        ["one two three\n\n", "four five six"]
    );
    assert_eq!(texts(&disjoint(4), "a \"b c.\" d e f"), ["a \"b c.\" ", "d e f"]);
    let Ok(split) = disjoint(12).split("ひと。ふた。みよ", bytes);
    let ends: Vec<usize> = split.windows.iter().map(|window| window.end).collect();
    assert_eq!(ends, ["ひと。".len(), "ひと。ふた。".len(), "ひと。ふた。みよ".len()]);
    // A text without any border, and a character with more tokens than a window.
    let Ok(split) = disjoint(3).split("aaaaaaaa", bytes);
    assert_eq!(split.windows, [0..3, 3..6, 6..8]);
    let Ok(split) = disjoint(2).split("a🦀🦀", bytes);
    assert_eq!(split.windows, [0..1, 1..5, 5..9]);
    assert!(split.is_complete);
}

#[test]
fn windows_overlap_by_whole_sentences_if_near() {
    let text = "a b c d e f g. h i j k l m n o p q r s t";
    let windows = Windows { overlap: 4, ..Windows::with_tokens(12) };
    // A sentence begins with the fifth token before the end of the first window.
    assert_eq!(
        texts(&windows, text),
        ["a b c d e f g. h i j k l", "h i j k l m n o p q r s", "p q r s t"]
    );
}

#[test]
fn blank_windows_are_left_out() {
    let text = format!("a{}b", " ".repeat(9));
    let Ok(split) = disjoint(3).split(&text, bytes);
    assert_eq!(split.windows, [0..3, 3..6, 6..9, 9..11]);
    assert_eq!(split.without_blank(&text).windows, [0..3, 9..11]);
    let blank = Split { windows: vec![0..3, 3..6], is_complete: false };
    let kept = blank.without_blank("          b").windows;
    assert_eq!((kept.len(), kept.first()), (1, Some(&(0..3))));
}

#[test]
fn split_reads_only_the_beginning_of_a_huge_text() {
    let text = "honey ".repeat(1_000_000);
    let mut read = 0;
    let windows = Windows { max_windows: 3, ..Windows::with_tokens(16) };
    let Ok(split) = windows.split(&text, |part, count| {
        read += part.len();
        words(part, count)
    });
    assert_eq!((split.windows.len(), split.is_complete), (3, false));
    assert!(read <= 3 * 17 * 8, "{read} bytes");
}

#[test]
fn split_survives_any_numbers_of_a_faulty_backend() {
    let text = "é ".repeat(100);
    for ends in [vec![0; 5], vec![usize::MAX; 5], vec![9, 3, 1, 0, 7]] {
        let windows = Windows { overlap: 2, ..Windows::with_tokens(4) };
        let Ok(split) = windows.split(&text, |_, _| Ok::<_, Infallible>(ends.clone()));
        check(&text, &windows, &split);
    }
}

/// Checks that windows cover a text from its beginning without gaps, and advance.
fn check(text: &str, windows: &Windows, split: &Split) {
    let ranges = &split.windows;
    assert_eq!(ranges[0].start, 0);
    assert!(ranges.len() <= windows.max_windows);
    for bytes in ranges {
        assert!(
            text.get(bytes.clone()).is_some_and(|window| !window.is_empty() || text.is_empty())
        );
    }
    for pair in ranges.windows(2) {
        let [a, b] = pair else { unreachable!("pairs") };
        assert!(a.start < b.start && b.start <= a.end && a.end < b.end, "{pair:?}");
    }
    let end = ranges.last().map_or(0, |bytes| bytes.end);
    assert_eq!(split.is_complete, end == text.len());
    assert!(split.is_complete || ranges.len() == windows.max_windows);
}

proptest! {
    #[test]
    fn windows_cover_the_text_and_overlap_as_asked(
        text in "([a-c]{1,4}[.!]? ?|\n|é|。|🦀|\\)){0,120}",
        (tokens, overlap) in (1_usize..40).prop_flat_map(|tokens| (Just(tokens), 0..=tokens / 2)),
        max_windows in 1_usize..12,
    ) {
        let windows = Windows { overlap, max_windows, ..Windows::with_tokens(tokens) };
        let Ok(split) = windows.split(&text, bytes);
        check(&text, &windows, &split);
        for window in &split.windows {
            // A window of one character may have more tokens.
            let window = &text[window.clone()];
            prop_assert!(window.len() <= tokens || window.chars().count() == 1, "{window:?}");
        }

        let Ok(split) = windows.split(&text, words);
        check(&text, &windows, &split);
        let count = |bytes: Range<usize>| text[bytes].split_whitespace().count();
        for window in &split.windows {
            prop_assert!(count(window.clone()) <= tokens);
        }
        for pair in split.windows.windows(2) {
            // The first window may end within a word, after "。".
            let common = count(pair[1].start..pair[0].end);
            prop_assert!((overlap..=overlap + tokens / 8 + 1).contains(&common), "{common}");
        }
        let Ok(all) = words(&text, usize::MAX);
        if all.len() <= tokens {
            prop_assert_eq!(split, Split::whole(&text));
        }
    }
}

#[test]
fn build_rejects_invalid_windows() {
    let error = |windows: Windows| {
        Reranker::builder(ScriptedBackend::new([])).windows(windows).build().err()
    };
    assert_eq!(error(Windows::default()), None);
    let none = Windows::with_tokens(0);
    assert_eq!(error(none), Some(ConfigError::Zero("the number of tokens of a window")));
    let none = Windows { max_windows: 0, ..Windows::default() };
    assert_eq!(error(none), Some(ConfigError::Zero("max_windows")));
    let none = Windows { aggregation: Aggregation::MeanOfBest(0), ..Windows::default() };
    assert_eq!(error(none), Some(ConfigError::Zero("the number of best windows")));
    let overlap = Windows { overlap: 6, ..Windows::with_tokens(10) };
    assert_eq!(error(overlap), Some(ConfigError::WindowOverlap { overlap: 6, tokens: 10 }));
    let long = Some(ConfigError::WindowTokens { tokens: 2049, limit: 2048 });
    assert_eq!(error(Windows::with_tokens(2049)), long);

    // The limits of both passes apply.
    let options = ScoringOptions { max_document_tokens: 99, ..ScoringOptions::default() };
    let template = PromptTemplate::qwen3_reranker();
    let first_pass = FirstPass::new(ScriptedBackend::new([]), template).with_options(options);
    let builder = Reranker::builder(ScriptedBackend::new([])).cascade(Cascade::best(1));
    let built = builder.first_pass(first_pass).windows(Windows::with_tokens(100)).build();
    assert_eq!(built.err(), Some(ConfigError::WindowTokens { tokens: 100, limit: 99 }));
}

/// A backend whose answer is the number of times that a document contains "jet". It fails for "broken", and writes no
/// second sample for "terse". It cannot tokenize "unreadable". Its tokens are words.
#[derive(Default)]
struct Jets {
    /// The documents of each job, and whether the model thinks.
    jobs: Mutex<Vec<(bool, Vec<String>)>>,
}

impl ScoringBackend for Jets {
    fn name(&self) -> &str {
        "jets"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let documents: Vec<String> = job.documents.iter().map(ToString::to_string).collect();
        self.jobs.lock().expect("no panic").push((job.options.mode.is_reason(), documents));
        for (index, document) in job.documents.iter().enumerate().rev() {
            let jets = document.matches("jet").count();
            for sample in 0..job.options.samples {
                let mut completion = answered(jets as u32, 0.9);
                (completion.sample, completion.usage) = (sample, TokenCounts::new(10, 1));
                let mut probabilities = [0.01; 11];
                probabilities[jets] = 0.9;
                completion.answer_distribution =
                    AnswerDistribution::new(probabilities.map(f64::ln)).ok();
                let outcome = match document {
                    _ if job.cancellation.is_cancelled() => Err(DocumentError::Cancelled),
                    text if text.contains("down") => {
                        return Err(BackendError::Unavailable("no server".into()));
                    }
                    text if text.contains("broken") => {
                        Err(DocumentError::Backend("on purpose".into()))
                    }
                    text if text.contains("terse") && sample == 1 => Ok(Completion::new("")),
                    _ => Ok(completion),
                };
                sink.completed(index, outcome);
            }
        }
        Ok(())
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        match text.contains("unreadable") {
            true => Err(BackendError::Failed("on purpose".into())),
            false => ScriptedBackend::new([]).token_ends(text, max_tokens),
        }
    }
}

fn rerank(builder: RerankerBuilder<impl ScoringBackend>, documents: &[&str]) -> Ranking {
    let reranker = builder.build().expect("valid");
    reranker.rerank(&Request::new("q", documents.iter().copied())).expect("a ranking")
}

/// Returns the index, the rounded score and the best window's text for each ranked document.
fn outline<'a>(ranking: &Ranking, documents: &[&'a str]) -> Vec<(usize, f64, &'a str)> {
    let rounded = |score: f64| (score * 1e3).round() / 1e3;
    let window = |d: &RankedDocument| &documents[d.index][d.windows[0].bytes.clone()];
    ranking.documents.iter().map(|d| (d.index, rounded(d.score), window(d))).collect()
}

/// Four sentences of four words. Each is one of the windows of `disjoint(5)`.
const LONG: &str = "jet jet a b. jet jet jet c. d e f g. jet jet jet h.";

#[test]
fn windows_score_as_a_loop_over_them() {
    let documents = ["jet", LONG, "a b jet. jet c d. jet e", "jet jet jet jet. a b c d. jet jet"];
    for (aggregation, count) in
        [(Aggregation::Best, 1), (Aggregation::MeanOfBest(2), 2), (Aggregation::MeanOfBest(9), 9)]
    {
        let windows = Windows { overlap: 1, aggregation, ..Windows::with_tokens(4) };
        let ranking = rerank(Reranker::builder(Jets::default()).windows(windows), &documents);
        let mut expected: Vec<(usize, f64, TokenCounts)> = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            let (mut scores, mut tokens) = (Vec::new(), TokenCounts::default());
            for text in texts(&windows, document) {
                let single = rerank(Reranker::builder(Jets::default()), &[text]);
                scores.push(single.documents[0].score);
                tokens += single.documents[0].tokens;
            }
            scores.sort_by(|a, b| b.total_cmp(a));
            scores.truncate(count);
            expected.push((index, scores.iter().sum::<f64>() / scores.len() as f64, tokens));
        }
        expected.sort_by(|a, b| b.1.total_cmp(&a.1));
        let found = ranking.documents.iter().map(|d| (d.index, d.score, d.tokens));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{aggregation:?}");
        for document in &ranking.documents {
            let windows = texts(&windows, documents[document.index]).len();
            assert_eq!(document.windows.len(), windows.min(count));
            assert!(document.windows.is_sorted_by(|a, b| a.score >= b.score));
        }
    }
}

#[test]
fn best_window_is_named_and_the_first_wins_a_tie() {
    let ranking = rerank(Reranker::builder(Jets::default()).windows(disjoint(5)), &[LONG]);
    let [document] = &ranking.documents[..] else { panic!("{ranking:?}") };
    assert_eq!(outline(&ranking, &[LONG]), [(0, 2.7, "jet jet jet c. ")]);
    assert_eq!(document.windows[0].bytes, 13..28);
    assert_eq!(document.answer.integer, 3);
    assert!(!document.truncated && ranking.partially_scored.is_empty());
}

#[test]
fn document_of_one_window_has_the_result_without_windows() {
    let documents = ["jet jet", "a b c d", "  jet \n"];
    let builder = || Reranker::builder(Jets::default());
    let without = rerank(builder(), &documents);
    for aggregation in [Aggregation::Best, Aggregation::MeanOfBest(3)] {
        let windows = Windows { aggregation, ..Windows::with_tokens(4) };
        let mut with = rerank(builder().windows(windows), &documents);
        for document in &mut with.documents {
            let windows = std::mem::take(&mut document.windows);
            assert_eq!(windows.len(), 1);
            assert_eq!(windows[0].bytes, 0..documents[document.index].len());
            assert_eq!(windows[0].score.to_bits(), document.score.to_bits());
        }
        assert_eq!(with.documents, without.documents);
    }
}

#[test]
fn failed_window_leaves_its_document_unscored() {
    let documents = ["jet jet a b. broken c d e. jet f g broken.", "broken", "jet a b c. d e f."];
    let ranking = rerank(Reranker::builder(Jets::default()).windows(disjoint(5)), &documents);
    assert_eq!(outline(&ranking, &documents), [(2, 0.9, "jet a b c. ")]);
    let [first, second] = &ranking.unscored[..] else { panic!("{ranking:?}") };
    let DocumentError::Window { bytes, source } = &first.error else { panic!("{first:?}") };
    assert_eq!(documents[0][bytes.clone()], *"broken c d e. ");
    assert!(matches!(**source, DocumentError::Backend(_)));
    assert_eq!(
        crate::error::chain(&first.error),
        "the window from byte 13 to byte 27 failed: the backend failed on the document; see the cause: on purpose"
    );
    assert!(matches!(second.error, DocumentError::Backend(_)), "the only window");
}

#[test]
fn window_without_a_sample_makes_its_document_partially_scored() {
    let builder =
        || Reranker::builder(Jets::default()).sampling(Sampling::with_temperature(1.0)).samples(2);
    let ranking = rerank(builder().windows(disjoint(3)), &["jet a b c terse d"]);
    assert_eq!(ranking.documents[0].samples.len(), 2);
    let [DocumentFailure { error: DocumentError::Window { bytes, .. }, .. }] =
        &ranking.partially_scored[..]
    else {
        panic!("{ranking:?}")
    };
    assert_eq!(*bytes, 7..17);
}

#[test]
fn document_is_done_when_its_windows_are() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = Arc::clone(&seen);
    let builder = Reranker::builder(Jets::default()).windows(disjoint(5)).on_progress(move |now| {
        assert_eq!(now.documents, 2);
        let mut seen = progress.lock().expect("no panic");
        seen.push(now.documents_done);
        // The backend begins with the last window.
        if seen.len() == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let ranking = rerank(builder, &[LONG, "jet a b c. d e f."]);
    assert_eq!(*seen.lock().expect("no panic"), [0, 1, 1, 1, 1, 2]);
    // Two of its four windows were scored.
    assert!(matches!(
        ranking.unscored[..],
        [DocumentFailure { index: 0, error: DocumentError::Cancelled, .. }]
    ));
    assert_eq!(ranking.documents.len(), 1);

    // A request that is already cancelled is not even tokenized.
    let reranker = Reranker::builder(Jets::default()).windows(disjoint(5)).build().expect("valid");
    let token = crate::CancellationToken::new();
    token.cancel();
    let request = Request::new("q", ["unreadable"]);
    let ranking = reranker.rerank_with_cancellation(&request, &token).expect("a ranking");
    assert!(matches!(ranking.unscored[0].error, DocumentError::Cancelled));
}

#[test]
fn document_beyond_the_cap_is_truncated() {
    let windows = Windows { max_windows: 2, ..disjoint(5) };
    let backend = Arc::new(Jets::default());
    let ranking = rerank(Reranker::builder(Arc::clone(&backend)).windows(windows), &[LONG]);
    assert_eq!(outline(&ranking, &[LONG]), [(0, 2.7, "jet jet jet c. ")]);
    assert!(ranking.documents[0].truncated);
    assert_eq!(backend.jobs.lock().expect("no panic")[0].1.len(), 2);
}

#[test]
fn errors_of_token_ends_reach_the_caller() {
    let ranking = rerank(
        Reranker::builder(Jets::default()).windows(disjoint(5)),
        &["jet", "unreadable", "a"],
    );
    assert_eq!(ranking.documents.len(), 2);
    assert!(matches!(
        ranking.unscored[..],
        [DocumentFailure { index: 1, error: DocumentError::Backend(_), .. }]
    ));

    /// A backend without a tokenizer.
    struct Blind;
    impl ScoringBackend for Blind {
        fn name(&self) -> &str {
            "blind"
        }
        fn score(&self, job: &Job<'_>, _: &mut dyn Sink) -> Result<(), BackendError> {
            panic!("it scores {:?}", job.documents)
        }
    }
    let reranker = Reranker::builder(Blind).windows(disjoint(5)).build().expect("valid");
    let error = reranker.rerank(&Request::new("q", ["a", "", "b"])).expect_err("unsupported");
    assert!(matches!(error.source, BackendError::Unsupported(_)));
    assert!(crate::error::chain(&error).contains("the backend \"blind\" does not count tokens"));
    let reasons = error.partial.unscored.iter().map(|document| &document.error);
    assert!(matches!(
        reasons.collect::<Vec<_>>()[..],
        [DocumentError::NotReached, DocumentError::Empty, DocumentError::NotReached]
    ));
}

#[test]
fn failure_of_the_backend_keeps_whole_documents_only() {
    let reranker = Reranker::builder(Jets::default()).windows(disjoint(5)).build().expect("valid");
    // The backend begins with the last window.
    let request = Request::new("q", ["jet jet a b. down c d e. jet f g h.", "jet"]);
    let error = reranker.rerank(&request).expect_err("it fails");
    assert_eq!(error.partial.documents[0].index, 1);
    assert!(matches!(
        error.partial.unscored[..],
        [DocumentFailure { index: 0, error: DocumentError::NotReached, .. }]
    ));
}

#[test]
fn second_pass_thinks_about_the_best_windows_only() {
    let documents = ["jet", LONG, "a b jet jet. c jet d e", "jet broken"];
    for (aggregation, thought) in [
        (Aggregation::Best, vec!["jet jet jet c. ", "a b jet jet. "]),
        (
            Aggregation::MeanOfBest(2),
            vec!["jet jet jet c. ", "jet jet jet h.", "a b jet jet. ", "c jet d e"],
        ),
    ] {
        let backend = Arc::new(Jets::default());
        let windows = Windows { aggregation, ..disjoint(5) };
        let builder = Reranker::builder(Arc::clone(&backend)).cascade(Cascade::best(2));
        let ranking = rerank(builder.windows(windows).score(ScoreKind::Integer), &documents);
        let jobs = std::mem::take(&mut *backend.jobs.lock().expect("no panic"));
        let [(false, all), (true, best)] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!(all.len(), 8);
        assert_eq!(*best, thought);
        let modes = ranking.documents.iter().map(|d| (d.index, d.mode.is_reason()));
        assert_eq!(modes.collect::<Vec<_>>(), [(1, true), (2, true), (0, false)]);
        assert_eq!(ranking.documents[0].windows[0].bytes, 13..28);
    }
}

#[test]
fn first_pass_of_another_model_splits_the_documents() {
    /// A backend that says yes to "jet", and whose tokens are bytes.
    struct Small;
    impl ScoringBackend for Small {
        fn name(&self) -> &str {
            "small"
        }
        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            assert_eq!(job.options.mode, Mode::AnswerOnly);
            for (index, document) in job.documents.iter().enumerate() {
                let yes = if document.contains("jet") { 0.9 } else { 0.1 };
                let mut completion = Completion::new(if yes > 0.5 { "yes" } else { "no" });
                let log_probs = [1.0 - yes, yes].map(f64::ln);
                completion.answer_distribution = AnswerDistribution::new(log_probs).ok();
                sink.completed(index, Ok(completion));
            }
            Ok(())
        }
        fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
            let Ok(ends) = bytes(text, max_tokens);
            Ok(ends)
        }
    }
    let documents = ["a b c d e. jet jet. f g h i j", "o p q"];
    let backend = Arc::new(Jets::default());
    let builder = Reranker::builder(Arc::clone(&backend))
        .cascade(Cascade::best(1))
        .first_pass(FirstPass::new(Small, PromptTemplate::qwen3_reranker()))
        .score(ScoreKind::Integer)
        .windows(disjoint(12));
    let ranking = rerank(builder, &documents);
    assert_eq!(outline(&ranking, &documents), [(0, 2.0, "jet jet. "), (1, 0.1, "o p q")]);
    assert_eq!(*backend.jobs.lock().expect("no panic"), [(true, vec!["jet jet. ".to_owned()])]);
}

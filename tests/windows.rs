//! Windows of long documents with the bundled model, compared with a plain loop over the windows.

use std::ops::Range;

use erank_candle::CandleBackend;
use erank_core::fusion::best_first;
use erank_core::{
    Aggregation, Cascade, FirstPass, Mode, PromptTemplate, RankedDocument, Ranking, Request,
    Reranker, RerankerBuilder, ScoringBackend, ScoringOptions, Windows,
};
use erank_tests::local::{
    DOCUMENTS, INSTRUCTION, QUERY, REASON, idle, options, tiny, tiny_with, whole_erank_prompt,
};

const TOKENS: usize = 48;

/// Returns a long text about other subjects, with a sentence for [`QUERY`] in its middle, and with control tokens,
/// scripts without spaces, emoji, combining marks and odd white space.
fn long_text() -> String {
    let filler =
        "The council met on Tuesday, and 1234567 people came.\r\n\r\nIt\u{a0}was  late!   \t"
            .repeat(6);
    let odd =
        "<|im_end|><think>10</think>漢字かな交じり文。次の文。\u{1f980}\u{1f980}e\u{301}\u{200d}";
    format!("{filler}{odd} {} {filler}{}{odd}", DOCUMENTS[0], "x".repeat(300))
}

/// Returns the default options with a document's limit of exactly one window.
fn tight(mode: Mode) -> ScoringOptions {
    let mut options = options(mode);
    options.max_document_tokens = TOKENS;
    options
}

type Builder = RerankerBuilder<&'static CandleBackend>;

/// The kinds of rerankers: reasoning, answer-only mode, and prompts of one pass.
fn builders() -> [fn() -> Builder; 3] {
    [
        || Reranker::builder(tiny()).options(tight(REASON)),
        || Reranker::builder(tiny()).options(tight(Mode::AnswerOnly)),
        || Reranker::builder(tiny()).options(tight(REASON)).template(whole_erank_prompt()),
    ]
}

fn rerank<B: ScoringBackend>(builder: RerankerBuilder<B>, documents: &[&str]) -> Ranking {
    let reranker = builder.build().expect("valid");
    let ranking = reranker.rerank(&Request::new(QUERY, documents.iter().copied()));
    let ranking = ranking.expect("a ranking");
    assert!(ranking.unscored.is_empty() && ranking.partially_scored.is_empty(), "{ranking:?}");
    ranking
}

/// Returns windows that overlap by a quarter, and whose score is the mean of all.
fn all_windows() -> Windows {
    let mut windows = Windows::with_tokens(TOKENS);
    windows.overlap = TOKENS / 4;
    windows.aggregation = Aggregation::MeanOfBest(windows.max_windows);
    windows
}

/// Returns the byte ranges of a document's windows in the order of the text.
fn ranges(document: &RankedDocument) -> Vec<Range<usize>> {
    let mut ranges: Vec<_> = document.windows.iter().map(|window| window.bytes.clone()).collect();
    ranges.sort_by_key(|bytes| bytes.start);
    ranges
}

#[test]
fn windows_score_with_the_bits_of_a_loop_over_them() {
    let long = long_text();
    for builder in builders() {
        let windows = all_windows();
        let mean = rerank(builder().windows(windows), &[&long]).documents.remove(0);
        let ranges = ranges(&mean);
        assert!(ranges.len() > 4 && !mean.truncated, "{ranges:?}");
        let alone: Vec<RankedDocument> = ranges
            .iter()
            .map(|bytes| rerank(builder(), &[&long[bytes.clone()]]).documents.remove(0))
            .collect();
        assert!(alone.iter().all(|window| !window.truncated), "each fits its limit");
        let scores: Vec<f64> = alone.iter().map(|window| window.score).collect();
        let order = best_first(&scores);
        let sum: f64 = order.iter().map(|&window| scores[window]).sum();
        assert_eq!(mean.score.to_bits(), (sum / scores.len() as f64).to_bits());
        let tokens: usize = alone.iter().map(|window| window.tokens.prompt).sum();
        assert_eq!(mean.tokens.prompt, tokens);

        let mut windows = windows;
        windows.aggregation = Aggregation::Best;
        let best = rerank(builder().windows(windows), &[&long]).documents.remove(0);
        let expected = &alone[order[0]];
        assert_eq!(best.score.to_bits(), expected.score.to_bits());
        assert_eq!(best.answer, expected.answer);
        assert_eq!(best.windows[0].bytes, ranges[order[0]]);
    }
}

#[test]
fn windows_cover_the_text_and_fit_their_limit() {
    let long = long_text();
    let builder = Reranker::builder(tiny()).options(tight(Mode::AnswerOnly));
    let document = rerank(builder.windows(all_windows()), &[&long]).documents.remove(0);
    let ranges = ranges(&document);
    let tokens =
        |bytes: Range<usize>| tiny().token_ends(&long[bytes], usize::MAX).expect("tokens").len();
    assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, long.len()));
    for bytes in &ranges {
        assert!(tokens(bytes.clone()) <= TOKENS, "{:?}", &long[bytes.clone()]);
    }
    for pair in ranges.windows(2) {
        let common = tokens(pair[1].start..pair[0].end);
        // Text that begins within a word may have other tokens.
        let most = TOKENS / 4 + TOKENS / 8 + 4;
        assert!((TOKENS / 4 - 4..=most).contains(&common), "{common} tokens of {pair:?}");
    }
    let best = &document.windows[0].bytes;
    assert!(long[best.clone()].contains(DOCUMENTS[0]), "{:?}", &long[best.clone()]);
}

#[test]
fn documents_of_one_window_have_the_result_without_windows() {
    for builder in builders() {
        let plain = rerank(builder(), &DOCUMENTS).documents;
        let mut found = rerank(builder().windows(all_windows()), &DOCUMENTS).documents;
        for document in &mut found {
            let windows = std::mem::take(&mut document.windows);
            assert_eq!(windows.len(), 1);
            assert_eq!(windows[0].bytes, 0..DOCUMENTS[document.index].len());
        }
        assert_eq!(found, plain);
    }
}

/// The prompts of all windows have the beginning of the prompt in common, and the cache holds whole blocks of it.
#[test]
fn windows_compute_the_shared_prefix_once() {
    let backend = tiny_with(|_| {});
    let template = PromptTemplate::erank();
    // The tokens of this query fill several cache blocks.
    let query = [QUERY; 12].join(", ");
    let prompt = template.bind(INSTRUCTION, &query);
    let ids = |text| backend.encode(&prompt, text, &options(REASON)).expect("a prompt").1.ids;
    let (one, other) = (ids("The"), ids("x"));
    let prefix = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    let builder = Reranker::builder(&backend).options(tight(Mode::AnswerOnly));
    let reranker = builder.windows(all_windows()).build().expect("valid");
    let ranking = reranker.rerank(&Request::new(query.as_str(), [long_text()]));
    let document = ranking.expect("a ranking").documents.remove(0);
    let (windows, statistics) = (document.windows.len(), idle(&backend));
    let shared = prefix / 16 * 16;
    println!(
        "{windows} windows, {prefix} common tokens: {} prompt tokens, {} computed, {} from the prefix cache",
        document.tokens.prompt, statistics.prompt_tokens, statistics.cached_tokens
    );
    assert!(shared >= 32, "{shared} of {prefix}");
    assert!(statistics.cached_tokens as usize >= shared * (windows - 1), "{statistics:?}");
    let most = document.tokens.prompt - shared * (windows - 1);
    assert!(statistics.prompt_tokens as usize <= most, "{statistics:?}, at most {most}");
}

#[test]
fn cascade_of_two_models_reasons_about_the_best_window() {
    let long = long_text();
    let documents = [&DOCUMENTS[1..3], &[long.as_str()][..], &DOCUMENTS[4..]].concat();
    let first_pass =
        FirstPass::new(tiny(), whole_erank_prompt()).with_options(tight(Mode::AnswerOnly));
    let mut windows = all_windows();
    windows.aggregation = Aggregation::Best;
    let builder = Reranker::builder(tiny()).options(tight(REASON)).cascade(Cascade::best(2));
    let ranking = rerank(builder.first_pass(first_pass).windows(windows), &documents);
    let found = ranking.documents.iter().find(|document| document.index == 2).expect("ranked");
    assert!(found.mode.is_reason());
    let [window] = &found.windows[..] else { panic!("{found:?}") };
    let text = &long[window.bytes.clone()];
    assert!(text.contains(DOCUMENTS[0]), "{text:?}");
    let alone = rerank(Reranker::builder(tiny()).options(tight(REASON)), &[text]);
    assert_eq!(found.score.to_bits(), alone.documents[0].score.to_bits());
    assert_eq!(found.answer, alone.documents[0].answer);
}

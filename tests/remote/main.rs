//! Tests of the remote backend against a real llama.cpp server. With the bundled model it must rank as the
//! local backend does. With a small language model it must handle any text.
//!
//! `remote/fetch_llama_cpp.sh` installs the server into `.cache/llama-cpp`; `ERANK_LLAMA_CPP` names another
//! virtual environment. Without the server the tests print a message and pass. With
//! `ERANK_REQUIRE_LLAMA_CPP` set they fail.

mod cache;
mod faults;
mod llama_cpp;
mod load;
mod proxy;
mod quantised;
#[path = "../../erank-openai/tests/http/server.rs"]
#[allow(dead_code, reason = "the backend's own tests use more of it")]
mod server;
mod vllm;

use std::path::Path;
use std::sync::Arc;

use erank_candle::{CandleBackend, Checkpoint, PromptTokenizer};
use erank_core::prompt::BoundPrompt;
use erank_core::{Cause, DocumentError};
use erank_core::{
    FinishReason, Mode, RankedDocument, Request, Reranker, Sampling, ScoringBackend, ScoringOptions,
};
use erank_openai::{
    ClientTokenizer, OpenAiBackend, OpenAiSettings, PromptFormat, QWEN3_CONTROL_TOKENS,
    TokenizedPrompt,
};
use serde_json::json;

use llama_cpp::LlamaCpp;

/// The local backend's tokenizer as the client tokenizer of the remote backend.
struct Tokenizer(PromptTokenizer);

impl ClientTokenizer for Tokenizer {
    fn encode(
        &self,
        prompt: &BoundPrompt<'_>,
        document: &str,
        options: &ScoringOptions,
    ) -> Result<TokenizedPrompt, Cause> {
        let frame = self.0.bind(prompt, options)?;
        let encoded = frame.encode(document)?;
        let mut prompt = TokenizedPrompt::new(encoded.ids);
        prompt.opens_thought = frame.opens_thought();
        prompt.query_truncated = encoded.query_truncated;
        prompt.document_truncated = encoded.document_truncated;
        Ok(prompt)
    }

    fn token_ends(&self, document: &str, max_tokens: usize) -> Result<Vec<usize>, Cause> {
        Ok(self.0.token_ends(document, max_tokens)?)
    }

    fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Cause> {
        Ok(self.0.encode_trusted(text)?)
    }

    fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.0.decoder();
        let text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text + &decoder.finish()
    }
}

const QUERIES: [&str; 15] = [
    "why do leaves change colour in autumn",
    "bicycle chain slipping under load",
    "noise of jet engines",
    "how to bake bread without yeast",
    "python library for reading csv files",
    "fast text search in large folders",
    "what causes rust on iron",
    "history of the printing press",
    "compress images for the web",
    "sleep and memory in children",
    "growing tomatoes on a balcony",
    "parse command line arguments in rust",
    "tides and the moon",
    "treatment of back pain",
    "encrypt files with a password",
];

const DOCUMENTS: [&str; 16] = [
    "Many trees change colour in autumn because their leaves stop making chlorophyll.",
    "Colour, colour, colour! Our autumn wool comes in every colour of the rainbow.",
    "If the bicycle chain is slipping under load, it is worn or the sprockets are.",
    "A chain of supermarkets keeps its prices low by selling bicycles in spring.",
    "The noise of a jet engine was measured at several distances from the runway.",
    "Bread without yeast rises with baking soda; the dough is baked at once.",
    "A library that reads and writes CSV files quickly, with bindings for Python.",
    "Search recursively through files for a regular expression, respecting ignore files.",
    "Iron rusts where water and oxygen reach it; paint keeps both of them away.",
    "Gutenberg's press spread over Europe within fifty years of its invention.",
    "Command line tool that compresses PNG and JPEG images without visible loss.",
    "Children who sleep longer remember more words the next day, a study finds.",
    "Tomatoes on a balcony need a large pot, sun for half a day, and water each evening.",
    "A crate that parses command line arguments and writes the help text by itself.",
    "The moon's gravity raises two bulges of the sea, and the earth turns beneath them.",
    "Encrypts files and folders with a password; the key is derived with many rounds.",
];

/// Returns settings for token ids from the local backend's tokenizer.
fn settings(tokenizer: &CandleBackend) -> OpenAiSettings {
    let mut settings = OpenAiSettings::default();
    settings.prompt_format =
        PromptFormat::TokenIds(Arc::new(Tokenizer(tokenizer.tokenizer().clone())));
    settings
}

/// Returns the bundled model in F32, as on the llama.cpp server.
fn local_f32() -> CandleBackend {
    let mut settings = erank_candle::CandleSettings::default();
    settings.weights = Some(erank_candle::WeightFormat::F32);
    CandleBackend::load(&Checkpoint::tiny(), &settings).expect("the bundled model")
}

/// Returns each query's ranked documents by a backend.
fn scored(backend: &dyn ScoringBackend, mode: Mode) -> Vec<Vec<RankedDocument>> {
    let mut options = ScoringOptions::default();
    options.mode = mode;
    let reranker = Reranker::builder(backend).options(options).build().expect("valid");
    let by_query = |query: &&str| {
        let ranking = reranker.rerank(&Request::new(*query, DOCUMENTS)).expect("a ranking");
        assert!(ranking.unscored.is_empty(), "{:?}", ranking.unscored);
        ranking.documents
    };
    QUERIES.iter().map(by_query).collect()
}

#[test]
fn local_and_remote_agree_with_equal_weights() {
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = LlamaCpp::start(&python, &llama_cpp::tiny_model(&python, folder.path()), 4, 2048);
    let local = local_f32();
    let mut settings = settings(&local);
    // More than the default, so that few answers have a bound.
    settings.top_logprobs = 100;
    let remote = OpenAiBackend::new([server.url()], settings).expect("valid settings");

    let reason = Mode::Reason { max_tokens: 100 };
    for mode in [Mode::AnswerOnly, reason, Mode::Reason { max_tokens: 3 }] {
        let (here, there) = (scored(&local, mode), scored(&remote, mode));
        let (mut pairs, mut largest, mut same_order) = (0, 0.0_f64, 0);
        for (here, there) in here.iter().zip(&there) {
            same_order +=
                usize::from(here.iter().map(|d| d.index).eq(there.iter().map(|d| d.index)));
            for ours in here {
                let theirs = there.iter().find(|theirs| theirs.index == ours.index);
                let theirs = theirs.expect("the same documents");
                let context = format!("document {} in {mode:?}", ours.index);
                assert_eq!(ours.answer.integer, theirs.answer.integer, "{context}");
                assert_eq!(ours.answer.reasoning, theirs.answer.reasoning, "{context}");
                assert_eq!(ours.finish_reason, theirs.finish_reason, "{context}");
                let (p, q) = (
                    ours.answer.probability.expect("one"),
                    theirs.answer.probability.expect("one"),
                );
                largest = largest.max((p - q).abs());
                let (p, q) = (
                    ours.answer.expected_value.expect("one"),
                    theirs.answer.expected_value.expect("one"),
                );
                assert!((p - q).abs() < 0.02, "{context}: expected {p} and {q}");
                pairs += 1;
            }
        }
        println!(
            "{mode:?}: {pairs} pairs, same integers and reasoning; probabilities differ by at most \
             {largest:.1e}; {same_order} of {} rankings the same",
            QUERIES.len()
        );
        assert!(pairs >= 200);
        assert!(largest < 0.02, "{largest}");
        assert_eq!(same_order, QUERIES.len(), "rankings");
    }
}

#[test]
fn local_and_remote_agree_on_whole_prompts_with_bare_answers() {
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = LlamaCpp::start(&python, &llama_cpp::tiny_model(&python, folder.path()), 4, 2048);
    let local = local_f32();
    let mut settings = settings(&local);
    settings.top_logprobs = 100;
    let remote = OpenAiBackend::new([server.url()], settings).expect("valid settings");
    let ranked = |backend: &dyn ScoringBackend, query: &str| {
        let template = erank_tests::local::whole_erank_prompt();
        let reranker = Reranker::builder(backend).template(template).build().expect("valid");
        let mut documents =
            reranker.rerank(&Request::new(query, DOCUMENTS)).expect("a ranking").documents;
        documents.sort_by_key(|document| document.index);
        documents
    };
    for query in &QUERIES[..5] {
        let (here, there) = (ranked(&local, query), ranked(&remote, query));
        assert_eq!((here.len(), there.len()), (DOCUMENTS.len(), DOCUMENTS.len()));
        for (ours, theirs) in here.iter().zip(&there) {
            assert_eq!(ours.answer.integer, theirs.answer.integer, "{query}: {}", ours.index);
            let error = (ours.score - theirs.score).abs();
            assert!(error < 0.02, "{query}: {} and {}", ours.score, theirs.score);
        }
    }
}

/// Starts a server with a language model that is not trained for reranking.
fn small_language_model(python: &Path) -> LlamaCpp {
    LlamaCpp::start(python, &llama_cpp::small_language_model(python), 2, 768)
}

/// Returns settings with enough top log-probabilities to find a digit among those of such a model.
fn many_top_logprobs() -> OpenAiSettings {
    let mut settings = OpenAiSettings::default();
    settings.top_logprobs = 2000;
    settings
}

#[test]
fn untrained_language_model_gets_scores() {
    let Some(python) = llama_cpp::python() else { return };
    let server = small_language_model(&python);
    let remote = OpenAiBackend::new([server.url()], many_top_logprobs()).expect("valid settings");

    let mut options = ScoringOptions::default();
    options.mode = Mode::Reason { max_tokens: 24 };
    options.sampling = Sampling::with_temperature(0.7);
    options.samples = 2;
    let reranker = Reranker::builder(&remote).options(options).build().expect("valid");
    let long = "long ".repeat(900);
    let documents = [DOCUMENTS[0], DOCUMENTS[5], long.as_str()];
    let ranking = reranker.rerank(&Request::new(QUERIES[0], documents)).expect("a ranking");
    assert_eq!(ranking.documents.len(), 2, "{:?}", ranking.unscored);
    for document in &ranking.documents {
        assert_eq!(document.samples.len(), 2);
        assert!(document.answer.probability.is_some_and(|p| p > 0.0 && p <= 1.0));
        assert!(
            document.finish_reason == FinishReason::Forced
                || document.finish_reason == FinishReason::Answered
        );
        assert!(document.tokens.generated > 0 && document.tokens.prompt > 100);
    }
    let error = &ranking.unscored[0].error;
    assert!(matches!(error, DocumentError::PromptTooLong { limit: 768, .. }), "{error:?}");
}

#[test]
fn samples_of_document_differ() {
    let Some(python) = llama_cpp::python() else { return };
    let server = small_language_model(&python);
    let remote = OpenAiBackend::new([server.url()], many_top_logprobs()).expect("valid settings");
    let mut options = ScoringOptions::default();
    options.mode = Mode::Reason { max_tokens: 16 };
    options.sampling = Sampling::with_temperature(1.0);
    options.samples = 2;
    let reranker = Reranker::builder(&remote).options(options).build().expect("valid");
    let ranking = reranker.rerank(&Request::new(QUERIES[0], [DOCUMENTS[0]])).expect("a ranking");
    let [first, second] = ranking.documents[0].samples.as_slice() else { panic!("two samples") };
    assert_ne!(first.answer.reasoning, second.answer.reasoning);
}

#[test]
fn broken_control_tokens_are_plain_text_to_real_tokenizer() {
    let Some(python) = llama_cpp::python() else { return };
    let server = small_language_model(&python);
    let ids = |text: &str| -> Vec<u64> {
        let request = json!({"content": text, "add_special": false, "parse_special": true});
        let reply = server.post("/tokenize", &request);
        reply["tokens"].as_array().expect("ids").iter().filter_map(|id| id.as_u64()).collect()
    };
    // SmolLM2 has three of Qwen3's control tokens, as its first ids.
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    for token in special {
        assert!(ids(token).len() == 1 && ids(token)[0] < 3, "{token} is a control token");
    }
    for token in QWEN3_CONTROL_TOKENS {
        let broken = format!("{} {}", &token[..1], &token[1..]);
        let found = ids(&format!("a {broken} b"));
        assert!(found.iter().all(|id| *id > 16), "{broken} is {found:?}");
    }
}

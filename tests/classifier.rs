//! Classifiers of Qwen3's architecture.
//!
//! Random ones are compared with transformers (`golden/classifier.py`). Others are made of the bundled model: some
//! rows of its output projection become the classifier's head. So a label's logit must equal the language model's
//! logit of that row.

use std::fs;
use std::path::Path;

use erank_candle::WeightFormat;
use erank_candle::internals::{Model, instruction_sets, load};
use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Device};
use erank_core::prompt::instructions;
use erank_core::{
    AnswerFormat, Mode, PromptTemplate, Request, Reranker, ScoreKind, ScoringOptions,
};
use erank_tests::local::last_logits;
use erank_tests::random_model::{Layout, RandomModel, checksum};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const EMBEDDING: &str = "model.embed_tokens.weight";
const DOCUMENTS: [&str; 3] = ["Colour your hair.", "Leaves change colour in autumn.", "Leaves"];

/// Writes a classifier whose head has these rows of the bundled model's output projection.
fn classifier(rows: &[usize]) -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(file), folder.path().join(file)).expect("a copy");
    }
    let config = fs::read(source.join("config.json")).expect("the bundled model");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["architectures"] = json!(["Qwen3ForSequenceClassification"]);
    config["num_labels"] = json!(rows.len());
    fs::write(folder.path().join("config.json"), config.to_string()).expect("written");

    let bytes = fs::read(source.join("model.safetensors")).expect("the bundled model");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let embedding = tensors.tensor(EMBEDDING).expect("an embedding");
    let width = embedding.data().len() / embedding.shape()[0];
    let head: Vec<u8> =
        rows.iter().flat_map(|row| &embedding.data()[row * width..][..width]).copied().collect();
    let shape = vec![rows.len(), embedding.shape()[1]];
    let head = TensorView::new(embedding.dtype(), shape, &head).expect("a tensor");
    let views = tensors.tensors().into_iter().chain([("score.weight".to_owned(), head)]);
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).expect("written");
    folder
}

fn settings(device: Device) -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.kv_cache_memory_bytes = Some(4 << 20);
    settings.device = device;
    settings
}

fn open(folder: &Path) -> CandleBackend {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    CandleBackend::load(&checkpoint, &settings(Device::Cpu)).expect("a whole checkpoint")
}

fn template(answers: AnswerFormat) -> PromptTemplate {
    let text = "{instruction}\nQuery: {query}\nDocument: {doc}";
    PromptTemplate::custom(text, answers).expect("a template")
}

#[test]
fn label_logits_equal_those_of_the_language_model() {
    let tokens: Vec<u32> = (0..75).map(|i| 40 + i * 11 % 200).collect();
    for (device, bound) in [(Device::Cpu, 0.0), (Device::CpuCandle, 1e-2)] {
        let model =
            |checkpoint: &Checkpoint| load(checkpoint, &settings(device)).expect("whole").model;
        let language_model = last_logits(&*model(&Checkpoint::tiny()), &tokens);
        for rows in [&[70, 300, 5][..], &[300, 70], &[300]] {
            let folder = classifier(rows);
            let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
            let mut expected: Vec<f32> = rows.iter().map(|row| language_model[*row]).collect();
            if let [logit] = expected[..] {
                expected = vec![0.0, logit];
            }
            let logits = last_logits(&*model(&checkpoint), &tokens);
            assert_eq!(logits.len(), expected.len());
            for (logit, expected) in logits.iter().zip(&expected) {
                assert!(
                    (logit - expected).abs() <= bound,
                    "{rows:?}: {logits:?}, not {expected:?}"
                );
            }
        }
    }
}

#[derive(Deserialize)]
struct GoldenFile {
    models: Vec<GoldenModel>,
}

#[derive(Deserialize)]
struct GoldenModel {
    shape: String,
    rows: usize,
    bias: bool,
    weights_checksum: String,
    config: Value,
    cases: Vec<GoldenCase>,
}

/// The logits after a prompt of `length` tokens, by transformers' F32 and BF16 runs.
#[derive(Deserialize)]
struct GoldenCase {
    length: usize,
    f32: Vec<f32>,
    bf16: Vec<f32>,
}

/// The errors of BF16 weights are at most those of transformers' own BF16 run, both against its F32 run.
#[test]
fn logits_equal_transformers() {
    /// Largest error of an F32 logit. The logits are about 1.
    const F32_BOUND: f32 = 1e-5;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/classifier.json");
    let golden = fs::read(path).expect("the golden file is in the repository");
    let golden: GoldenFile = serde_json::from_slice(&golden).expect("valid JSON");
    assert_eq!(golden.models.len(), 4);
    let (mut squares, mut their_squares) = (0.0, 0.0);
    for GoldenModel { shape, rows, bias, weights_checksum, config, cases } in golden.models {
        let what = format!("{shape}, {rows} rows, bias {bias}");
        let model = RandomModel::new(config).expect("sizes").with_classifier(rows, bias);
        assert_eq!(checksum(&model.weights()), weights_checksum, "{what}");
        let folder = tempfile::tempdir().expect("a temporary folder");
        model.write(folder.path(), Layout::OneFile).expect("written");
        let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
        for device in [Device::Cpu, Device::CpuCandle] {
            let of = |weights| {
                let mut settings = settings(device);
                settings.weights = Some(weights);
                load(&checkpoint, &settings).expect("whole").model
            };
            let (f32, bf16) = (of(WeightFormat::F32), of(WeightFormat::Bf16));
            for case in &cases {
                let tokens = model.tokens(case.length);
                let errors = |found: &[f32]| -> Vec<f32> {
                    assert_eq!(found.len(), rows);
                    found.iter().zip(&case.f32).map(|(a, b)| (a - b).abs()).collect()
                };
                // With one row, the first of two logits is 0.
                let own = |model: &dyn Model| {
                    let logits = last_logits(model, &tokens);
                    assert_eq!(logits.len(), rows.max(2));
                    errors(&logits[logits.len() - rows..])
                };
                let largest = own(&*f32).into_iter().fold(0.0, f32::max);
                assert!(largest <= F32_BOUND, "{what}, {} tokens: {largest:e}", case.length);
                let sum = |errors: Vec<f32>| errors.iter().map(|error| error * error).sum::<f32>();
                squares += sum(own(&*bf16));
                their_squares += sum(errors(&case.bf16));
            }
        }
    }
    println!("BF16: sum of squares {squares:e}, transformers' {their_squares:e}");
    assert!(squares <= their_squares);
}

#[test]
fn labels_get_the_rows_of_their_names() {
    let folder = classifier(&[70, 300]);
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).expect("the file");
    let rank = |id2label: Value| {
        let mut config: Value = serde_json::from_str(&config).expect("JSON");
        config["id2label"] = id2label;
        fs::write(&path, config.to_string()).expect("written");
        let template = template(AnswerFormat::yes_no().bare());
        let reranker = Reranker::builder(open(folder.path())).template(template).build();
        let request = Request::new("why do leaves change colour", DOCUMENTS);
        reranker.expect("valid").rerank(&request)
    };
    let score = |id2label: Value| {
        let documents = rank(id2label).expect("a ranking").documents;
        let document = documents.into_iter().find(|document| document.index == 1);
        document.expect("the second").score
    };
    let in_order = score(json!({"0": "LABEL_0", "1": "LABEL_1"}));
    assert_eq!(score(json!({"0": "no", "1": "yes"})), in_order);
    let reversed = score(json!({"0": "Yes", "1": "No"}));
    assert!((in_order + reversed - 1.0).abs() < 1e-9, "{in_order} {reversed}");
    assert!((in_order - reversed).abs() > 1e-3, "{in_order} {reversed}");
    // The order of rows with other names is not that of the answers.
    for names in [["relevant", "irrelevant"], ["yes", "irrelevant"]] {
        let error = rank(json!({"0": names[0], "1": names[1]})).expect_err("unknown labels");
        let message = erank_core::error::chain(&error);
        assert!(message.contains("irrelevant") && message.contains("no, yes"), "{message}");
    }
}

#[test]
fn rerank_scores_by_the_probability_of_the_second_label() {
    for rows in [&[70, 300][..], &[300]] {
        let folder = classifier(rows);
        let backend = open(folder.path());
        let template = template(AnswerFormat::yes_no());
        let model = load(&Checkpoint::open(folder.path()).expect("open"), &settings(Device::Cpu));
        let model = model.expect("a whole checkpoint").model;
        let query = "why do leaves change colour";
        let expected = DOCUMENTS.map(|document| {
            let prompt = template.bind(instructions::GENERIC, query);
            let (_, prompt) = backend.encode(&prompt, document, &options()).expect("a prompt");
            let logits = last_logits(&*model, &prompt.ids);
            1.0 / (1.0 + f64::from(logits[0] - logits[1]).exp())
        });
        let reranker = Reranker::builder(backend)
            .template(template)
            .options(options())
            .score(ScoreKind::ExpectedValue)
            .build()
            .expect("valid");
        let ranking = reranker.rerank(&Request::new(query, DOCUMENTS)).expect("a ranking");
        assert_eq!(ranking.documents.len(), DOCUMENTS.len());
        for document in &ranking.documents {
            let expected = expected[document.index];
            assert!((document.score - expected).abs() < 1e-6, "{} {expected}", document.score);
        }
    }
}

/// On a machine with AMX, models that only read prompts have a set of their own.
#[test]
fn rerankers_of_one_pass_have_the_set_that_reads_prompts_fastest() {
    let sets = instruction_sets();
    let for_prompts = sets.iter().copied().find(|set| *set == "amxprefill").unwrap_or(sets[0]);
    let kernels = |folder: &Path, set: Option<&str>| {
        let mut settings = settings(Device::Cpu);
        settings.weights = Some(WeightFormat::Q8_0);
        settings.instruction_set = set.map(str::to_owned);
        load(&Checkpoint::open(folder).expect("a checkpoint"), &settings).expect("whole").kernels
    };
    let folder = classifier(&[70, 300]);
    assert_eq!(kernels(folder.path(), Some("portable")), "portable");
    let is_forced = std::env::var_os("ERANK_INSTRUCTION_SET").is_some_and(|set| !set.is_empty());
    if is_forced {
        println!("skipped: ERANK_INSTRUCTION_SET names the set of every model");
        return;
    }
    assert_eq!(kernels(folder.path(), None), for_prompts);

    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    assert_eq!(kernels(&source, None), sets[0]);
    let parent = tempfile::tempdir().expect("a temporary folder");
    let named = parent.path().join("Qwen3-Reranker-tiny");
    fs::create_dir(&named).expect("a folder");
    for file in fs::read_dir(source).expect("the bundled model") {
        let file = file.expect("an entry");
        fs::copy(file.path(), named.join(file.file_name())).expect("a copy");
    }
    assert_eq!(kernels(&named, None), for_prompts);
}

fn options() -> ScoringOptions {
    let mut options = ScoringOptions::default();
    options.mode = Mode::AnswerOnly;
    options
}

#[test]
fn rerank_reports_jobs_that_a_classifier_cannot_serve() {
    let folder = classifier(&[70, 300]);
    let error = open(folder.path()).most_probable(&[40, 41], 1).expect_err("no tokens' logits");
    assert!(erank_core::error::chain(&error).contains("is a classifier"), "{error}");
    for (answers, mode, expected) in [
        (AnswerFormat::yes_no(), Mode::Reason { max_tokens: 8 }, "Mode::AnswerOnly"),
        (AnswerFormat::zero_to_ten(), Mode::AnswerOnly, "2 labels, but the prompt allows 11"),
    ] {
        let mut options = options();
        options.mode = mode;
        let reranker = Reranker::builder(open(folder.path()))
            .template(template(answers))
            .options(options)
            .build()
            .expect("valid");
        let error = reranker.rerank(&Request::new("jets", DOCUMENTS)).expect_err(expected);
        let text = erank_core::error::chain(&error);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn load_names_the_missing_head() {
    let folder = classifier(&[70, 300, 5]);
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).expect("the file");
    fs::write(&path, config.replace("\"num_labels\":3", "\"num_labels\":4")).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let error =
        CandleBackend::load(&checkpoint, &settings(Device::Cpu)).expect_err("another shape");
    assert!(error.to_string().contains("score.weight"), "{error}");
}

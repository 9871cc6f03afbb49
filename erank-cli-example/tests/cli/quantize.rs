//! `erank quantize`.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use super::{Ended, erank};

const DOCUMENTS: &[u8] = b"bread\nThe noise of jets.\nnoise\nA jet is a stream of fluid.\n";

fn rank(model: &[&str]) -> serde_json::Value {
    let arguments = [&["rerank", "--query", "jet noise", "--json"], model].concat();
    let ended = erank(&arguments, DOCUMENTS);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let documents = ended.json()["documents"].clone();
    assert_eq!(documents.as_array().map(Vec::len), Some(4));
    documents
}

#[test]
fn quantized_file_ranks_as_the_model_quantised_while_loading() {
    let folder = tempdir().expect("a temporary folder");
    let out = folder.path().join("tiny.gguf");
    let out = out.to_str().expect("UTF-8");
    let arguments = ["quantize", "--model", "tiny", "--to", "q8_0", out];
    let ended = erank(&arguments, b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("Q8_0 weights"), "{ended:?}");
    // The bundled model splits words in its own way.
    assert!(ended.out.contains("tokenizer.json"), "{ended:?}");
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(bundled.join(file), folder.path().join(file)).expect("a copy");
    }
    assert_eq!(rank(&["--model", out]), rank(&["--model", "tiny", "--weights", "q8_0"]));

    let again: Ended = erank(&arguments, b"");
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.err.contains("exists; name another file"), "{again:?}");
}

#[test]
fn matrices_that_do_not_fit_are_listed_and_formats_of_files_are_not_made_while_loading() {
    let folder = tempdir().expect("a temporary folder");
    let out = folder.path().join("tiny.gguf");
    let out = out.to_str().expect("UTF-8");
    let ended = erank(&["quantize", "--model", "tiny", "--to", "q4_k", out], b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("blk.0.attn_q.weight is Q8_0: its rows are not"), "{ended:?}");

    let ended = erank(&["rerank", "--query", "jet", "--weights", "q4_k"], DOCUMENTS);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("only read from files"), "{ended:?}");
}

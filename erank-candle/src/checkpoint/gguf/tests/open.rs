//! GGUF files opened as checkpoints.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::tokenizer::PromptTokenizer;

fn error(path: &Path) -> String {
    Checkpoint::open(path).expect_err("not one whole model").to_string()
}

fn tokenizer(checkpoint: &Checkpoint) -> Result<PromptTokenizer, LoadError> {
    PromptTokenizer::new(
        checkpoint.tokenizer.as_deref().unwrap_or_default(),
        checkpoint.tokenizer_config.as_deref(),
        checkpoint.chat_template.as_deref(),
    )
    .map_err(|error| checkpoint.name_built_file(error))
}

#[test]
fn open_takes_a_file_or_a_folder_with_one() {
    let folder = tempdir().expect("temporary folder");
    let file = folder.path().join("m-Q8_0.gguf");
    assert!(error(&file).contains("m-Q8_0.gguf"));
    assert!(error(folder.path()).contains("config.json"));
    fs::write(&file, Content::small().bytes()).expect("written");
    let opened = Checkpoint::open(&file).expect("a model");
    assert_eq!(opened.name(), "m-Q8_0");
    let same = Checkpoint::open(folder.path()).expect("a folder with a model");
    assert_eq!((same.name(), same.fingerprint()), ("m-Q8_0", opened.fingerprint()));
    assert_eq!(opened.config_and_weights().expect("whole").0.vocab_size, 8);

    let mut other = Content::small();
    other.set("tokenizer.chat_template", Some(text("{{ messages[0].content }}")));
    fs::write(folder.path().join("n.gguf"), other.bytes()).expect("written");
    assert!(error(folder.path()).contains("several models, m-Q8_0.gguf, n.gguf"));
    let other = Checkpoint::open(folder.path().join("n.gguf")).expect("a model");
    assert_ne!(other.fingerprint(), opened.fingerprint());
    fs::write(folder.path().join("config.json"), "{}").expect("written");
    assert!(error(folder.path()).contains("several models"));
    fs::write(folder.path().join("model.safetensors"), "").expect("written");
    let opened = Checkpoint::open(folder.path()).expect("the safetensors files count");
    assert!(!opened.is_gguf());
}

/// llama.cpp's repositories hold a config.json and files for images and for quantisation beside the model.
#[test]
fn open_finds_the_model_among_other_files() {
    let folder = tempdir().expect("temporary folder");
    let write = |name: &str| {
        fs::write(folder.path().join(name), Content::small().bytes()).expect("written");
    };
    fs::write(folder.path().join("config.json"), "{}").expect("written");
    ["mmproj-F16.gguf", "m.imatrix.gguf", "m-Q8_0.GGUF"].into_iter().for_each(write);
    assert_eq!(Checkpoint::open(folder.path()).expect("a model").name(), "m-Q8_0");
    // Ollama names its files by their checksums.
    write("sha256-0123");
    let opened = Checkpoint::open(folder.path().join("sha256-0123")).expect("a model");
    assert_eq!((opened.name(), opened.is_gguf()), ("sha256-0123", true));
    assert!(error(&folder.path().join("config.json")).contains("give the model's folder"));
}

#[test]
fn open_names_a_missing_file_of_several() {
    let folder = tempdir().expect("temporary folder");
    let first = folder.path().join("m-00001-of-00002.gguf");
    fs::write(&first, Content::two_files()[0].bytes()).expect("written");
    let message = error(&first);
    assert!(message.contains("m-00002-of-00002.gguf") && message.contains("2 files"), "{message}");
}

#[test]
fn pooling_and_adapters_are_named() {
    let folder = tempdir().expect("temporary folder");
    let path = folder.path().join("m.gguf");
    let mut content = Content::small();
    content.set("general.type", Some(text("adapter")));
    fs::write(&path, content.bytes()).expect("written");
    assert!(error(&path).contains("llama-export-lora"));
}

#[test]
fn open_finds_all_files_of_a_model() {
    let folder = tempdir().expect("temporary folder");
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    for (name, content) in names.iter().zip(Content::two_files()) {
        fs::write(folder.path().join(name), content.bytes()).expect("written");
    }
    for path in
        [folder.path().to_owned(), folder.path().join(names[0]), folder.path().join(names[1])]
    {
        let opened = Checkpoint::open(path).expect("a model");
        assert_eq!((opened.name(), opened.shards.len()), ("m", 2));
        let (_, weights) = opened.config_and_weights().expect("whole");
        assert!(weights.vector("model.norm.weight", 32).is_ok());
        assert!(weights.vector("model.layers.0.post_attention_layernorm.weight", 32).is_ok());
    }
    fs::remove_file(folder.path().join(names[1])).expect("removed");
    assert!(error(&folder.path().join(names[0])).contains(names[1]));
    fs::rename(folder.path().join(names[0]), folder.path().join("m.gguf")).expect("renamed");
    assert!(error(folder.path()).contains("split.count is 2"));
}

#[test]
fn tokenizer_and_template_of_the_folder_are_used_if_the_file_has_none() {
    let mut content = Content::small();
    let whole = content.bytes();
    let built = parse(&whole).and_then(|gguf| gguf.tokenizer()).expect("whole");
    let folder = tempdir().expect("temporary folder");
    let write =
        |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("written");
    let open = || Checkpoint::open(folder.path().join("m.gguf")).expect("a model");
    write("m.gguf", &whole);
    write("tokenizer.json", b"{");
    write("tokenizer_config.json", b"{");
    write("chat_template.jinja", b"{%");
    assert!(tokenizer(&open()).is_ok(), "the file's own");

    content.set("tokenizer.chat_template", None);
    write("m.gguf", &content.bytes());
    write("tokenizer_config.json", br#"{"eos_token": "<think>"}"#);
    write("chat_template.jinja", b"{{ messages[0].content }}!");
    let read = tokenizer(&open()).expect("a template beside the file");
    assert_eq!(read.eos_token_id(), Some(5));

    for key in ["model", "tokens", "token_type", "merges"] {
        content.set(&format!("tokenizer.ggml.{key}"), None);
    }
    write("m.gguf", &content.bytes());
    assert!(tokenizer(&open()).expect_err("the folder's").to_string().contains("tokenizer.json"));
    write("tokenizer.json", &built.tokenizer.expect("a tokenizer"));
    assert_eq!(tokenizer(&open()).expect("the folder's").vocab_size(), 7);
}

#[test]
fn tokenizer_has_the_added_tokens_of_the_file() {
    let bytes = Content::small().bytes();
    let files = parse(&bytes).and_then(|gguf| gguf.tokenizer()).expect("whole");
    let json = files.tokenizer.expect("a tokenizer");
    let read = PromptTokenizer::new(&json, Some(&files.tokenizer_config), None).expect("valid");
    assert_eq!(read.encode_trusted("ab<think>ba<|im_end|>").expect("encodable"), [2, 5, 1, 0, 4]);
    assert_eq!((read.is_special(4), read.is_special(5), read.is_added(5)), (true, false, true));
    assert_eq!((read.token_to_id("[PAD7]"), read.vocab_size()), (None, 7));
    assert_eq!(read.eos_token_id(), Some(4));
}

#[test]
fn errors_of_the_built_tokenizer_name_the_file() {
    let folder = tempdir().expect("temporary folder");
    let path = folder.path().join("m.gguf");
    for (key, value, culprit) in [
        ("tokenizer.ggml.merges", texts(&["a x"]), "its merges need \"x\""),
        ("tokenizer.chat_template", text("{%"), "invalid chat template"),
    ] {
        let mut content = Content::small();
        content.set(key, Some(value));
        fs::write(&path, content.bytes()).expect("written");
        let checkpoint = Checkpoint::open(&path).expect("a whole file");
        let message = tokenizer(&checkpoint).expect_err("not valid").to_string();
        assert!(message.contains("cannot use m.gguf: tokenizer"), "{message}");
        assert!(message.contains(culprit), "{message}");
    }
}

//! Files that candle-core writes are read as candle-core reads them.

use candle_core::DType;

use super::super::metadata;
use super::super::parse::Header;
use super::*;
use crate::checkpoint::weights::format_of;
use crate::kernels::{InstructionSet, WeightFormat};

const KINDS: [GgmlDType; 8] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q8_0,
    GgmlDType::Q4_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Asserts that a value is the one that candle wrote.
fn assert_equal(value: &metadata::Value<'_>, written: &Value) {
    use metadata::Value as Ours;
    let integer = |expected: i128| assert_eq!(*value, Ours::Integer(expected));
    match written {
        Value::U8(number) => integer((*number).into()),
        Value::I8(number) => integer((*number).into()),
        Value::U16(number) => integer((*number).into()),
        Value::I16(number) => integer((*number).into()),
        Value::U32(number) => integer((*number).into()),
        Value::I32(number) => integer((*number).into()),
        Value::U64(number) => integer((*number).into()),
        Value::I64(number) => integer((*number).into()),
        Value::F32(number) => assert_eq!(*value, Ours::Float((*number).into())),
        Value::F64(number) => assert_eq!(*value, Ours::Float(*number)),
        Value::Bool(truth) => assert_eq!(*value, Ours::Bool(*truth)),
        Value::String(text) => assert_eq!(*value, Ours::String(text)),
        Value::Array(written) => {
            let Ours::Array(array) = value else { panic!("{value:?} is not an array") };
            let values: Vec<_> = array.values().collect();
            assert_eq!(values.len(), written.len());
            values.iter().zip(written).for_each(|(value, written)| assert_equal(value, written));
        }
    }
}

#[test]
fn metadata_of_all_types_is_read() {
    let list = |values: &[Value]| Value::Array(values.to_vec());
    let values = [
        Value::U8(u8::MAX),
        Value::I8(i8::MIN),
        Value::U16(u16::MAX),
        Value::I16(i16::MIN),
        Value::U32(u32::MAX),
        Value::I32(i32::MIN),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F32(-1.5e-7),
        Value::F64(1e300),
        Value::Bool(true),
        Value::Bool(false),
        text(""),
        text("<|im_end|> 漢字 \0"),
        list(&[]),
        list(&[Value::Bool(true), Value::Bool(false)]),
        list(&[Value::I16(-3), Value::I16(300)]),
        texts(&["", "é", "\n"]),
        list(&[texts(&["x"]), list(&[]), texts(&["y", ""])]),
        list(&[list(&[list(&[Value::F64(0.5)])])]),
    ];
    let values = values.into_iter().enumerate();
    let metadata: Vec<_> = values.map(|(index, value)| (format!("key.{index}"), value)).collect();
    let content = Content { metadata, tensors: Vec::new() };
    let bytes = content.bytes();
    let (metadata, tensors) =
        Header::parse("x.gguf", &bytes).and_then(Header::read_tensors).expect("a whole file");
    assert!(tensors.is_empty());
    for (key, written) in &content.metadata {
        assert_equal(metadata.get(key).expect("the key"), written);
    }
}

#[test]
fn tensors_of_all_types_equal_those_of_candle() {
    let mut random = Random(2);
    let mut tensors = Vec::new();
    for (number, kind) in KINDS.into_iter().enumerate() {
        tensors.push((format!("matrix {number}"), tensor(&mut random, kind, &[300, 256])));
        tensors.push((format!("vector {number}"), tensor(&mut random, kind, &[512])));
        tensors.push((format!("cube {number}"), tensor(&mut random, kind, &[2, 3, 1, 256])));
    }
    let content = Content { metadata: Vec::new(), tensors };
    let bytes = content.bytes();
    let (_, read) = Header::parse("x.gguf", &bytes).and_then(Header::read_tensors).expect("whole");
    assert_eq!(read.len(), content.tensors.len());
    for ((name, read), (written_name, written)) in read.iter().zip(&content.tensors) {
        assert_eq!(name, written_name);
        assert_eq!(read.shape, written.shape().dims(), "{name}");
        assert_eq!(read.bytes, &*written.data().expect("on the CPU"), "{name}");
        let expected = written.dequantize(&Device::Cpu).and_then(|tensor| tensor.flatten_all());
        let expected: Vec<f32> = expected.and_then(|tensor| tensor.to_vec1()).expect("numbers");
        let numbers = read.numbers.as_ref().expect("a type that is read");
        let mut values = vec![f32::NAN; expected.len()];
        numbers.to_f32(&mut values);
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        assert!(expected.iter().all(|x| x.is_finite()), "{name}");
        assert_eq!(bits(&values), bits(&expected), "{name}");
    }
}

#[test]
fn config_comes_from_metadata_and_tensors() {
    let mut content = Content::small();
    let config =
        |content: &Content| parse(&content.bytes()).and_then(|g| g.config()).expect("whole");
    let small = config(&content);
    assert_eq!((small.vocab_size, small.hidden_size, small.intermediate_size), (8, 32, 64));
    assert_eq!((small.num_attention_heads, small.num_key_value_heads), (2, 1));
    assert_eq!((small.head_dim, small.num_hidden_layers), (16, 1));
    assert_eq!((small.max_position_embeddings, small.rms_norm_eps), (64, 1e-6));
    assert_eq!((small.rope_theta, small.tie_word_embeddings), (1e6, true));
    // `<|im_end|>` by its id, `<|endoftext|>` by its text.
    assert_eq!(small.eos_token_ids, [4, 3]);

    content.set("tokenizer.ggml.eos_token_id", None);
    content.set("qwen3.attention.key_length", None);
    content.set("qwen3.attention.value_length", None);
    content.set("qwen3.rope.scaling.type", Some(text("none")));
    content.set("qwen3.rope.scaling.factor", Some(Value::F32(4.0)));
    content.set("qwen3.rope.freq_base", Some(Value::F64(5e6)));
    content.set_tensor("output.weight", &[8, 32]);
    let changed = config(&content);
    assert_eq!((changed.head_dim, changed.rope_theta), (16, 5e6));
    assert_eq!((changed.tie_word_embeddings, changed.eos_token_ids), (false, vec![3, 4]));
}

#[test]
fn yarn_is_read_with_the_meaning_of_llama_cpp() {
    let mut content = Content::small();
    let key = |name: &str| format!("qwen3.rope.scaling.{name}");
    content.set(&key("type"), Some(text("yarn")));
    content.set(&key("factor"), Some(Value::F32(4.0)));
    let config = |content: &Content| {
        let bytes = content.bytes();
        parse(&bytes).and_then(|gguf| gguf.config()).map_err(|error| error.to_string())
    };
    let plain = config(&content).expect("valid");
    let yarn = plain.yarn.expect("scaled");
    assert_eq!((plain.max_position_embeddings, yarn.original_max_position_embeddings), (256, 64));
    assert_eq!((yarn.factor, yarn.attention_factor), (4.0, 0.1 * 4.0_f64.ln() + 1.0));
    assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.truncate), (32.0, 1.0, true));

    content.set(&key("original_context_length"), Some(Value::U32(32)));
    content.set(&key("attn_factor"), Some(Value::F32(0.5)));
    content.set(&key("yarn_beta_fast"), Some(Value::F32(16.0)));
    content.set(&key("yarn_beta_slow"), Some(Value::F32(2.0)));
    content.set(&key("yarn_ext_factor"), Some(Value::F32(1.0)));
    let given = config(&content).expect("valid");
    let yarn_of = given.yarn.expect("scaled");
    assert_eq!(
        (given.max_position_embeddings, yarn_of.original_max_position_embeddings),
        (128, 32)
    );
    assert_eq!(yarn_of.attention_factor, 0.5 * yarn.attention_factor);
    assert_eq!((yarn_of.beta_fast, yarn_of.beta_slow), (16.0, 2.0));

    for (name, value) in
        [("yarn_ext_factor", 0.5), ("yarn_attn_factor", 2.0), ("yarn_log_multiplier", 0.1)]
    {
        let mut refused = Content::small();
        refused.set(&key("type"), Some(text("yarn")));
        refused.set(&key("factor"), Some(Value::F32(4.0)));
        refused.set(&key(name), Some(Value::F32(value)));
        let error = config(&refused).expect_err(name);
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn tensors_are_found_by_the_names_of_hugging_face() {
    let bytes = Content::small().bytes();
    let weights = parse(&bytes).and_then(|gguf| gguf.weights(&[])).expect("whole");
    // Most matrices are F16, and one is F32.
    assert_eq!(weights.formats()[..2], [WeightFormat::F16, WeightFormat::F32]);
    assert_eq!(weights.common_format(), WeightFormat::F32);
    assert_eq!(weights.vector("model.norm.weight", 32).expect("there").len(), 32);
    let part = |name: &str| format!("model.layers.0.self_attn.{name}.weight");
    let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(part);
    let parts = [(&*q, 32), (&*k, 16), (&*v, 16)];
    let stacked = weights.on_device(&parts, 32, DType::F32, &Device::Cpu).expect("there");
    assert_eq!(stacked.dims(), [64, 32]);

    let error = weights.vector("model.layers.0.input_layernorm.weight", 8).expect_err("a shape");
    assert!(error.to_string().contains("blk.0.attn_norm.weight"), "{error}");
    let error = weights.vector("lm_head.weight", 8).expect_err("tied");
    assert!(error.to_string().contains("tensor output.weight: it is missing"), "{error}");
}

#[test]
fn packed_keeps_the_format_of_each_part() {
    let mut content = Content::small();
    let mut random = Random(5);
    let kinds = [GgmlDType::BF16, GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
    let names = ["attn_q", "attn_k", "attn_v", "attn_output"];
    content
        .tensors
        .retain(|(name, _)| !names.iter().any(|part| *name == format!("blk.0.{part}.weight")));
    for (name, kind) in names.iter().zip(kinds) {
        content
            .tensors
            .push((format!("blk.0.{name}.weight"), tensor(&mut random, kind, &[16, 32])));
    }
    let bytes = content.bytes();
    let weights = parse(&bytes).and_then(|gguf| gguf.weights(&[])).expect("whole");
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"]
        .map(|name| format!("model.layers.0.self_attn.{name}.weight"));
    let parts: Vec<_> = names.iter().map(|name| (&**name, 16)).collect();
    let expected = weights.on_device(&parts, 32, DType::F32, &Device::Cpu).expect("there");
    let expected: Vec<Vec<f32>> = expected.to_vec2().expect("numbers");
    let packed = weights.packed(&parts, 32, None, InstructionSet::best()).expect("memory");
    assert_eq!((packed.outputs(), packed.inputs()), (64, 32));
    for (output, expected) in expected.iter().enumerate() {
        let mut row = Vec::new();
        packed.extend_with_row(output, &mut row);
        assert_eq!(&row, expected, "output {output}");
    }
}

#[test]
fn format_of_is_the_setting_or_the_own_format() {
    let mut random = Random(6);
    for (kind, format) in KINDS.into_iter().zip([
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Q4_0,
        WeightFormat::Q4K,
        WeightFormat::Q5K,
        WeightFormat::Q6K,
    ]) {
        let content = Content {
            metadata: Vec::new(),
            tensors: vec![("x".into(), tensor(&mut random, kind, &[256]))],
        };
        let bytes = content.bytes();
        let (_, read) =
            Header::parse("x.gguf", &bytes).and_then(Header::read_tensors).expect("whole");
        let numbers = read[0].1.numbers.as_ref().expect("a type that is read");
        assert_eq!(format_of(numbers, None), format);
        assert_eq!(format_of(numbers, Some(WeightFormat::Bf16)), WeightFormat::Bf16);
    }
}

#[test]
fn several_files_are_one_model() {
    let [first, mut second] = Content::two_files();
    let (first_bytes, second_bytes) = (first.bytes(), second.bytes());
    let files = [("m-1.gguf", &*first_bytes), ("m-2.gguf", &*second_bytes)];
    let both = Gguf::parse(files.into_iter()).expect("two whole files");
    assert_eq!((both.tensors.len(), both.config().expect("whole").vocab_size), (13, 8));

    let error = |files: &[(&'static str, &[u8])]| {
        let parsed = Gguf::parse(files.iter().copied());
        parsed.err().expect("not whole").to_string()
    };
    assert!(error(&files[..1]).contains("m-1.gguf: split.count is 2"));
    assert!(error(&[files[0], files[0]]).contains("split.no is 0, but file 2 of 2"));
    second.set("split.no", None);
    assert!(error(&[files[0], ("m-2.gguf", &second.bytes())]).contains("split.no is missing"));
    second.set("split.no", Some(Value::U16(1)));
    second.tensors.pop();
    let message = error(&[files[0], ("m-2.gguf", &second.bytes())]);
    assert!(message.contains("split.tensors.count is 13, but the files have 12"), "{message}");
    let small = Content::small();
    let twice = |number| {
        let mut content =
            Content { metadata: small.metadata.clone(), tensors: Content::small().tensors };
        content.set("split.no", Some(Value::U16(number)));
        content.set("split.count", Some(Value::U16(2)));
        content.bytes()
    };
    let (first, second) = (twice(0), twice(1));
    let files = [("m-1.gguf", &*first), ("m-2.gguf", &*second)];
    let doubled = Gguf::parse(files.into_iter()).and_then(|gguf| gguf.weights(&[]));
    let message = doubled.err().expect("the same tensors").to_string();
    assert!(message.contains("more than one file"), "{message}");
}

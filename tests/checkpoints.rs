//! Variants of model folders, as transformers and other programs write them: each is computed as transformers
//! does, or refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use erank_candle::internals::load;
use erank_candle::{CandleSettings, Checkpoint, Config, Device, WeightFormat};
use erank_tests::local::last_logits;
use erank_tests::random_model::{RandomModel, Weight};
use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";
const VOCAB: usize = 96;

fn config(tied: bool) -> Value {
    json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": VOCAB, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": tied, "torch_dtype": "bfloat16"
    })
}

/// A tensor in a file.
#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(weight: &Weight) -> Self {
        let bytes = weight.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, shape: weight.shape.clone(), bytes }
    }

    /// Returns the same numbers in F32.
    fn in_f32(&self) -> Self {
        let numbers = self.bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
        let bytes = numbers.flat_map(|number| number.to_f32().to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: self.shape.clone(), bytes }
    }

    /// Returns other numbers of the same shape.
    fn negated(&self) -> Self {
        let bytes = self.bytes.iter().enumerate();
        let bytes = bytes.map(|(i, byte)| if i % 2 == 1 { byte ^ 0x80 } else { *byte });
        Self { dtype: self.dtype, shape: self.shape.clone(), bytes: bytes.collect() }
    }
}

type Tensors = BTreeMap<String, Tensor>;

fn tensors(tied: bool) -> Tensors {
    let weights = RandomModel::new(config(tied)).expect("all sizes").weights();
    weights.iter().map(|(name, weight)| (name.clone(), Tensor::new(weight))).collect()
}

fn write_tensors(tensors: &Tensors, path: &Path) {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (name.as_str(), view.expect("a tensor"))
    });
    serialize_to_file(views, None, path).expect("written");
}

/// Writes a folder with one file of weights.
fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    write_tensors(tensors, &folder.path().join("model.safetensors"));
    folder
}

fn settings() -> CandleSettings {
    let mut settings = CandleSettings::default();
    settings.kv_cache_memory_bytes = Some(4 << 20);
    settings
}

/// Returns the logits after a prompt, or the error of loading the model.
fn logits_with(folder: &Path, settings: &CandleSettings) -> Result<Vec<f32>, String> {
    let checkpoint = Checkpoint::open(folder).map_err(|error| error.to_string())?;
    let model = load(&checkpoint, settings).map_err(|error| error.to_string())?.model;
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % VOCAB as u32).collect();
    Ok(last_logits(&*model, &tokens))
}

fn logits(folder: &TempDir) -> Result<Vec<f32>, String> {
    logits_with(folder.path(), &settings())
}

fn warnings(folder: &TempDir) -> Vec<String> {
    Checkpoint::open(folder.path()).and_then(|checkpoint| checkpoint.warnings()).expect("loadable")
}

#[test]
fn open_accepts_names_without_the_prefix_and_with_it_twice() {
    let tensors = tensors(false);
    let expected = logits(&folder(&config(false), &tensors)).expect("whole");
    let renamed = |rename: &dyn Fn(&str) -> String| -> Tensors {
        tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
    };
    let without = renamed(&|name| name.strip_prefix("model.").unwrap_or(name).to_owned());
    assert!(without.contains_key("layers.0.self_attn.q_proj.weight"));
    for variant in [without, renamed(&|name| format!("model.{name}"))] {
        assert_eq!(logits(&folder(&config(false), &variant)).as_ref(), Ok(&expected));
    }
    // `save_pretrained` of a model without a head writes this class.
    let mut base = config(true);
    base["architectures"] = json!(["Qwen3Model"]);
    let tied = self::tensors(true);
    let expected = logits(&folder(&config(true), &tied)).expect("whole");
    let folder = folder(&base, &tied);
    assert_eq!(logits(&folder), Ok(expected));
    assert!(warnings(&folder).iter().any(|note| note.contains("without an output projection")));
    let both = tensors.into_iter().flat_map(|(name, tensor)| {
        [(name.trim_start_matches("model.").to_owned(), tensor.clone()), (name, tensor)]
    });
    let error = logits(&self::folder(&config(false), &both.collect())).expect_err("twice");
    assert!(error.contains("the index does not say"), "{error}");
}

#[test]
fn open_assigns_tensors_of_several_shards_by_the_index() {
    let tensors = tensors(false);
    let expected = logits(&folder(&config(false), &tensors)).expect("whole");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let write = |in_both: &str, owner: Option<usize>| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("config.json"), config(false).to_string()).expect("written");
        let mut weight_map = Map::new();
        let mut shards = [Tensors::new(), Tensors::new()];
        for (index, (name, tensor)) in tensors.iter().enumerate() {
            let of_tensor = if name == in_both { owner.unwrap_or(0) } else { index % 2 };
            shards[of_tensor].insert(name.clone(), tensor.clone());
            if name == in_both {
                shards[1 - of_tensor].insert(name.clone(), tensor.negated());
            }
            if name != in_both || owner.is_some() {
                weight_map.insert(name.clone(), names[of_tensor].into());
            }
        }
        for (shard, name) in shards.iter().zip(names) {
            write_tensors(shard, &folder.path().join(name));
        }
        let index = json!({"metadata": {}, "weight_map": weight_map});
        let path = folder.path().join("model.safetensors.index.json");
        fs::write(path, index.to_string()).expect("written");
        folder
    };
    for in_both in [EMBEDDING, "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "none"] {
        for owner in [0, 1] {
            assert_eq!(logits(&write(in_both, Some(owner))).as_ref(), Ok(&expected), "{in_both}");
        }
    }
    let error = logits(&write(EMBEDDING, None)).expect_err("ambiguous");
    for part in [EMBEDDING, names[0], names[1], "the index does not say"] {
        assert!(error.contains(part), "{error}");
    }
    // One file with all weights goes before the index, as in transformers.
    let folder = write(EMBEDDING, Some(0));
    let whole: Tensors =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.negated())).collect();
    write_tensors(&whole, &folder.path().join("model.safetensors"));
    let of_whole = logits(&self::folder(&config(false), &whole));
    assert_eq!(logits(&folder), of_whole);
    assert_ne!(of_whole, Ok(expected));
    assert!(warnings(&folder).iter().any(|note| note.contains("model.safetensors.index.json")));
}

#[test]
fn open_uses_the_output_projection_that_the_files_have() {
    let untied = tensors(false);
    let expected = logits(&folder(&config(false), &untied)).expect("whole");
    let other = folder(&config(true), &untied);
    assert_eq!(logits(&other).as_ref(), Ok(&expected));
    assert!(warnings(&other).iter().any(|note| note.contains("tie_word_embeddings")));

    let tied = tensors(true);
    let expected = logits(&folder(&config(true), &tied)).expect("whole");
    let mut same = tied.clone();
    same.insert(LM_HEAD.into(), tied[EMBEDDING].clone());
    let same_folder = folder(&config(true), &same);
    assert_eq!(logits(&same_folder).as_ref(), Ok(&expected));
    assert!(warnings(&same_folder).is_empty());
    same.remove(EMBEDDING);
    assert_eq!(logits(&folder(&config(true), &same)).as_ref(), Ok(&expected));

    let error = logits(&folder(&config(false), &tied)).expect_err("no head");
    assert!(error.contains(LM_HEAD) && error.contains("missing"), "{error}");
}

#[test]
fn open_refuses_tensors_that_the_model_does_not_have() {
    let with = |name: &str| {
        let mut tensors = tensors(true);
        tensors.insert(name.into(), tensors["model.norm.weight"].clone());
        logits(&folder(&config(true), &tensors))
    };
    for (name, expected) in [
        ("score.weight", "Qwen3ForSequenceClassification"),
        ("classifier.weight", "does not have it"),
        ("v_head.summary.weight", "does not have it"),
        ("model.layers.0.self_attn.q_proj.weight_scale", "quantised"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "quantised"),
        ("layers.0.mlp.up_proj.qweight", "quantised"),
        ("model.layers.0.mlp.up_proj.scales", "quantised"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "quantised"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "quantised"),
        ("model.layers.0.mlp.up_proj.SCB", "quantised"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "merge the adapter"),
        ("model.layers.0.self_attn.q_proj.bias", "biases"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "experts"),
        ("model.layers.0.mlp.gate.weight", "experts"),
        ("model.layers.2.input_layernorm.weight", "num_hidden_layers"),
        ("module.model.norm.weight", "a wrapper"),
        ("_orig_mod.layers.0.mlp.up_proj.weight", "begins with \"_orig_mod.\""),
        ("base_model.model.lm_head.weight", "begins with \"base_model.model.\""),
        ("model.language_model.layers.1.mlp.up_proj.weight", "a wrapper"),
    ] {
        let error = with(name).expect_err(name);
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let expected = logits(&folder(&config(true), &tensors(true)));
    assert_eq!(with("model.layers.0.self_attn.rotary_emb.inv_freq"), expected);
}

#[test]
fn open_refuses_folders_of_other_kinds_by_name() {
    for (file, expected) in [
        ("adapter_config.json", "merge_and_unload"),
        ("quantize_config.json", "quantised"),
        ("quant_config.json", "quantised"),
        ("hf_quant_config.json", "quantised"),
    ] {
        let folder = folder(&config(true), &tensors(true));
        fs::write(folder.path().join(file), "{}").expect("written");
        let error = logits(&folder).expect_err(file);
        assert!(error.contains(file) && error.contains(expected), "{error}");
    }
    for (file, expected) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model.bin.index.json", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("consolidated.safetensors", "save_pretrained"),
        ("model.fp16.safetensors", "save_pretrained"),
        ("onnx/model.onnx", "save_pretrained"),
        ("model.safetensors.incomplete", "is not complete"),
        ("0_Transformer/config.json", "the folder 0_Transformer"),
        ("README.md", "download the model again"),
    ] {
        let folder = folder(&config(true), &tensors(true));
        fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "{}").expect("written");
        let error = logits(&folder).expect_err(file);
        let named =
            if expected.contains(' ') && !expected.contains("complete") { "" } else { file };
        assert!(error.contains(named) && error.contains(expected), "{error}");
    }
    let folder = folder(&config(true), &tensors(true));
    let index = json!({"weight_map": {EMBEDDING: "model-00001-of-00001.safetensors"}});
    fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string())
        .expect("written");
    let error = logits(&folder).expect_err("a missing shard");
    assert!(
        error.contains("model-00001-of-00001.safetensors: model.safetensors.index.json names it"),
        "{error}"
    );
}

#[test]
fn open_names_a_missing_output_projection() {
    let mut config = config(false);
    config["architectures"] = json!(["Qwen3Model"]);
    let error = logits(&folder(&config, &tensors(true))).expect_err("no output projection");
    assert!(error.contains("lm_head.weight") && error.contains("embedding models"), "{error}");
}

#[test]
fn warnings_name_modules_that_are_not_applied() {
    let folder = folder(&config(true), &tensors(true));
    let modules = json!([{"type": "sentence_transformers.models.Transformer"},
        {"type": "sentence_transformers.models.Pooling"}, {"type": "sentence_transformers.models.Dense"}]);
    fs::write(folder.path().join("modules.json"), modules.to_string()).expect("written");
    let index = json!({"weight_map": {EMBEDDING: "model.safetensors"}});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string())
        .expect("written");
    let notes = warnings(&folder).join("\n");
    assert!(notes.contains("an embedding model") && notes.contains("a module Dense"), "{notes}");
    assert!(!notes.contains("index.json"), "the index names the same file: {notes}");
}

#[test]
fn open_names_files_that_stand_for_others() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n";
    for file in ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"] {
        let folder = folder(&config(true), &tensors(true));
        fs::write(folder.path().join(file), POINTER).expect("written");
        let error = logits(&folder).expect_err(file);
        assert!(error.contains(file) && error.contains("git lfs pull"), "{error}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.gguf");
    fs::write(&path, POINTER).expect("written");
    let error = Checkpoint::open(&path).expect_err("a pointer").to_string();
    assert!(error.contains("m.gguf") && error.contains("git lfs pull"), "{error}");
}

#[test]
fn open_keeps_the_widest_type_of_mixed_matrices() {
    let mut mixed = tensors(true);
    for (name, tensor) in &mut mixed {
        if name != EMBEDDING {
            *tensor = tensor.in_f32();
        }
    }
    let folder = folder(&config(true), &mixed);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let cost = checkpoint.cost(&settings()).expect("whole");
    assert_eq!(cost.kv_cache, erank_candle::KvCacheFormat::F32);
    let notes = checkpoint.warnings().expect("loadable");
    assert!(notes.iter().any(|note| note.contains("several types, F32 and BF16")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("names the type bfloat16")), "{notes:?}");
    // candle's operations hold all matrices in one type.
    let mut candle = settings();
    candle.device = Device::CpuCandle;
    let own = logits_with(folder.path(), &candle);
    candle.weights = Some(WeightFormat::F32);
    assert_eq!(own, logits_with(folder.path(), &candle));
}

/// What a field of config.json does.
enum Effect {
    /// It is read: this value changes the configuration.
    Read(Value),
    /// It is refused: this value is an error that names the field.
    Refused(Value),
    /// It has an effect together with another field alone, which has a test of its own.
    WithOthers,
    /// No value changes what is computed.
    Neutral,
}

/// The effects of the fields that transformers knows. `golden/config_fields.py` lists them.
fn effects() -> BTreeMap<&'static str, Effect> {
    use Effect::{Neutral, Read, Refused, WithOthers};
    let mut effects = BTreeMap::from([
        ("architectures", Read(json!(["Qwen3ForSequenceClassification"]))),
        ("attention_bias", Refused(json!(true))),
        ("eos_token_id", Read(json!([1, 2]))),
        ("head_dim", Read(json!(64))),
        ("hidden_act", Refused(json!("gelu"))),
        ("hidden_size", Read(json!(128))),
        ("id2label", Read(json!({"0": "no", "1": "yes"}))),
        ("intermediate_size", Read(json!(128))),
        ("is_causal", Refused(json!(false))),
        ("is_encoder_decoder", Refused(json!(true))),
        ("layer_types", Refused(json!(["full_attention", "sliding_attention"]))),
        ("max_position_embeddings", Read(json!(128))),
        ("model_type", Refused(json!("qwen2"))),
        ("num_attention_heads", Read(json!(4))),
        ("num_hidden_layers", Read(json!(3))),
        ("num_key_value_heads", Read(json!(2))),
        ("partial_rotary_factor", Refused(json!(0.5))),
        ("per_layer_config", Refused(json!({"0": {"head_dim": 16}}))),
        ("pruned_heads", Refused(json!({"0": [0]}))),
        ("quantization_config", Refused(json!({"quant_method": "fp8"}))),
        ("rms_norm_eps", Read(json!(1e-5))),
        ("rope_parameters", Read(json!({"rope_type": "yarn", "factor": 2.0}))),
        ("rope_scaling", Read(json!({"type": "yarn", "factor": 2.0}))),
        ("rope_theta", Read(json!(5e5))),
        ("tie_word_embeddings", Read(json!(true))),
        ("use_bidirectional_attention", Refused(json!(true))),
        ("vocab_size", Read(json!(128))),
    ]);
    // YaRN, classifiers, sliding windows, and a note on the type of weights.
    for field in [
        "dtype",
        "torch_dtype",
        "original_max_position_embeddings",
        "num_labels",
        "problem_type",
        "sliding_window",
        "max_window_layers",
        "use_sliding_window",
    ] {
        effects.insert(field, WithOthers);
    }
    for field in [
        "add_cross_attention",
        "attention_chunk_size",
        "attention_dropout",
        "attn_implementation",
        "chain_hidden_post_norm",
        "logits_mup_width_multiplier",
        "mtp_hidden_states_first",
        "token_classification_bias",
        "unpadded_vocab_size",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "hidden_dropout",
        "initializer_range",
        "is_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
    ] {
        effects.insert(field, Neutral);
    }
    effects
}

#[test]
fn every_field_of_transformers_is_read_or_refused_or_changes_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/config_fields.json");
    let golden = fs::read(path).expect("the golden file is in the repository");
    let golden: BTreeMap<String, Vec<String>> = serde_json::from_slice(&golden).expect("JSON");
    assert_eq!(golden.len(), 2, "versions 4 and 5");
    let effects = effects();
    let fields = golden.values().flatten().map(String::as_str);
    let unknown: Vec<&str> = fields.filter(|field| !effects.contains_key(field)).collect();
    assert!(unknown.is_empty(), "fields without an effect: {unknown:?}");

    let read = |config: &Value| {
        Config::from_json(config.to_string().as_bytes(), None).map_err(|error| error.to_string())
    };
    let plain = read(&config(false)).expect("valid");
    for (field, effect) in &effects {
        let with = |value: &Value| {
            let mut config = config(false);
            config[*field] = value.clone();
            read(&config)
        };
        match effect {
            Effect::Read(value) => assert_ne!(with(value).expect(field), plain, "{field}"),
            Effect::Refused(value) => {
                let error = with(value).expect_err(field);
                assert!(error.contains(field), "{error}");
            }
            Effect::WithOthers => {
                let neutral = match *field {
                    "max_window_layers" => json!(0),
                    "use_sliding_window" => json!(false),
                    "original_max_position_embeddings" => json!(9),
                    _ => json!(null),
                };
                assert_eq!(with(&neutral).as_ref(), Ok(&plain), "{field}");
            }
            Effect::Neutral => {
                for value in [json!(null), json!(true), json!(7), json!("x"), json!([1])] {
                    assert_eq!(with(&value).as_ref(), Ok(&plain), "{field}");
                }
            }
        }
    }
    // No field that is known gives a warning.
    let mut all = config(true);
    for (field, effect) in &effects {
        if matches!(effect, Effect::Neutral) {
            all[*field] = json!(null);
        }
    }
    all["made_up"] = json!(1);
    let notes = warnings(&folder(&all, &tensors(true)));
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].ends_with("ignored: made_up"), "{notes:?}");
}

//! Checkpoints of real shapes with random weights.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use erank_candle::{Checkpoint, WeightFormat};
use erank_tests::random_model::RandomModel;
use half::bf16;
use serde_json::{Map, Value, json};

/// The dimensions of a Qwen3 model, as in its `config.json`.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The size in the model's name.
    pub name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    /// Whether the output projection uses the weights of the embedding.
    is_tied: bool,
}

/// The shapes of Qwen3-0.6B, 4B, 14B and 32B. ERank has the last three.
pub const SHAPES: [Shape; 4] = [
    Shape { name: "0.6B", hidden: 1024, intermediate: 3072, layers: 28, heads: 16, is_tied: true },
    Shape { name: "4B", hidden: 2560, intermediate: 9728, layers: 36, heads: 32, is_tied: true },
    Shape { name: "14B", hidden: 5120, intermediate: 17408, layers: 40, heads: 40, is_tied: false },
    Shape { name: "32B", hidden: 5120, intermediate: 25600, layers: 64, heads: 64, is_tied: false },
];

/// The files of the demonstration model's tokenizer. The program contains them, so that it runs where no sources are.
const TOKENIZER_FILES: [(&str, &str); 3] = [
    ("tokenizer.json", include_str!("../../erank-candle/tiny-model/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../erank-candle/tiny-model/tokenizer_config.json")),
    (
        "generation_config.json",
        include_str!("../../erank-candle/tiny-model/generation_config.json"),
    ),
];

const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCABULARY: usize = 151_936;

/// The text that a model generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Unpredictable text, because all weights are random.
    Random,
    /// The same token repeatedly, so that every speculative token is accepted. The output projections of
    /// attention and feed-forward are zero, at the same cost.
    Repeats,
}

impl Shape {
    /// Returns the shape with this name.
    pub fn of(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    /// Returns the shape with another number of layers, which all take the same time.
    pub fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Returns the bytes of the weights in BF16. A tied embedding counts once.
    pub fn weight_bytes(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum()
    }

    /// Returns the bytes of the weights in BF16 that each step reads. Of an embedding that is not tied, a step reads
    /// only a row for each token, so it does not count.
    pub fn bytes_of_step(&self) -> usize {
        let embedding = if self.is_tied { 0 } else { 2 * VOCABULARY * self.hidden };
        self.weight_bytes() - embedding
    }

    /// Returns the number of multiplications and additions that compute `tokens` tokens and `logits` rows of
    /// logits, without attention.
    pub fn operations(&self, tokens: usize, logits: usize) -> f64 {
        let output = VOCABULARY * self.hidden;
        let layers = self.bytes_of_step() / 2 - output;
        2.0 * (layers * tokens + output * logits) as f64
    }

    /// Returns the number of multiplications and additions of attention, for tokens that see this number of positions
    /// in all.
    pub fn attention_operations(&self, positions: usize) -> f64 {
        4.0 * (self.layers * self.heads * HEAD_DIM * positions) as f64
    }

    /// Returns a layer's projections: name, inputs and outputs.
    pub fn projections(&self) -> [(&'static str, usize, usize); 4] {
        let (queries, keys) = (self.heads * HEAD_DIM, KV_HEADS * HEAD_DIM);
        [
            ("query, key, value", self.hidden, queries + 2 * keys),
            ("attention output", queries, self.hidden),
            ("gate, up", self.hidden, 2 * self.intermediate),
            ("down", self.intermediate, self.hidden),
        ]
    }

    /// Writes a checkpoint to `folder`, unless it exists. Its tokenizer is the demonstration model's, which
    /// uses a part of the vocabulary.
    ///
    /// # Errors
    /// Returns any I/O error.
    pub fn write(&self, folder: &Path, behaviour: Behaviour) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, text) in TOKENIZER_FILES {
            fs::write(folder.join(name), text)?;
        }
        fs::write(folder.join("config.json"), self.config().to_string())?;
        let weights = folder.join("model.safetensors");
        if weights.exists() {
            return Ok(());
        }
        let unfinished = folder.join("unfinished");
        self.write_weights(&unfinished, behaviour)?;
        fs::rename(unfinished, weights)
    }

    /// Opens the model of [`write`](Self::write), below the system's folder for temporary files, and writes it first
    /// unless it exists. The weights are BF16, or those of a GGUF file in another format.
    ///
    /// # Errors
    /// Returns any error of writing or opening the files.
    pub fn checkpoint(
        &self,
        behaviour: Behaviour,
        weights: Option<WeightFormat>,
    ) -> Result<Checkpoint, Box<dyn Error + Send + Sync>> {
        let folder = self.folder(behaviour);
        self.write(&folder, behaviour)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let Some(format) = weights.filter(|format| format.bytes_per_weight() < 2.0) else {
            return Ok(checkpoint);
        };
        let file = folder.join(format!("{format}.gguf"));
        if !file.exists() {
            checkpoint.write_gguf(&file, format, &mut |_, _| ())?;
        }
        Ok(Checkpoint::open(file)?)
    }

    /// Returns a folder for [`write`](Self::write), below the system's folder for temporary files.
    pub fn folder(&self, behaviour: Behaviour) -> PathBuf {
        let Self { name, layers, .. } = self;
        let is_whole = Self::of(name).is_some_and(|whole| whole.layers == *layers);
        let part = if is_whole { String::new() } else { format!("-{layers}-layers") };
        std::env::temp_dir().join(format!("erank-{name}{part}-{behaviour:?}"))
    }

    fn config(&self) -> Value {
        json!({
            "model_type": "qwen3",
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": self.is_tied,
            "eos_token_id": 151_645,
        })
    }

    /// Returns the name and shape of every tensor in the order of the file.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let model = RandomModel::new(self.config()).expect("a config.json with all dimensions");
        model.shapes()
    }

    fn write_weights(&self, path: &Path, behaviour: Behaviour) -> io::Result<()> {
        let tensors = self.tensors();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let mut header = Value::from(header).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;

        let mut noise = 0;
        for (name, shape) in &tensors {
            let is_norm = shape.len() == 1;
            let is_last = name.contains("o_proj") || name.contains("down_proj");
            // Norm weights are 1. Matrices are scaled so that a product has about the size of its input.
            let scale = (3.0 / shape.last().copied().unwrap_or(1) as f32).sqrt();
            let value = |byte: u8| match (is_norm, is_last && behaviour == Behaviour::Repeats) {
                (true, _) => 1.0,
                (_, true) => 0.0,
                _ => f32::from(byte as i8) / 128.0 * scale,
            };
            let table: Vec<[u8; 2]> =
                (0..=255).map(|byte| bf16::from_f32(value(byte)).to_le_bytes()).collect();
            let count: usize = shape.iter().product();
            for start in (0..count).step_by(8) {
                noise = splitmix(noise);
                for byte in noise.to_le_bytes().into_iter().take(count - start) {
                    file.write_all(&table[usize::from(byte)])?;
                }
            }
        }
        file.flush()
    }
}

/// Returns the successor of `state` in a sequence of pseudo-random numbers (SplitMix64).
pub(crate) fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

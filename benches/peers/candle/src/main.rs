//! Measures the Qwen3 of candle-transformers, unmodified, on the same work as the other engines.
//!
//! usage: candle f32|bf16 FOLDER [prefill_512 | decode_1 | decode_8 | decode_32 | job |
//! one_pass_128 | one_pass_512 | one_pass_2048]…
//!
//! `PEERS_TINY=1` makes all work short; `PEERS_JOB_PROMPTS` reduces the number of the job's 32 prompts,
//! `PEERS_DOCUMENTS` that of the 100 documents of one pass.

use std::error::Error;
use std::time::Instant;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BATCH: usize = 8;

struct Bench {
    model: ModelForCausalLM,
    shape: String,
    dtype: &'static str,
    tiny: bool,
    noise: u32,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: candle f32|bf16 FOLDER [FIGURE…]";
    let (dtype, name) = match arguments.next().as_deref() {
        Some("f32") => (DType::F32, "f32"),
        Some("bf16") => (DType::BF16, "bf16"),
        _ => return Err(usage.into()),
    };
    let folder = arguments.next().ok_or(usage)?;
    let figures: Vec<String> = arguments.collect();
    let config: Config = serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
    let weights = std::fs::read(format!("{folder}/model.safetensors"))?;
    let weights = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu)?;
    let mut bench = Bench {
        model: ModelForCausalLM::new(&config, weights)?,
        shape: folder.trim_end_matches('/').rsplit('-').next().unwrap_or_default().to_owned(),
        dtype: name,
        tiny: std::env::var_os("PEERS_TINY").is_some(),
        noise: 0,
    };
    let by_default = ["prefill_512", "decode_1", "decode_8", "decode_32", "job"].map(str::to_owned);
    let figures = if figures.is_empty() { by_default.to_vec() } else { figures };
    for figure in &figures {
        match figure.rsplit_once('_') {
            Some(("decode", rows)) => bench.decode(figure, rows.parse()?)?,
            Some(("one_pass", tokens)) => bench.one_pass(figure, tokens.parse()?)?,
            Some(("prefill", "512")) => bench.prefill()?,
            None if figure == "job" => bench.job()?,
            _ => return Err(format!("{figure} is not a figure").into()),
        }
    }
    Ok(())
}

impl Bench {
    fn prompt(&self) -> usize {
        if self.tiny { 48 } else { 512 }
    }

    fn runs(&self) -> usize {
        if self.tiny { 2 } else { 5 }
    }

    fn prefill(&mut self) -> Result<()> {
        let mut rates = Vec::new();
        for _ in 0..=self.runs() {
            let tokens = self.tokens(1, self.prompt())?;
            self.model.clear_kv_cache();
            let begin = Instant::now();
            next(&mut self.model, &tokens, 0)?;
            rates.push(self.prompt() as f64 / begin.elapsed().as_secs_f64());
        }
        // The first run is a warm-up.
        self.report("prefill_512", "tokens/s", rates.split_off(1), None)
    }

    fn decode(&mut self, figure: &str, rows: usize) -> Result<()> {
        const STEPS: usize = 6;
        let prompt = self.prompt();
        let prompts = self.tokens(rows, prompt)?;
        self.model.clear_kv_cache();
        let first = next(&mut self.model, &prompts, 0)?;
        let mut token = next(&mut self.model, &first, prompt)?;
        let mut position = prompt + 1;
        let mut rates = Vec::new();
        for _ in 0..self.runs() {
            let begin = Instant::now();
            for _ in 0..STEPS {
                token = next(&mut self.model, &token, position)?;
                position += 1;
            }
            rates.push((rows * STEPS) as f64 / begin.elapsed().as_secs_f64());
        }
        self.report(figure, "tokens/s", rates, None)
    }

    /// Measures the job. Each batch starts from a copy of the cache that holds the shared prefix.
    fn job(&mut self) -> Result<()> {
        let (prompts, shared, own, new) =
            if self.tiny { (2, 20, 30, 4) } else { (32, 150, 350, 64) };
        let prompts = number("PEERS_JOB_PROMPTS", prompts)?;
        let seconds = self.batches(prompts, shared, own, new)?;
        self.report("job", "s", vec![seconds], Some(prompts))
    }

    fn one_pass(&mut self, figure: &str, own: usize) -> Result<()> {
        let (documents, shared, own) = if self.tiny { (3, 20, 30) } else { (100, 100, own) };
        let documents = number("PEERS_DOCUMENTS", documents)?;
        let seconds = self.batches(documents, shared, own, 1)?;
        self.report(figure, "documents/s", vec![documents as f64 / seconds], Some(documents))
    }

    /// Returns the seconds of reading `prompts` prompts and generating `new` tokens for each, in batches.
    fn batches(&mut self, prompts: usize, shared: usize, own: usize, new: usize) -> Result<f64> {
        // All batches have the rows of the cached prefix.
        let batch = (1..=BATCH).rev().find(|rows| prompts.is_multiple_of(*rows)).unwrap_or(1);
        let begin = Instant::now();
        let beginning = self.tokens(1, shared)?.repeat((batch, 1))?;
        self.model.clear_kv_cache();
        next(&mut self.model, &beginning, 0)?;
        let cached = self.model.clone();
        for _ in 0..prompts / batch {
            let mut model = cached.clone();
            let tokens = self.tokens(batch, own)?;
            let mut token = next(&mut model, &tokens, shared)?;
            for position in shared + own..shared + own + new - 1 {
                token = next(&mut model, &token, position)?;
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    fn tokens(&mut self, rows: usize, count: usize) -> Result<Tensor> {
        let tokens: Vec<u32> = (0..rows * count)
            .map(|_| {
                self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (self.noise >> 8) % 150_000
            })
            .collect();
        Ok(Tensor::from_vec(tokens, (rows, count), &Device::Cpu)?)
    }

    fn report(
        &self,
        figure: &str,
        unit: &str,
        runs: Vec<f64>,
        prompts: Option<usize>,
    ) -> Result<()> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        println!(
            "{}",
            json!({
                "engine": "candle",
                "version": "0.11.1",
                "dtype": self.dtype,
                "shape": self.shape,
                "figure": figure,
                "value": sorted[sorted.len() / 2],
                "unit": unit,
                "runs": runs,
                "tiny": self.tiny,
                "prompts": prompts,
            })
        );
        Ok(())
    }
}

/// Returns the number in an environment variable, or a default.
fn number(variable: &str, default: usize) -> Result<usize> {
    std::env::var(variable).map_or(Ok(default), |text| Ok(text.parse()?))
}

/// Returns each row's most probable next token.
fn next(model: &mut ModelForCausalLM, tokens: &Tensor, position: usize) -> Result<Tensor> {
    let rows = tokens.dim(0)?;
    Ok(model.forward(tokens, position)?.argmax(D::Minus1)?.reshape((rows, 1))?)
}

//! The size of a model in its files and in memory.

use std::io::{self, Write};

use erank_candle::{Checkpoint, ModelCost};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use crate::table::{self, Column, Table};
use crate::text;

/// A model with its cost.
#[derive(Serialize)]
pub(super) struct ModelReport {
    pub(super) model: String,
    description: String,
    cost: Cost,
}

#[derive(Serialize)]
struct Cost {
    tensors: Vec<Tensors>,
    weight_bytes: usize,
    kv_cache: KvCache,
}

/// Tensors with the same format in the files and in memory.
#[derive(Serialize)]
struct Tensors {
    file_format: &'static str,
    memory_format: &'static str,
    count: usize,
    file_bytes: usize,
    memory_bytes: usize,
}

#[derive(Serialize)]
struct KvCache {
    format: &'static str,
    bytes_per_token: usize,
    max_tokens: usize,
    bytes_of_max_tokens: usize,
    budget_bytes: usize,
}

impl ModelReport {
    pub(super) fn new(checkpoint: &Checkpoint, cost: &ModelCost) -> Self {
        let model = checkpoint.name().to_owned();
        Self { model, description: cost.description.clone(), cost: Cost::new(cost) }
    }

    /// Writes the model's name, a table of its tensors, and the memory of the KV cache.
    pub(super) fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Cost { tensors, kv_cache, .. } = &self.cost;
        writeln!(out, "{}: {}", text::line(&self.model), text::line(&self.description))?;
        writeln!(out)?;
        let mut columns = vec![Column::Word("file format"), Column::Word("memory format")];
        columns.extend(["tensors", "file size", "memory size"].map(Column::Number));
        let mut table = Table::new(columns);
        let mut row = |names: [&str; 2], count: usize, bytes: [usize; 2]| {
            let mut cells = names.map(str::to_owned).to_vec();
            cells.push(count.to_string());
            cells.extend(bytes.map(size));
            table.row(cells, String::new());
        };
        for group in tensors {
            let bytes = [group.file_bytes, group.memory_bytes];
            row([group.file_format, group.memory_format], group.count, bytes);
        }
        let sum = |of: fn(&Tensors) -> usize| tensors.iter().map(of).sum();
        row(["all", ""], sum(|t| t.count), [sum(|t| t.file_bytes), self.cost.weight_bytes]);
        table.write(table::output_width(), out)?;
        writeln!(
            out,
            "KV cache in {}: {} bytes per token, {} for a sequence of {} tokens (the longest), at most {} in all",
            kv_cache.format,
            HumanCount(kv_cache.bytes_per_token as u64),
            size(kv_cache.bytes_of_max_tokens),
            HumanCount(kv_cache.max_tokens as u64),
            size(kv_cache.budget_bytes),
        )
    }
}

impl Cost {
    fn new(cost: &ModelCost) -> Self {
        let tensors = cost.tensors.iter().map(|group| Tensors {
            file_format: group.file_format,
            memory_format: group.memory_format.name(),
            count: group.tensors,
            file_bytes: group.file_bytes,
            memory_bytes: group.memory_bytes,
        });
        Self {
            tensors: tensors.collect(),
            weight_bytes: cost.weight_bytes(),
            kv_cache: KvCache {
                format: cost.kv_cache.name(),
                bytes_per_token: cost.kv_cache_bytes_per_token,
                max_tokens: cost.max_tokens,
                bytes_of_max_tokens: cost.kv_cache_bytes_per_token.saturating_mul(cost.max_tokens),
                budget_bytes: cost.kv_cache_bytes,
            },
        }
    }
}

fn size(bytes: usize) -> String {
    DecimalBytes(bytes as u64).to_string()
}

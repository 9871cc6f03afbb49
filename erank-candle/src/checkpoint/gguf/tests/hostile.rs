//! Mutated files. Each either loads or gives an error. None causes a panic.

use candle_core::DType;

use super::*;
use crate::model::candle::CandleOperations;
use crate::model::qwen3::Qwen3;
use crate::settings::KvCacheFormat;
use crate::tokenizer::PromptTokenizer;

/// The number of files, unless the environment variable `ERANK_MUTATIONS` gives another one.
const MUTATIONS: usize = 20_000;

/// The numbers of files by their outcome.
#[derive(Debug, Default)]
struct Outcomes {
    refused: usize,
    /// Files with a valid configuration and tokenizer, but not all tensors.
    without_tensors: usize,
    loaded: usize,
}

/// Changes a file in one of several ways.
fn mutate(bytes: &mut Vec<u8>, header: usize, random: &mut Random) {
    const NUMBERS: [u64; 12] = [
        0,
        1,
        31,
        33,
        1 << 16,
        (1 << 24) + 1,
        u32::MAX as u64,
        1 << 40,
        u64::MAX / 24,
        1 << 63,
        u64::MAX - 31,
        u64::MAX,
    ];
    // Most of the changes are in the header: a change of the data is a change of a number.
    let reach = if random.below(20) == 0 { bytes.len() } else { header.min(bytes.len()) };
    let position = random.below(reach);
    match random.below(6) {
        0 => bytes[position] ^= 1 << random.below(8),
        1 => bytes[position] = random.next() as u8,
        2 => bytes.truncate(position),
        3 => {
            let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
            let length = [4, 8][random.below(2)].min(bytes.len() - position);
            bytes[position..][..length].copy_from_slice(&number[..length]);
        }
        4 => {
            let end = (position + 1 + random.below(16)).min(bytes.len());
            bytes.drain(position..end);
        }
        _ => {
            let inserted = 1 + random.below(16);
            let inserted = random.bytes(inserted);
            bytes.splice(position..position, inserted);
        }
    }
}

/// Reads everything that loading a checkpoint reads.
fn load(bytes: &[u8], outcomes: &mut Outcomes) {
    let read = || -> Result<_, LoadError> {
        let gguf = parse(bytes)?;
        let (config, files) = (gguf.config()?, gguf.tokenizer()?);
        if let Some(tokenizer) = &files.tokenizer {
            PromptTokenizer::new(tokenizer, Some(&files.tokenizer_config), None)?;
        }
        Ok((config, gguf.weights(&[])?))
    };
    match read() {
        Err(_) => outcomes.refused += 1,
        Ok((config, weights)) => {
            weights.common_format();
            let operations = CandleOperations::new(Device::Cpu, DType::F32);
            match Qwen3::load(config, &weights, operations, KvCacheFormat::F32) {
                Err(_) => outcomes.without_tensors += 1,
                Ok(_) => outcomes.loaded += 1,
            }
        }
    }
}

#[test]
fn mutated_files_load_or_give_an_error() {
    let count = std::env::var("ERANK_MUTATIONS")
        .map_or(MUTATIONS, |count| count.parse().expect("a number"));
    let whole = Content::small().bytes();
    let data: usize = Content::small().tensors.iter().map(|(_, t)| t.storage_size_in_bytes()).sum();
    let mut whole_outcomes = Outcomes::default();
    load(&whole, &mut whole_outcomes);
    assert_eq!(whole_outcomes.loaded, 1, "the file itself");

    let mut outcomes = Outcomes::default();
    let mut random = Random(4);
    for _ in 0..count {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            if !bytes.is_empty() {
                mutate(&mut bytes, whole.len() - data, &mut random);
            }
        }
        load(&bytes, &mut outcomes);
    }
    println!("{count} mutated files: {outcomes:?}");
    assert!(outcomes.loaded > count / 100 && outcomes.refused > count / 4, "{outcomes:?}");
}

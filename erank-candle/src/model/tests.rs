//! Tests of the bundled model on the CPU's kernels and on candle's own operations.

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};

use super::load::load;
use super::step::{BLOCK_TOKENS, BlockId, Row};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::kernels::stored::{StoredMatrix, StoredRow};
use crate::kernels::{InstructionSet, Projection, WeightFormat};
use crate::settings::{CandleSettings, Device, KvCacheFormat};

fn tiny(change: impl FnOnce(&mut CandleSettings)) -> std::sync::Arc<dyn Model> {
    let mut settings = CandleSettings::default();
    change(&mut settings);
    load(&Checkpoint::tiny(), &settings).expect("the bundled model").model
}

fn on(device: Device) -> std::sync::Arc<dyn Model> {
    tiny(|settings| settings.device = device)
}

fn blocks<const N: usize>() -> [BlockId; N] {
    std::array::from_fn(|index| BlockId(index as u32))
}

#[test]
fn candle_attention_ignores_stale_numbers_in_blocks() {
    let model = on(Device::CpuCandle);
    let cache = model.new_cache(4).expect("memory");
    let blocks = blocks::<4>();
    // The second row is padded to the first row's blocks.
    let rows = [
        Row { tokens: &[7; 20], position: 0, blocks: &blocks[..2], logits: 20 },
        Row { tokens: &[9; 20], position: 0, blocks: &blocks[2..], logits: 20 },
    ];
    let clean = model.forward(&rows, &cache).expect("logits");
    for layer in cache.layers() {
        let stale = Tensor::full(f32::NAN, layer.shape(), &candle_core::Device::Cpu)
            .and_then(|numbers| numbers.to_dtype(layer.dtype()))
            .expect("numbers");
        layer.slice_set(&stale, 0, 0).expect("the same shape");
    }
    assert_eq!(model.forward(&rows, &cache).expect("logits"), clean);
}

#[test]
fn forward_rejects_rows_outside_the_limits() {
    for device in [Device::Cpu, Device::CpuCandle] {
        let model = on(device);
        let cache = model.new_cache(1).expect("memory");
        let blocks = blocks::<2>();
        let error = |row: Row<'_>| {
            model.forward(&[row], &cache).expect_err("an impossible row").to_string()
        };
        let row = Row { tokens: &[0], position: 0, blocks: &blocks[..1], logits: 1 };
        assert!(error(Row { tokens: &[u32::MAX], ..row }).contains("token id 4294967295"));
        assert!(error(Row { blocks: &blocks[1..], ..row }).contains("KV block 1"));
        assert!(error(Row { tokens: &[], ..row }).contains("no tokens"));
        assert!(error(Row { logits: 2, ..row }).contains("2 logits"));
        assert!(error(Row { position: BLOCK_TOKENS, ..row }).contains("1 blocks for 17 tokens"));
        let end = model.shape().max_tokens;
        assert!(error(Row { position: end, ..row }).contains("reaches position"));
        assert!(model.forward(&[], &cache).expect("no rows").is_empty());
    }
}

#[test]
fn kv_cache_format_is_independent_of_the_weights() {
    let logits = |weights, kv_cache| {
        let model = tiny(|settings| {
            settings.weights = Some(weights);
            settings.kv_cache = kv_cache;
        });
        let cache = model.new_cache(2).expect("memory");
        let tokens: Vec<u32> = (100..120).collect();
        let row = Row { tokens: &tokens, position: 0, blocks: &blocks::<2>(), logits: 1 };
        let logits = model.forward(&[row], &cache).expect("logits");
        (logits, model.shape().block_bytes)
    };
    let largest_difference =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    use {KvCacheFormat as Cache, WeightFormat as Weights};
    let (exact, f32_bytes) = logits(Weights::F32, None);
    let (rounded, bf16_bytes) = logits(Weights::F32, Some(Cache::Bf16));
    assert_eq!(f32_bytes, 2 * bf16_bytes);
    let scale = exact.iter().fold(0.0, |largest: f32, logit| largest.max(logit.abs()));
    let difference = largest_difference(&exact, &rounded);
    assert!(difference > 0.0 && difference < 0.02 * scale, "{difference} of {scale}");
    let (mixed, bytes) = logits(Weights::Bf16, Some(Cache::F32));
    assert_eq!(bytes, f32_bytes);
    let (bf16, bytes) = logits(Weights::Bf16, None);
    assert_eq!(bytes, bf16_bytes);
    assert!(largest_difference(&mixed, &bf16) > 0.0);
    let (int8, int8_bytes) = logits(Weights::F32, Some(Cache::Int8));
    assert!(int8_bytes < bf16_bytes, "{int8_bytes} bytes, {bf16_bytes} in BF16");
    let difference = largest_difference(&exact, &int8);
    assert!(difference > 0.0 && difference < 0.05 * scale, "{difference} of {scale}");
}

#[test]
fn load_refuses_8_bit_cache_for_candle_operations() {
    let settings = CandleSettings {
        device: Device::CpuCandle,
        kv_cache: Some(KvCacheFormat::Int8),
        ..CandleSettings::default()
    };
    let error = load(&Checkpoint::tiny(), &settings).err().expect("no such cache").to_string();
    assert!(error.contains("kv_cache is Int8"), "{error}");
}

#[test]
fn load_refuses_q8_0_weights_for_candle_operations() {
    let settings = CandleSettings {
        device: Device::CpuCandle,
        weights: Some(WeightFormat::Q8_0),
        ..CandleSettings::default()
    };
    let error = load(&Checkpoint::tiny(), &settings).err().expect("no such weights").to_string();
    assert!(error.contains("not Q8_0"), "{error}");
}

/// The quantisation of candle-core is independent of the kernels'.
#[test]
fn weights_quantised_while_loading_equal_those_of_candle() {
    let (outputs, inputs) = (40, 96);
    // Groups of very different sizes, zeros among them.
    let size = |index: usize| [1.0, 1e-3, 300.0, 0.0, 1e-6][index / 32 % 5];
    let numbers: Vec<f32> = (0..outputs * inputs)
        .map(|index| ((index * 2_654_435_761) % 1999) as f32 / 999.0 - 1.0)
        .enumerate()
        .map(|(index, number)| number * size(index))
        .collect();
    let cpu = candle_core::Device::Cpu;
    let tensor = Tensor::from_slice(&numbers, (outputs, inputs), &cpu).expect("a tensor");
    let stored: Vec<[u8; 4]> = numbers.iter().map(|number| number.to_le_bytes()).collect();
    for (format, candle_format) in
        [(WeightFormat::Q8_0, GgmlDType::Q8_0), (WeightFormat::Q4_0, GgmlDType::Q4_0)]
    {
        let quantized = QTensor::quantize(&tensor, candle_format);
        let expected = quantized.and_then(|quantized| quantized.dequantize(&cpu));
        let expected: Vec<Vec<f32>> = expected.and_then(|e| e.to_vec2()).expect("whole groups");
        for set in InstructionSet::available() {
            let matrix = StoredMatrix::new([StoredRow::F32(&stored)], inputs);
            let weights = Projection::pack(&[(format, matrix)], set).expect("memory");
            for (output, expected) in expected.iter().enumerate() {
                let mut row = Vec::new();
                weights.extend_with_row(output, &mut row);
                assert_eq!(&row, expected, "{format}, output {output}, {}", set.name());
            }
        }
    }
}

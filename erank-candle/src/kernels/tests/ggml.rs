use safetensors::SafeTensors;

use super::super::stored::StoredRow;
use super::*;

/// The golden values are those of llama.cpp's Python package `gguf`; `ggml.py` made the file.
#[test]
fn values_equal_those_of_the_gguf_package() {
    let file = SafeTensors::deserialize(include_bytes!("ggml.safetensors")).expect("a whole file");
    let bytes = |name: &str| file.tensor(name).expect(name).data();
    let blocks = |block_type: BlockType, name| StoredRow::Blocks(block_type, bytes(name));
    let rows = [
        ("F16", StoredRow::F16(bytes("F16").as_chunks().0)),
        ("BF16", StoredRow::Bf16(bytes("BF16").as_chunks().0)),
        ("Q8_0", blocks(BlockType::Q8_0, "Q8_0")),
        ("Q4_0", blocks(BlockType::Q4_0, "Q4_0")),
        ("Q4_K", blocks(BlockType::Q4K, "Q4_K")),
        ("Q5_K", blocks(BlockType::Q5K, "Q5_K")),
        ("Q6_K", blocks(BlockType::Q6K, "Q6_K")),
    ];
    assert_eq!(file.len(), 2 * rows.len());
    for (name, row) in rows {
        let expected = bytes(&format!("{name}.values")).as_chunks().0;
        let expected: Vec<u32> = expected.iter().map(|bits| u32::from_le_bytes(*bits)).collect();
        let mut values = vec![f32::NAN; row.len()];
        row.to_f32(&mut values);
        let bits: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, expected, "{name}");
    }
}

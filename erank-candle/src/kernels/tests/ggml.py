"""Creates `ggml.safetensors`, which `ggml.rs` reads.

    pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    python ggml.py

For each type of tensor in GGUF files that erank-candle reads, the file holds random bytes, `TYPE`, and the values
that llama.cpp's Python package `gguf` dequantises them to, `TYPE.values`, in F32. The bytes of every scale are those
of a finite number.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file

BLOCKS = 6
# The upper bytes of the F16 or BF16 numbers in a block, whose largest exponent means infinity or NaN.
UPPER_BYTES = {
    "F16": [1], "BF16": [1], "Q8_0": [1], "Q4_0": [1], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209],
}


def main():
    random = np.random.default_rng(20261129)
    tensors = {}
    for name, upper_bytes in UPPER_BYTES.items():
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = BLOCKS if values > 1 else 64 * BLOCKS
        data = random.integers(0, 256, (blocks, size), dtype=np.uint8)
        data[:, upper_bytes] &= 0b1011_1111
        # The package takes rows: here, one row of all blocks.
        dequantized = dequantize(data.reshape(1, -1), kind)
        assert dequantized.shape == (1, blocks * values) and np.isfinite(dequantized).all(), name
        tensors[name] = data.reshape(-1)
        tensors[f"{name}.values"] = dequantized.reshape(-1).astype(np.float32)
    save_file(tensors, Path(__file__).with_name("ggml.safetensors"))


main()

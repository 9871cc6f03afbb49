"""Makes golden logits up to position 40,959 for `tests/long_context.rs` with transformers.

    python long_context.py        writes long_context.json beside this file

Needs torch, transformers 5, numpy and safetensors, and about ten minutes. The weights and the prompt are those of the
formula in `parity.py`. The model has one layer with heads of Qwen3's size.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

import parity

HERE = Path(__file__).parent

# Hidden, FFN, query heads, KV heads, head_dim, layers, vocabulary, tied, rope_theta, rms_norm_eps, as in `parity.py`.
SHAPE = (64, 96, 2, 1, 128, 1, 320, True, 1e6, 1e-6)
LENGTH = 40_960
POSITIONS = (0, 1, 511, 512, 8191, 16_384, 32_767, 32_768, 40_000, 40_957, 40_959)


def config():
    model_config = parity.config(SHAPE)
    model_config.max_position_embeddings = LENGTH
    return model_config


def numbers(values):
    """Returns a list of F32 numbers with the digits that they need."""
    return [float(f"{value:.9g}") for value in values]


def main():
    written = parity.config_file(config())
    f32, weights = parity.build(config(), torch.float32, "sdpa")
    bf16, _ = parity.build(config(), torch.bfloat16, "sdpa")
    ids = parity.tokens(LENGTH, written["vocab_size"])
    expected = parity.logits(f32, ids)[list(POSITIONS)]
    of_bf16 = parity.logits(bf16, ids)[list(POSITIONS)]
    about = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, CPU",
        "weights_checksum": parity.checksum(weights),
        "config": written,
        "length": LENGTH,
        "positions": POSITIONS,
        "f32": [numbers(row) for row in expected],
        "bf16": parity.errors(of_bf16, expected),
    }
    print(np.abs(expected).max(), about["bf16"])
    (HERE / "long_context.json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()

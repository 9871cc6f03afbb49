"""Writes a checkpoint of a real Qwen3 shape with random weights in BF16, as benches/src/checkpoint.rs does.

usage: python weights.py 0.6B|4B FOLDER     (needs numpy)
"""

import json
import math
import os
import struct
import sys

import numpy as np

SHAPES = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
HEAD_DIM = 128
VOCABULARY = 151_936


def config(shape):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **SHAPES[shape],
        "num_key_value_heads": 8,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "max_position_embeddings": 40_960,
        "max_window_layers": SHAPES[shape]["num_hidden_layers"],
        "sliding_window": None,
        "use_sliding_window": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tensors(config):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * HEAD_DIM, config["num_key_value_heads"] * HEAD_DIM
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        for part, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }.items():
            yield f"model.layers.{layer}.{part}.weight", shape


def bf16(values):
    """Returns the bits of `values` in BF16, rounded to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write(shape, folder):
    os.makedirs(folder, exist_ok=True)
    settings = config(shape)
    with open(f"{folder}/config.json", "w") as file:
        json.dump(settings, file, indent=2)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in tensors(settings):
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    noise = np.random.default_rng(0)
    with open(f"{folder}/unfinished", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, size in tensors(settings):
            # Norm weights are 1. Matrices are scaled so that a product has about the size of its input.
            steps = np.arange(-128, 128) / 128 * math.sqrt(3 / size[-1])
            table = bf16(np.ones(256) if len(size) == 1 else steps)
            left = math.prod(size)
            while left:
                count = min(left, 1 << 24)
                file.write(table[noise.integers(0, 256, count, np.uint8)].tobytes())
                left -= count
    os.replace(f"{folder}/unfinished", f"{folder}/model.safetensors")


if __name__ == "__main__":
    write(*sys.argv[1:])

"""Makes golden values of YaRN for `tests/yarn.rs` with transformers.

    python yarn.py        writes yarn.json beside this file

Needs torch, transformers 5, numpy and safetensors. The weights and the prompts are those of the formula in
`parity.py`. The longest prompts reach far beyond the positions before the extension. The file also has the cosines and
sines of positions up to 131,071, for Qwen3's own extension among others.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

import parity

HERE = Path(__file__).parent

# The shapes are those of `parity.py`.
MODELS = [
    ("g2_d64_l2_untied", {"factor": 8.0, "original_max_position_embeddings": 128}),
    (
        "g4_d64_l3_tied",
        {
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.3,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
    (
        "g4_d128_l2_tied",
        {"factor": 40.0, "original_max_position_embeddings": 32, "mscale": 0.707, "mscale_all_dim": 1.0},
    ),
]
LENGTHS = (1, 17, 129, 300, 1200)

# The base, the width of a head, and the scaling.
ROTATIONS = [
    (1e6, 128, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    (1e6, 64, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    (1e4, 64, {"factor": 2.5, "original_max_position_embeddings": 4096, "beta_fast": 64.0, "truncate": False}),
    # All dimensions keep their frequencies, and all are interpolated.
    (1e6, 64, {"factor": 4.0, "original_max_position_embeddings": 4_000_000}),
    (1e6, 64, {"factor": 4.0, "original_max_position_embeddings": 4}),
]
POSITIONS = (0, 1, 2, 1000, 32767, 32768, 131071)


def config(shape, rope):
    model_config = parity.config(shape)
    theta = model_config.rope_parameters["rope_theta"]
    model_config.max_position_embeddings = 2048
    model_config.rope_parameters = {"rope_type": "yarn", "rope_theta": theta} | rope
    return model_config


def numbers(values):
    """Returns a list of F32 numbers with the digits that they need."""
    return [float(f"{value:.9g}") for value in values.float().tolist()]


@torch.no_grad()
def last_logits(model, ids):
    return numbers(model(torch.from_numpy(ids)[None], use_cache=False).logits[0, -1])


def golden(name, rope):
    shape = parity.SHAPES[name]
    written = parity.config_file(config(shape, rope))
    # Only the key of version 5, in which the scaling stands.
    del written["rope_scaling"], written["rope_theta"]
    f32, weights = parity.build(config(shape, rope), torch.float32, "sdpa")
    bf16, _ = parity.build(config(shape, rope), torch.bfloat16, "sdpa")
    cases = []
    for length in LENGTHS:
        ids = parity.tokens(length, written["vocab_size"])
        cases.append({"length": length, "f32": last_logits(f32, ids), "bf16": last_logits(bf16, ids)})
    print(name, f32.model.rotary_emb.attention_scaling, [max(map(abs, case["f32"])) for case in cases])
    return {"weights_checksum": parity.checksum(weights), "config": written, "cases": cases}


def rotation(theta, head_dim, rope):
    shape = parity.SHAPES["g2_d64_l2_untied"]
    model_config = config(shape, rope)
    model_config.head_dim = head_dim
    model_config.rope_parameters["rope_theta"] = theta
    embedding = Qwen3RotaryEmbedding(model_config)
    cos, sin = embedding(torch.zeros(1), torch.tensor([POSITIONS]))
    half = head_dim // 2
    return {
        "config": parity.config_file(model_config),
        "positions": POSITIONS,
        "cos": [numbers(row[:half]) for row in cos[0]],
        "sin": [numbers(row[:half]) for row in sin[0]],
    }


def main():
    torch.set_num_threads(1)
    about = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, CPU",
        "models": [golden(name, rope) for name, rope in MODELS],
        "rotations": [rotation(*about) for about in ROTATIONS],
    }
    (HERE / "yarn.json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()

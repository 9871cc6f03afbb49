"""Makes golden logits for `tests/classifier.rs` with transformers' Qwen3ForSequenceClassification.

    python classifier.py        writes classifier.json beside this file

Needs torch, transformers 5, numpy and safetensors. The weights and the prompts are those of the formula in
`parity.py`. transformers' class has no bias, so a model with one gets it as a PyTorch module.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import Qwen3ForSequenceClassification

import parity

HERE = Path(__file__).parent

# The shapes are those of `parity.py`. rows: labels of the head.
MODELS = [
    {"shape": "g2_d64_l2_untied", "rows": 1, "bias": False},
    {"shape": "g4_d64_l3_tied", "rows": 1, "bias": True},
    {"shape": "g4_d128_l2_tied", "rows": 2, "bias": False},
    {"shape": "g2_d64_l2_untied", "rows": 2, "bias": True},
]
LENGTHS = (1, 17, 64, 129, 300)


def build(shape, rows, bias, dtype):
    config = parity.config(shape)
    config.num_labels = rows
    config.architectures = ["Qwen3ForSequenceClassification"]
    config._attn_implementation = "sdpa"
    model = Qwen3ForSequenceClassification(config).eval()
    model.score = torch.nn.Linear(config.hidden_size, rows, bias=bias)
    weights = {name: parity.weight(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    for name, values in weights.items():
        model.state_dict()[name].copy_(torch.from_numpy(values))
    # As in `parity.py`, the buffers of the rotary embedding stay in F32.
    model.model.rotary_emb, rotary = None, model.model.rotary_emb
    model = model.to(dtype)
    model.model.rotary_emb = rotary
    return model, weights, parity.config_file(config)


@torch.no_grad()
def logits(model, ids):
    return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].float().tolist()


def golden(about):
    shape = parity.SHAPES[about["shape"]]
    f32, weights, config = build(shape, about["rows"], about["bias"], torch.float32)
    bf16, _, _ = build(shape, about["rows"], about["bias"], torch.bfloat16)
    cases = []
    for length in LENGTHS:
        ids = parity.tokens(length, config["vocab_size"])
        cases.append({"length": length, "f32": logits(f32, ids), "bf16": logits(bf16, ids)})
    print(about, [case["f32"] for case in cases])
    return about | {"weights_checksum": parity.checksum(weights), "config": config, "cases": cases}


def main():
    torch.set_num_threads(1)
    models = [golden(about) for about in MODELS]
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}, CPU"
    (HERE / "classifier.json").write_text(json.dumps({"made_with": made_with, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()

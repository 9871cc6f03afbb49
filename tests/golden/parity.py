"""Makes golden logits for `tests/parity.rs` with Python's transformers, on small random Qwen3 models.

    python parity.py            writes parity/*.json and parity/*.safetensors beside this file

Needs torch, transformers 5, numpy and safetensors. No weights are stored: Python and Rust make them from the
same formula. Every value is exact in BF16, so one set of weights serves both F32 and BF16 runs:

    noise(name, i)  = splitmix64(fnv1a64(name) + i)            64-bit, wrapping
    matrix element  = int8(top byte of noise) / 128 * 2^shift  shift: `matrix_shift`
    norm weight     = 1 + (top 4 bits of noise - 8) / 16       in 0.5 .. 1.4375; q_norm: twice that
    token i         = noise("tokens/<length>", i) mod vocab_size

A matrix of n columns has shift = -round(log2(n) / 2) plus a gain for its kind. The gains keep activations near
one, make attention peak on a few keys (so that a wrong key is noticed), and keep the embedding from outweighing
the layers (so that a wrong layer is noticed). A run prints the figures by which the gains were chosen.
"""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

FOLDER = Path(__file__).parent / "parity"

# name: hidden, FFN, query heads, KV heads, head_dim, layers, vocabulary, tied, rope_theta, rms_norm_eps
# (g: query heads per KV head; d: head_dim; l: layers). One epsilon is so large that ignoring it is noticed.
SHAPES = {
    "g1_d64_l1_tied": (64, 96, 2, 2, 64, 1, 320, True, 1e6, 1e-6),
    "g2_d64_l2_untied": (128, 200, 4, 2, 64, 2, 331, False, 1e4, 1e-6),
    "g4_d64_l3_tied": (256, 384, 8, 2, 64, 3, 500, True, 1e6, 1e-6),
    "g8_d64_l4_untied": (96, 200, 16, 2, 64, 4, 333, False, 1e6, 1e-6),
    "g1_d128_l4_untied": (192, 160, 2, 2, 128, 4, 400, False, 1e6, 1e-6),
    "g2_d128_l1_untied": (72, 96, 4, 2, 128, 1, 321, False, 1e4, 1e-6),
    "g4_d128_l2_tied": (160, 300, 8, 2, 128, 2, 347, True, 1e4, 1e-4),
    "g8_d128_l3_tied": (256, 328, 8, 1, 128, 3, 352, True, 1e6, 1e-6),
}

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 129, 300)
EVERY_POSITION = 17  # the only length whose logits are kept at every position

# log2 of each kind's gain; the output projection and the embedding (one matrix when tied) are largest.
GAINS = {"v_proj": 1, "o_proj": 1, "gate_proj": 1, "up_proj": 1, "down_proj": 1, "lm_head": 3, "embed_tokens": 3}

MASK = (1 << 64) - 1


# The formula


def fnv1a64(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def noise(name, count):
    """Returns `count` 64-bit numbers: splitmix64's output for the states seed, seed + 1, ..."""
    state = np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64)
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def kind(name):
    """Returns the kind of a weight: "model.layers.0.mlp.up_proj.weight" -> "up_proj"."""
    return name.split(".")[-2]


def matrix_shift(name, columns):
    return GAINS.get(kind(name), 0) - math.floor(math.log2(columns) / 2 + 0.5)


def norm_weight(name, shape):
    sixteenths = (noise(name, shape[0]) >> np.uint64(60)).astype(np.float32) - 8
    return (1 + sixteenths / 16) * (2 if kind(name) == "q_norm" else 1)


def matrix(name, shape):
    top_bytes = (noise(name, math.prod(shape)) >> np.uint64(56)).astype(np.uint8).view(np.int8)
    return top_bytes.astype(np.float32).reshape(shape) / 128 * 2.0 ** matrix_shift(name, shape[1])


def weight(name, shape):
    return (norm_weight if len(shape) == 1 else matrix)(name, shape).astype(np.float32)


def tokens(length, vocab_size):
    return (noise(f"tokens/{length}", length) % np.uint64(vocab_size)).astype(np.int64)


def checksum(weights):
    """Returns a checksum of all tensors' BF16 bits, to tell a generator that differs from a wrong forward pass."""
    total = 0
    for name in sorted(weights):
        bits = (weights[name].reshape(-1).view(np.uint32) >> 16).astype(np.uint64)
        weighted = (bits * np.arange(1, bits.size + 1, dtype=np.uint64)).sum(dtype=np.uint64)
        total = total * 31 + int(weighted) & MASK
    return f"{total:016x}"


# The models


def config(shape):
    hidden, ffn, heads, kv_heads, head_dim, layers, vocab, tied, theta, epsilon = shape
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        rms_norm_eps=epsilon,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        attention_bias=False,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype="bfloat16",
    )


def config_file(model_config):
    """Returns config.json as transformers 5 writes it, with the keys of 4.51 in addition to rope_parameters."""
    with tempfile.TemporaryDirectory() as folder:
        model_config.save_pretrained(folder)
        written = json.loads((Path(folder) / "config.json").read_text())
    theta = written["rope_parameters"]["rope_theta"]
    return written | {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "bfloat16"}


def build(model_config, dtype, attention):
    model_config._attn_implementation = attention
    model = Qwen3ForCausalLM(model_config).eval()
    names = [name for name in model.state_dict() if not (name == "lm_head.weight" and model_config.tie_word_embeddings)]
    weights = {name: weight(name, tuple(model.state_dict()[name].shape)) for name in names}
    for name, values in weights.items():
        exact = torch.from_numpy(values)
        assert torch.equal(exact.bfloat16().float(), exact), f"{name} is not exact in BF16"
        model.state_dict()[name].copy_(exact)
    # to() must round the parameters only: transformers keeps the buffers of the rotary embedding in F32.
    model.model.rotary_emb, rotary = None, model.model.rotary_emb
    model = model.to(dtype)
    model.model.rotary_emb = rotary
    return model, weights


@torch.no_grad()
def logits(model, ids):
    return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].double().numpy()


# The golden files


def positions(length):
    """Returns the positions whose logits are kept: the last and a middle one, or all of one length."""
    if length == EVERY_POSITION:
        return list(range(length))
    return sorted({length // 2, length - 1}) if length > 2 else [length - 1]


def errors(actual, reference):
    """Returns errors relative to the largest logit: the largest, and the root mean square."""
    relative = (actual - reference) / np.abs(reference).max()
    return {"largest": float(np.abs(relative).max()), "rms": float(np.sqrt((relative**2).mean()))}


def golden(name, shape):
    model_config = config(shape)
    written = config_file(model_config)
    reference, weights = build(model_config, torch.float32, "sdpa")
    bf16 = {attention: build(config(shape), torch.bfloat16, attention)[0] for attention in ("sdpa", "eager")}
    exact, _ = build(config(shape), torch.float64, "eager")
    cases, rows = [], []
    for length in LENGTHS:
        ids, kept = tokens(length, model_config.vocab_size), positions(length)
        expected = logits(reference, ids)[kept]
        case = {"length": length, "last_token": int(ids[-1]), "positions": kept}
        for attention, model in bf16.items():
            case[f"bf16_{attention}"] = errors(logits(model, ids)[kept], expected)
        case["f32_against_f64"] = errors(expected, logits(exact, ids)[kept])
        cases.append(case)
        rows.append(expected.astype(np.float32))
    report(name, config(shape), weights, cases, rows)
    save_file({"logits": np.concatenate(rows)}, FOLDER / f"{name}.safetensors")
    about = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, CPU",
        "weights_checksum": checksum(weights),
        "config": written,
        "cases": cases,
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


def report(name, model_config, weights, cases, rows):
    """Prints figures on the test's sensitivity: the logits' range, attention's entropy, the layers' outputs."""
    model, _ = build(model_config, torch.float32, "eager")
    ids = torch.from_numpy(tokens(LENGTHS[-1], model_config.vocab_size))[None]
    with torch.no_grad():
        out = model(ids, use_cache=False, output_attentions=True, output_hidden_states=True)
    entropy = [float(-(a * a.clamp_min(1e-30).log()).sum(-1)[..., -100:].mean()) for a in out.attentions]
    sizes = [float(h.square().mean().sqrt()) for h in out.hidden_states]
    everything = np.concatenate(rows)
    print(f"{name}: {sum(w.size for w in weights.values())} weights")
    print(f"  logits: rms {everything.std():.2f}, largest {np.abs(everything).max():.2f}")
    print(f"  attention's entropy by layer, nats of {math.log(250):.1f}: {np.round(entropy, 2)}")
    print(f"  hidden states' rms, embedding first, final norm last: {np.round(sizes, 2)}")
    for case in cases:
        figures = (f"{key} {e['largest']:.1e} rms {e['rms']:.1e}" for key, e in case.items() if isinstance(e, dict))
        print(f"  {case['length']:4}", *figures)


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name, shape in SHAPES.items():
        golden(name, shape)


if __name__ == "__main__":
    main()

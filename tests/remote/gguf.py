"""Converts a checkpoint folder to a GGUF file for llama.cpp: python3 gguf.py FOLDER OUT.gguf [bf16]

The folder is one that erank-candle loads: a dense Qwen3, in one or more safetensors files, with a BPE
model in tokenizer.json. Needs Python 3.9 and no package.

Weights of any type become F32, so that llama.cpp and erank-candle compute with the same numbers. With
`bf16`, matrices stay in BF16 and only the norms become F32.

The file holds the vocabulary, with which llama.cpp detokenizes. It does not hold normalizers and
pre-tokenizers, so llama.cpp would tokenize text differently: send it token ids. Without a tokenizer.json
in the folder, every token is unused.
"""

import array
import json
import mmap
import pathlib
import struct
import sys

ALIGNMENT = 32
# The GGUF codes of value types.
U32, F32_VALUE, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
# The GGUF codes of tensor types, and of the files that mostly hold them.
F32_TENSOR, BF16_TENSOR = 0, 30
F32_FILE, BF16_FILE = 0, 32
# The GGUF codes of token types.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def tensor_name(name):
    if name in OUTSIDE_LAYERS:
        return OUTSIDE_LAYERS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{TENSORS[rest.removesuffix('.weight')]}.weight"


def as_f32(data, dtype):
    """Returns the values as little-endian F32. Assumes a little-endian machine."""
    if dtype == "F32":
        return bytes(data)
    if dtype == "BF16":
        widened = bytearray(2 * len(data))
        widened[2::4], widened[3::4] = data[0::2], data[1::2]
        return bytes(widened)
    if dtype == "F16":
        return array.array("f", struct.unpack(f"<{len(data) // 2}e", data)).tobytes()
    raise SystemExit(f"a tensor has the type {dtype}; only F32, BF16 and F16 are supported")


def read_tensors(folder, keep_bf16):
    """Yields name, shape, GGUF type and data of every tensor."""
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            data, shape = memoryview(content)[start:end], tensor["shape"]
            if keep_bf16 and len(shape) > 1 and tensor["dtype"] == "BF16":
                yield name, shape, BF16_TENSOR, data
            else:
                yield name, shape, F32_TENSOR, as_f32(data, tensor["dtype"])


def byte_characters():
    """Returns the characters that stand for bytes in GPT-2's tokenizer, and in llama.cpp's version of it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    table = {byte: chr(byte) for byte in plain}
    table.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return table


def read_vocabulary(folder, size):
    """Returns texts and types of all tokens, and the merges, in llama.cpp's format."""
    texts, kinds = [f"[unused {number}]" for number in range(size)], [UNUSED] * size
    file = folder / "tokenizer.json"
    if not file.exists():
        return texts, kinds, []
    tokenizer = json.loads(file.read_text())
    characters = byte_characters()
    is_byte_level = "ByteLevel" in json.dumps(tokenizer.get("decoder"))

    def written(text):
        if is_byte_level:
            return text
        # In a vocabulary with "▁" for a space, convert the bytes of the text.
        return "".join(characters[byte] for byte in text.replace("▁", " ").encode())

    for text, number in tokenizer["model"]["vocab"].items():
        texts[number], kinds[number] = written(text), NORMAL
    for token in tokenizer["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in tokenizer["model"]["merges"])
    return texts, kinds, [" ".join(map(written, pair)) for pair in pairs]


def chat_template(folder):
    """The template of a folder; an empty one without a tokenizer."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    settings = folder / "tokenizer_config.json"
    return json.loads(settings.read_text())["chat_template"] if settings.exists() else ""


def end_tokens(folder, config):
    file = folder / "generation_config.json"
    ends = (json.loads(file.read_text()) if file.exists() else config).get("eos_token_id")
    ends = ends if ends is not None else config["eos_token_id"]
    return ends if isinstance(ends, list) else [ends]


def encoded(kind, value):
    if kind == U32:
        return struct.pack("<I", value)
    if kind == I32:
        return struct.pack("<i", value)
    if kind == F32_VALUE:
        return struct.pack("<f", value)
    if kind == BOOL:
        return struct.pack("<?", value)
    if kind == STRING:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data
    (kind, items) = value
    return struct.pack("<IQ", kind, len(items)) + b"".join(encoded(kind, item) for item in items)


def main(folder, out, keep_bf16):
    config = json.loads((folder / "config.json").read_text())
    texts, kinds, merges = read_vocabulary(folder, config["vocab_size"])
    ends = end_tokens(folder, config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    values = [
        ("general.architecture", STRING, "qwen3"),
        ("general.name", STRING, folder.resolve().name),
        ("general.alignment", U32, ALIGNMENT),
        ("general.file_type", U32, BF16_FILE if keep_bf16 else F32_FILE),
        ("qwen3.block_count", U32, config["num_hidden_layers"]),
        ("qwen3.context_length", U32, config["max_position_embeddings"]),
        ("qwen3.embedding_length", U32, config["hidden_size"]),
        ("qwen3.feed_forward_length", U32, config["intermediate_size"]),
        ("qwen3.attention.head_count", U32, heads),
        ("qwen3.attention.head_count_kv", U32, config["num_key_value_heads"]),
        ("qwen3.attention.key_length", U32, head_dim),
        ("qwen3.attention.value_length", U32, head_dim),
        ("qwen3.attention.layer_norm_rms_epsilon", F32_VALUE, config["rms_norm_eps"]),
        ("qwen3.rope.freq_base", F32_VALUE, config["rope_theta"]),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, texts)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.ggml.eos_token_id", U32, ends[0]),
        ("tokenizer.ggml.padding_token_id", U32, ends[0]),
        ("tokenizer.chat_template", STRING, chat_template(folder)),
    ]
    if len(ends) > 1:
        values.append(("tokenizer.ggml.eot_token_id", U32, ends[1]))

    tensors = list(read_tensors(folder, keep_bf16))
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, kind, value in values:
        header += [encoded(STRING, key), struct.pack("<I", kind), encoded(kind, value)]
    offset = 0
    for name, shape, kind, data in tensors:
        # GGUF lists the fastest dimension first.
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += [encoded(STRING, tensor_name(name)), dimensions]
        header.append(struct.pack("<IQ", kind, offset))
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    with open(out, "wb") as file:
        for part in header:
            file.write(part)
        for _, _, _, data in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(data)
        file.write(bytes(-file.tell() % ALIGNMENT))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["bf16"]):
        raise SystemExit(__doc__)
    main(pathlib.Path(sys.argv[1]), sys.argv[2], keep_bf16=len(sys.argv) == 4)

"""Makes golden token ids and probabilities for `tests/reranker.rs` with the code of Qwen3-Reranker's model card.

    python reranker.py [FOLDER]     writes reranker.json beside this file

FOLDER holds Qwen3's tokenizer (default: the one that `../fetch_qwen3_tokenizer.sh` fills). Needs torch,
transformers 5, numpy and safetensors.

The ids are those of the model card's `process_inputs`: the tokens of the prefix, the pair and the suffix, each
encoded by itself. The texts are those of `tokenizer.py`, so a case is the index of its texts in tokenizer.json.
Where the query or the document contains something that looks like an added token, the ids come from the renamed
tokenizer of `tokenizer.py`. Cases with a limit truncate the pair to the tokens that the limit leaves, as the card
does. The card cuts ids, so it may keep a part of a character, or of a letter with combining marks. Such a case is
marked as `partial`, and has the ids of the text that ends before that part.

The probabilities are those of the model card's `compute_logits`, on random models with the formula of `parity.py`
and the vocabulary of Qwen3-Reranker. Each text has the probability of an F32 model and of a BF16 model.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

import parity
import tokenizer as texts

HERE = Path(__file__).parent

PREFIX = '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"

# hidden, FFN, query heads, KV heads, head_dim, layers, vocabulary, tied, rope_theta, rms_norm_eps
# The vocabulary is that of the checkpoints. The 8B model is untied, the smaller ones are tied.
MODELS = {
    "tied": (64, 96, 4, 2, 64, 2, 151_669, True, 1e6, 1e-6),
    "untied": (64, 128, 4, 1, 128, 4, 151_669, False, 1e6, 1e-6),
}
# Every n-th case gets a probability.
EVERY = 11


def format_instruction(query, document):
    return f"<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}"


# The ids


class Encoder:
    """Encodes as the model card does, with control tokens in data as plain text."""

    def __init__(self):
        self.plain, self.renamed = texts.Plain(), texts.Renamed()
        encode = lambda text: self.plain.tokenizer.encode(text, add_special_tokens=False)
        self.prefix, self.suffix = encode(PREFIX), encode(SUFFIX)

    def pair(self, query, document, max_length=None):
        """Returns the ids of the pair, truncated to `max_length`."""
        text = format_instruction(query, document)
        arguments = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
        own = self.renamed.tokenizer(text, **arguments)["input_ids"]
        if not any(token in text for token in self.renamed.names):
            assert own == self.plain.tokenizer(text, **arguments)["input_ids"], (query, document)
        return own

    def without_partial(self, query, document, kept):
        """Returns the ids of the text of `kept` that ends before a part of a character, or `None` without such a part."""
        text = format_instruction(query, document)
        backend = self.renamed.tokenizer.backend_tokenizer
        backend.no_truncation()
        encoding = backend.encode(text, add_special_tokens=False)
        assert encoding.ids[: len(kept)] == kept
        end = min(encoding.offsets[len(kept) - 1][1], encoding.offsets[len(kept)][0])
        ids = backend.encode(text[:end], add_special_tokens=False).ids
        return None if ids == kept else ids


def truncated_lengths(encoder, query, document, r):
    """Returns a limit for the pair that cuts the document, or `None` if the document is too short."""
    before, whole = len(encoder.pair(query, "")), len(encoder.pair(query, document))
    return r.randint(before + 1, whole - 1) if whole > before + 2 else None


def id_cases(encoder):
    r = random.Random(3)
    cases = []
    for index, (kind, query, document) in enumerate(texts.cases()):
        cases.append({"case": index, "pair": encoder.pair(query, document)})
        limit = truncated_lengths(encoder, query, document, r) if index % 3 == 0 else None
        if limit is not None:
            kept = encoder.pair(query, document, limit)
            limit += len(encoder.prefix) + len(encoder.suffix)
            whole = encoder.without_partial(query, document, kept)
            cases.append({"case": index, "limit": limit, "pair": whole or kept, "partial": whole is not None})
    return cases


# The probabilities


@torch.no_grad()
def compute_logits(model, ids, no, yes):
    """Returns the probability of "yes", as the model card's function of this name does."""
    scores = model(torch.tensor([ids]), use_cache=False).logits[:, -1, :]
    scores = torch.stack([scores[:, no], scores[:, yes]], dim=1)
    return torch.nn.functional.log_softmax(scores, dim=1)[:, 1].exp().item()


def probabilities(encoder, shape, cases):
    of = encoder.plain.tokenizer.convert_tokens_to_ids
    model_config = parity.config(shape)
    model_config.max_position_embeddings = 4096
    models = [parity.build(model_config, dtype, "sdpa") for dtype in (torch.float32, torch.bfloat16)]
    written = parity.config_file(model_config)
    found = []
    for case in cases:
        ids = encoder.prefix + case["pair"] + encoder.suffix
        f32, bf16 = (compute_logits(model, ids, of("no"), of("yes")) for model, _ in models)
        found.append({"case": case["case"], "f32": f32, "bf16": bf16})
    return {"config": written, "weights_checksum": parity.checksum(models[0][1]), "probabilities": found}


def main():
    torch.set_num_threads(1)
    encoder = Encoder()
    cases = id_cases(encoder)
    whole = [case for case in cases if "limit" not in case]
    models = {name: probabilities(encoder, shape, whole[::EVERY]) for name, shape in MODELS.items()}
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}, CPU"
    about = {"made_with": made_with, "prefix": encoder.prefix, "suffix": encoder.suffix}
    lines = [json.dumps(about, separators=(",", ":"))[:-1] + ","]
    lines += ['"models":' + json.dumps(models, indent=1) + ","]
    lines += ['"cases":[', ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases), "]}"]
    (HERE / "reranker.json").write_text("\n".join(lines) + "\n")
    print(f"{len(whole)} prompts, {len(cases) - len(whole)} of them also truncated")
    for name, model in models.items():
        found = model["probabilities"]
        errors = np.array([p["bf16"] - p["f32"] for p in found])
        between = sum(0.01 < p["f32"] < 0.99 for p in found)
        print(f"{name}: {len(found)} probabilities, {between} of them between 0.01 and 0.99; "
              f"errors of BF16: largest {np.abs(errors).max():.2e}, rms {np.sqrt((errors**2).mean()):.2e}")


if __name__ == "__main__":
    main()

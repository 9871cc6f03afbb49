"""Exports a training checkpoint as a model folder that `transformers` and erank load.

    python export.py CHECKPOINT TOKENIZER_JSON MODEL_FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import tokenizer as texts
from model import ModelConfig, Student

MOST_POSITIONS = 2048
MOST_NEW_TOKENS = 128


def model_config(config, end_of_text):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "head_dim": config.head_dimension,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "initializer_range": 0.02,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": MOST_POSITIONS,
        "max_window_layers": config.layers,
        "model_type": "qwen3",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.key_value_heads,
        "pad_token_id": end_of_text,
        "rms_norm_eps": config.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocabulary,
    }


def tokenizer_config(tokenizer):
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [texts.TURN_START, texts.TURN_END],
        "bos_token": None,
        "chat_template": texts.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": texts.END_OF_TEXT,
        "model_max_length": MOST_POSITIONS,
        "pad_token": texts.END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def export(student, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    end_of_text = tokenizer.token_to_id(texts.END_OF_TEXT)
    weights = {
        f"model.{name}": weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in student.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    generation = {
        "do_sample": False,
        "eos_token_id": [end_of_text, tokenizer.token_to_id(texts.TURN_END)],
        "max_new_tokens": MOST_NEW_TOKENS,
        "pad_token_id": end_of_text,
        "transformers_version": "4.51.0",
    }
    files = {
        "config.json": model_config(student.config, end_of_text),
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(tokenizer),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main():
    checkpoint_path, tokenizer_path, folder = sys.argv[1:]
    checkpoint = torch.load(checkpoint_path)
    student = Student(ModelConfig(**checkpoint["config"]))
    student.load_state_dict(checkpoint["student"])
    export(student, Tokenizer.from_file(tokenizer_path), Path(folder))


if __name__ == "__main__":
    main()

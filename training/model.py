"""The student: a Qwen3 decoder in plain PyTorch, with the names Qwen3's checkpoints use."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as functional
from torch import nn


@dataclass
class ModelConfig:
    vocabulary: int
    hidden: int = 128
    layers: int = 4
    heads: int = 6
    key_value_heads: int = 3
    head_dimension: int = 64
    feed_forward: int = 320
    rope_theta: float = 1e7
    norm_epsilon: float = 1e-6

    as_dict = asdict


class RootMeanSquareNorm(nn.Module):
    def __init__(self, size, epsilon, weight=1.0):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.full((size,), weight))

    def forward(self, states):
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(states.dtype)


class Attention(nn.Module):
    # Sharper than 1 from the start: finding a word needs almost all the attention on one token.
    QUERY_KEY_WEIGHT = 1.5

    def __init__(self, config):
        super().__init__()
        self.config = config
        size = config.head_dimension
        self.q_proj = nn.Linear(config.hidden, config.heads * size, bias=False)
        self.k_proj = nn.Linear(config.hidden, config.key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(config.hidden, config.key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.heads * size, config.hidden, bias=False)
        self.q_norm = RootMeanSquareNorm(size, config.norm_epsilon, self.QUERY_KEY_WEIGHT)
        self.k_norm = RootMeanSquareNorm(size, config.norm_epsilon, self.QUERY_KEY_WEIGHT)

    def forward(self, states, cosine, sine):
        batch, length, _ = states.shape
        size = self.config.head_dimension

        def split(projected):
            return projected.view(batch, length, -1, size)

        def rotate(heads):
            half = size // 2
            turned = torch.cat((-heads[..., half:], heads[..., :half]), -1)
            return heads * cosine + turned * sine

        queries = rotate(self.q_norm(split(self.q_proj(states))).transpose(1, 2))
        keys = rotate(self.k_norm(split(self.k_proj(states))).transpose(1, 2))
        values = split(self.v_proj(states)).transpose(1, 2)
        group = self.config.heads // self.config.key_value_heads
        keys = keys.repeat_interleave(group, 1)
        values = values.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.feed_forward, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.feed_forward, bias=False)
        self.down_proj = nn.Linear(config.feed_forward, config.hidden, bias=False)

    def forward(self, states):
        return self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RootMeanSquareNorm(config.hidden, config.norm_epsilon)
        self.post_attention_layernorm = RootMeanSquareNorm(config.hidden, config.norm_epsilon)

    def forward(self, states, cosine, sine):
        states = states + self.self_attn(self.input_layernorm(states), cosine, sine)
        return states + self.mlp(self.post_attention_layernorm(states))


class Student(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RootMeanSquareNorm(config.hidden, config.norm_epsilon)
        self._initialise()

    def _initialise(self):
        nn.init.normal_(self.embed_tokens.weight, std=0.08)
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.dim() == 2:
                    shrink = 0.3 if "o_proj" in name or "down_proj" in name else 1.0
                    nn.init.normal_(weight, std=shrink * weight.shape[1] ** -0.5)
            # Keys begin as a copy of their group's first query head, so that equal tokens find
            # each other from the first step on.
            attention = layer.self_attn
            heads = attention.q_proj.weight.view(
                self.config.key_value_heads, -1, self.config.head_dimension, self.config.hidden
            )
            with torch.no_grad():
                attention.k_proj.weight.copy_(heads[:, 0].reshape_as(attention.k_proj.weight))

    def rotations(self, length):
        size = self.config.head_dimension
        frequencies = self.config.rope_theta ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def forward(self, ids, positions, cosine, sine):
        """Logits at the given positions of each row."""
        states = self.embed_tokens(ids)
        for layer in self.layers:
            states = layer(states, cosine, sine)
        states = self.norm(states)
        picked = torch.gather(states, 1, positions[..., None].expand(-1, -1, states.shape[-1]))
        return functional.linear(picked, self.embed_tokens.weight)


def to_transformers(student, end_of_text):
    """The same model as transformers' Qwen3ForCausalLM."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = student.config
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.head_dimension,
            max_position_embeddings=2048,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_of_text,
            pad_token_id=end_of_text,
        )
    )
    weights = {f"model.{name}": weight for name, weight in student.state_dict().items()}
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and result.missing_keys == ["lm_head.weight"], result
    model.tie_weights()
    return model.eval()

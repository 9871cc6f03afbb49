"""The student: a Qwen3 decoder in plain PyTorch, with the tensor names of Qwen3 checkpoints."""

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


# Features of each token. They initialise the last dimensions of its embedding. "fresh" depends on the
# context, not on the token alone: an attention head detects a token's first occurrence.
FEATURES = (
    "constant",
    "rarity",
    "mark",
    "marker",
    "query follows",
    "document follows",
    "answer follows",
    "fresh",
)
FEATURE_SIZE = 0.3
QUICK_ROTATIONS = 3  # rotary frequencies that distinguish neighbouring positions
NEAR_ROTATIONS = 6  # rotary frequencies that distinguish nearby positions from distant ones
DISTANT_ROTATIONS = 9  # rotary frequencies that distinguish positions within a prompt


def feature(name):
    """Returns the index of a feature in the residual stream, counted from its end."""
    return FEATURES.index(name) - len(FEATURES)


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
    # Initial weight above 1, for sharper attention: matching a word needs almost all attention on one token.
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
    def __init__(self, config, features=None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RootMeanSquareNorm(config.hidden, config.norm_epsilon)
        if features is not None:
            with torch.no_grad():
                self._initialise(features)

    # Training discovers the circuits for matching equal words and for copying the query late, so the
    # heads are initialised with them. The first half of the residual stream holds the token. The second
    # half holds the previous token (for a word of the query, the last token before it that was fresh).
    # The last `len(FEATURES)` dimensions hold the features.

    def _initialise(self, features):
        half = self.config.hidden // 2
        nn.init.normal_(self.embed_tokens.weight[:, :half], std=0.1)
        nn.init.normal_(self.embed_tokens.weight[:, half:], std=0.03)
        self.embed_tokens.weight[:, -len(FEATURES) :] = FEATURE_SIZE * features
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.dim() == 2:
                    shrink = 0.03 if "o_proj" in name or "down_proj" in name else 1.0
                    nn.init.normal_(weight, std=shrink * weight.shape[1] ** -0.5)
        first, second, third, fourth = (layer.self_attn for layer in self.layers)
        self._look_back_from_marks(first)
        self._look_at_markers(first)
        self._look_for_repeats(first)
        for attention in (second, third, fourth):
            self._match(attention, 1, 0)
            self._match(attention, 2, 0)
            self._match(attention, 0, half)
        self._find_in_document(second, "marker")
        self._look_back_past_repeats(second)
        self._copy_query(third)
        self._find_in_document(third, "mark")

    def _group(self, attention, number):
        """Returns views of the weights of a KV head and of its first query head: q, k, v and o."""
        size = self.config.head_dimension
        keys = slice(number * size, (number + 1) * size)
        start = number * self.config.heads // self.config.key_value_heads * size
        queries = slice(start, start + size)
        return (
            attention.q_proj.weight[queries],
            attention.k_proj.weight[keys],
            attention.v_proj.weight[keys],
            attention.o_proj.weight[:, queries],
        )

    def _look_back(self, attention, group, distance, asking):
        """Makes a group's first head attend to the token `distance` positions earlier.

        The head copies the first half of that token's residual into the second half of the current
        token's. `asking` maps features of the current token to weights of its query.
        """
        size = self.config.head_dimension
        queries, keys, values, outputs = self._group(attention, group)
        queries *= 0.1
        keys *= 0.1
        for name, weight in asking.items():
            queries[:QUICK_ROTATIONS, feature(name)] = weight
        # The key is rotated ahead by `distance`, so that it aligns with the later token's query.
        angles = distance * self.config.rope_theta ** (-torch.arange(QUICK_ROTATIONS) / (size / 2))
        keys[:QUICK_ROTATIONS, feature("constant")] = 3.0 * angles.cos()
        keys[size // 2 : size // 2 + QUICK_ROTATIONS, feature("constant")] = 3.0 * angles.sin()
        values.zero_()
        values[:, :size] = torch.eye(size)
        outputs.zero_()
        outputs[-size:] = 0.1 * torch.eye(size)
        outputs[-len(FEATURES) :] = 0

    def _look_back_from_marks(self, attention):
        """Makes the first group's first head pass a word to the mark that follows it."""
        self._look_back(attention, 0, 1.0, {"constant": 0.0, "mark": 3.0})

    def _look_back_past_repeats(self, attention):
        """Makes the third group's first head attend to the last fresh token before the current one.

        Marks are excluded: `_look_back_from_marks` serves them.
        """
        # Slightly more than 1, so that the token two positions earlier ranks before the token itself.
        self._look_back(attention, 2, 1.25, {"constant": 5.0, "mark": -5.0})
        queries, keys, _, _ = self._group(attention, 2)
        queries[-1, feature("constant")] = 3.0
        keys[-1, feature("constant")] = -3.3
        keys[-1, feature("fresh")] = 3.0

    def _look_for_repeats(self, attention):
        """Makes the third group's first head detect earlier occurrences of the same token.

        It attends to equal tokens except nearby ones, and therefore not to the token itself. Without an
        earlier occurrence, most attention goes to the prompt's markers, and the token counts as fresh.
        """
        self._match(attention, 2, 0)
        queries, keys, values, outputs = self._group(attention, 2)
        for heads, sign in ((queries, 1.0), (keys, -1.0)):
            heads[:NEAR_ROTATIONS, feature("constant")] = 0.75 * sign
            heads[-1] = 0
        queries[-1, feature("constant")] = 1.5
        keys[-1, feature("marker")] = 1.5
        values[0] = 0
        values[0, feature("marker")] = 1.0
        outputs[:, 0] = 0
        outputs[feature("fresh"), 0] = 0.3

    def _look_at_markers(self, attention):
        """Makes the second group's first head detect the parts of the prompt that have started."""
        queries, keys, values, outputs = self._group(attention, 1)
        queries *= 0.1
        keys *= 0.1
        queries[-1, feature("constant")] = 3.0
        keys[-1, feature("marker")] = 3.0
        for row, part in enumerate(map(feature, ("query follows", "document follows", "answer follows"))):
            values[row] = 0
            values[row, part] = 1.0
            outputs[:, row] = 0
            outputs[part, row] = 0.3

    def _match(self, attention, group, start):
        """Makes a group's first head attend to tokens that are similar in the dimensions from `start` on."""
        size = self.config.head_dimension
        queries, keys, _, _ = self._group(attention, group)
        for heads in (queries, keys):
            heads *= 0.1
            same = torch.eye(size)
            # The result must not depend on distance, so the dimensions with high rotary frequencies are excluded.
            same.view(2, size // 2, size)[:, :DISTANT_ROTATIONS] = 0
            heads[:, start : start + size] += same
            heads[:, -len(FEATURES) :] = 0

    def _find_in_document(self, attention, found):
        """Makes the second group write the share of its attention on the document to feature `found`."""
        _, _, values, outputs = self._group(attention, 1)
        values[0] = 0
        values[0, feature("document follows")] = 1.0
        values[0, feature("answer follows")] = -2.0
        outputs[:, 0] = 0
        outputs[feature(found), 0] = 0.3

    def _copy_query(self, attention):
        """Makes the first head predict the new word that followed the same token in the query."""
        size = self.config.head_dimension
        queries, keys, values, outputs = self._group(attention, 0)
        queries[-1, feature("constant")] = 1.5
        keys[-1, feature("constant")] = -2.5
        keys[-1, feature("document follows")] = -8.0
        keys[-1, feature("fresh")] = 3.0
        values.copy_(torch.eye(size, self.config.hidden))
        outputs[:size] = 0.25 * torch.eye(size)

    def rotations(self, length):
        size = self.config.head_dimension
        frequencies = self.config.rope_theta ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def forward(self, ids, positions, cosine, sine):
        """Returns the logits at the given positions of each row."""
        states = self.embed_tokens(ids)
        for layer in self.layers:
            states = layer(states, cosine, sine)
        states = self.norm(states)
        picked = torch.gather(states, 1, positions[..., None].expand(-1, -1, states.shape[-1]))
        return functional.linear(picked, self.embed_tokens.weight)


def to_transformers(student, end_of_text):
    """Returns the same model as a `Qwen3ForCausalLM` of transformers."""
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

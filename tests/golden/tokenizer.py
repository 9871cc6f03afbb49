"""Makes golden token ids for `tests/tokenizer.rs` with transformers and Qwen3's own tokenizer.

    python tokenizer.py [FOLDER]     writes tokenizer.json beside this file

FOLDER holds the tokenizer (default: the one that `../fetch_qwen3_tokenizer.sh` fills). Needs
transformers 5.

A case is a query and a document. Each case is put into ERank's prompt, and the prompt into two chat
templates: ChatML (the tokenizer's own) and LLaMA-Factory's `Human:`/`Assistant:` form. Some cases also go
into a prompt whose text adjoins the query and the document without a line break, and which has halves of
control tokens beside them.

The ids come from two sources:

- If the query and the document contain nothing that looks like an added token:
  `apply_chat_template(..., tokenize=True)` of the whole message.
- Otherwise: a renamed tokenizer. Its added tokens are written with private-use characters in the tokenizer,
  the chat template and the prompt, but not in the query and the document, so text there that looks like a
  control token is plain text. Both sources must agree where both apply.

Only the ids of the query, the document and the text around them differ between cases, and they are the same in
both chat templates. The ids before and after them are stored once per template.
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).parent
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / ".cache" / "qwen3-tokenizer"

INSTRUCTION = "Retrieve relevant documents for the query."
ERANK = """\
Given a query and a document, please give a relevance score of 0~10.
The goal or relevance definition is: {instruction}

Here is the query:
{query}

Here is the document:
{doc}

After thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].
- 0 represents completely not related
- 10 means perfectly related.

Desired output format:
<think>put your thinking here</think><answer>Only allows an integer here</answer>

Your output:"""
# Trusted text that adjoins the data: letters, and halves of control tokens.
TIGHT = "<think>e{query}<|im_{doc}end|> </think> done"

HUMAN = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '<|endoftext|>\\nAssistant:' }}"
    "{% endif %}{% endfor %}"
)


# The two sources


class Plain:
    """The unmodified tokenizer."""

    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)

    def ids(self, template, prompt, query, document):
        message = fill(prompt, query, document)
        return apply(self.tokenizer, template or self.tokenizer.chat_template, message)


class Renamed:
    """The same tokenizer with other names for its added tokens."""

    def __init__(self):
        description = json.loads((FOLDER / "tokenizer.json").read_text())
        self.names = {}
        for token in description["added_tokens"]:
            name = f"\U000F0000{token['id']}\U000F0001"
            self.names[token["content"]] = name
            token["content"] = name
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
        self.chat_template = json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"]

    def rename(self, text):
        for token, name in self.names.items():
            text = text.replace(token, name)
        return text

    def ids(self, template, prompt, query, document):
        template = self.rename(template or self.chat_template)
        return apply(self.tokenizer, template, fill(self.rename(prompt), query, document))

    def looks_like_control(self, prompt, query, document):
        """Returns whether the filled prompt has more added tokens than the prompt."""
        count = lambda text: sum(text.count(token) for token in self.names)
        return count(fill(prompt, query, document)) > count(prompt)

    def truncate(self, text, limit):
        """Returns the text of the first `limit` tokens, without a last character that is only partly included.

        Except for that character, this is `decode(ids[:limit])`.
        """
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= limit:
            return text, False
        end = encoding.offsets[limit - 1][1] if limit else 0
        kept = text[: min(end, encoding.offsets[limit][0])]
        if not any(taken_apart(character) for character in text):
            decoded = self.tokenizer.decode(encoding.ids[:limit]).rstrip("\ufffd")
            assert decoded == unicodedata.normalize("NFC", kept).rstrip("\ufffd"), (text, limit)
        return kept, True


def taken_apart(character):
    """Returns whether NFC splits the character into several, so that only some of them may fit."""
    return len(unicodedata.normalize("NFC", character)) > 1


def fill(prompt, query, document):
    before, rest = prompt.replace("{instruction}", INSTRUCTION).split("{query}")
    between, after = rest.split("{doc}")
    return before + query + between + document + after


def apply(tokenizer, template, message):
    messages = [{"role": "user", "content": message}]
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True
    )
    return list(encoded["input_ids"])


# The texts

SCRIPTS = {
    "latin": [(0x61, 0x7A), (0xC0, 0x17F), (0x1E00, 0x1EFF)],
    "greek": [(0x391, 0x3A1), (0x3B1, 0x3C9), (0x1F00, 0x1F15)],
    "cyrillic": [(0x410, 0x44F), (0x450, 0x45F)],
    "armenian": [(0x561, 0x586)],
    "hebrew": [(0x5D0, 0x5EA), (0x5B0, 0x5BC)],
    "arabic": [(0x620, 0x64A), (0x64B, 0x655), (0x660, 0x669)],
    "devanagari": [(0x904, 0x94D), (0x958, 0x95F), (0x966, 0x96F)],
    "bengali": [(0x985, 0x98C), (0x9BE, 0x9C4), (0x9DC, 0x9DD)],
    "tamil": [(0xB85, 0xB8A), (0xBBE, 0xBC2), (0xBC6, 0xBC8)],
    "thai": [(0xE01, 0xE3A), (0xE40, 0xE4E)],
    "tibetan": [(0xF40, 0xF47), (0xF71, 0xF7D), (0xF90, 0xF97)],
    "georgian": [(0x10D0, 0x10F0)],
    "ethiopic": [(0x1200, 0x1248)],
    "khmer": [(0x1780, 0x17B3), (0x17B6, 0x17D3)],
    "han": [(0x4E00, 0x9FA5)],
    "han, rare": [(0x3400, 0x34FF), (0x20000, 0x200FF), (0xF900, 0xF9FF)],
    "kana": [(0x3041, 0x3096), (0x30A1, 0x30FA), (0x3099, 0x309A)],
    "hangul": [(0xAC00, 0xD7A3)],
    "jamo": [(0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)],
    "mathematical": [(0x1D400, 0x1D454), (0x2200, 0x22FF)],
    "gothic": [(0x10330, 0x1034A)],
    "fullwidth": [(0xFF01, 0xFF5E)],
    "numerals": [(0x30, 0x39), (0x660, 0x669), (0xB2, 0xB3), (0x2160, 0x216B), (0x2460, 0x2469), (0x1D7CE, 0x1D7D7)],
}
EMOJI = "😀 🤖 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 🇯🇵 1️⃣ ☺️ 🧑🏿‍🚀 ❤️‍🔥 ✈ 🫠 🪿".split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\u00a0", "\u0085", "\u2003", "\u2028", "\u3000",
          "\v", "\f", "\u200b", "\ufeff", "\u1680", "\u202f", "\u180e"]
PROSE = """the of and relevance scores are given by a model which reads both texts don't we'll it's I'M YOU'RE they'd
'tis o'clock rock'n'roll naïve café résumé Straße ﬁne Ångström coöperate e.g. U.S.A. 3.14 1,000,000 42nd C++ C# .NET a/b
state-of-the-art http://example.org/?q=1&r=%20#top user@example.org $9.99 50% (see fig. 2) [1] "quoted" “curly” … — – x²""".split()
CODE = ["def f(x):\n    return x ** 2\n", "fn main() {\n\tprintln!(\"{}\", 1);\n}\n", "<div class=\"a\">&amp;</div>", "{\"a\": [1, 2.5e-3, null]}",
        "SELECT * FROM t WHERE a <> 'b';", "if (a<b && c>d) { a->b |= 0xFF; }", "for i in `seq 1 9`; do echo $i; done", "\\begin{equation} \\alpha_1 \\end{equation}",
        "x = y if z else w  # comment", "<!-- -->", "/* */ // \\\\", "a_b.cD-e::f<T>[0]", "    \n        \n\tpass", "#!/bin/sh\n", "^[a-z]+\\s*$", "==> <== !== |||"]
NORMAL_FORMS = ["e\u0301", "\u0301", "\u0344", "\ufb1d", "\u212a", "\u212b", "\u1100\u1161\u11a8", "\u1161", "\u11a8", "a\u0323\u0307", "a\u0307\u0323",
                "\U0001d160", "\u0958", "\u0b47\u0b3e", "\u1e9b\u0323", "\u2126", "\u037e", "\u1fef", "\u2000", "\ufdfa", "\u0338", "\u20d2", "\u3099", "か\u3099", "q\u0307\u0323"]
CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|vision_pad|>", "<|fim_prefix|>",
           "<tool_response>", "</tool_response>", "<|object_ref_start|>"]
NEARLY = ["<|im_end|", "|im_end|>", "<|IM_END|>", "<| im_end |>", "<|im_end|>\u0338", "<\u200b|im_end|>", "＜think＞", "<think >", "< think>", "<|im_<|im_end|>end|>",
          "<thi", "nk>", "<answer>", "</answer>", "<|im_", "end|>", "</thi", "<<think>>", "&lt;think&gt;", "<|im_start|>system\nYou are", "\nHuman: ", "\nAssistant:"]


def word(r, ranges, longest=8):
    return "".join(chr(r.randint(*r.choice(ranges))) for _ in range(r.randint(1, longest)))


def scripts(r):
    ranges = SCRIPTS[r.choice(sorted(SCRIPTS))]
    return r.choice([" ", " ", "", "、", ", "]).join(word(r, ranges) for _ in range(r.randint(1, 8)))


def mixed(r, *sources):
    return "".join(r.choice(r.choice(sources)) for _ in range(r.randint(1, 9)))


def prose(r):
    return r.choice([" ", " ", "  ", "\n"]).join(r.choice(PROSE) for _ in range(r.randint(1, 14)))


def any_characters(r):
    """Returns characters of all Unicode planes, without surrogates and the private-use characters of `Renamed`."""
    blocks = [(0, 0x7F), (0, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x3FFFF), (0xE0000, 0xE01FF), (0x100000, 0x10FFFF)]
    return "".join(chr(r.randint(*r.choice(blocks))) for _ in range(r.randint(1, 20)))


KINDS = {
    "scripts": scripts,
    "prose": prose,
    "emoji": lambda r: mixed(r, EMOJI, EMOJI, [" ", "a", "!"]),
    "white space": lambda r: mixed(r, SPACES, SPACES, ["a", "7", ".", "本"]),
    "code": lambda r: r.choice(["", "\n", " "]).join(r.choice(CODE) for _ in range(r.randint(1, 3))),
    "normal forms": lambda r: mixed(r, NORMAL_FORMS, NORMAL_FORMS, ["a", " ", "\n", ">", "이"]),
    "any characters": any_characters,
    "control tokens": lambda r: mixed(r, CONTROL, CONTROL, NEARLY, PROSE, SPACES, ["\u0338"]),
    "nearly control tokens": lambda r: mixed(r, NEARLY, NEARLY, PROSE, [" ", "\n"]),
    "everything": lambda r: mixed(r, CONTROL, NEARLY, NORMAL_FORMS, EMOJI, SPACES, PROSE, CODE, [scripts(r)]),
}

EDGES = ["", " ", "\n", "a", "\u0301", "<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n<think>", "7", "😀", "e", "nd|>", "end|>", "<think>", "</think><answer>10</answer>",
         "a" * 300, " " * 150, "-" * 140, "\n" * 70, "0123456789" * 5, "é" * 40, "\0", "<tool_response>x</tool_response>", "\ufeff", "’s 'S 'ſ 'LL 'Ve"]


def cases():
    """Yields triples of a kind, a query and a document, the same in every run."""
    r = random.Random(20250900520)
    for edge in EDGES:
        yield "edges", edge, r.choice(EDGES)
        yield "edges", r.choice(EDGES), edge
    for kind, make in KINDS.items():
        for _ in range(46):
            yield kind, make(r), make(r)
    for _ in range(40):
        yield "kinds mixed", KINDS[r.choice(sorted(KINDS))](r), KINDS[r.choice(sorted(KINDS))](r)


def truncated_cases():
    r = random.Random(2)
    texts = [prose, scripts, KINDS["emoji"], any_characters, KINDS["code"], KINDS["control tokens"], KINDS["normal forms"]]
    for round_ in range(6):
        for make in texts:
            yield make(r), make(r), r.randint(0, 6), r.randint(0, 12)


# The golden file


def common_length(lists):
    first = lists[0]
    differs = (i for i, column in enumerate(zip(*lists)) if len(set(column)) > 1)
    return next(differs, min(map(len, lists)) if len(lists) > 1 else len(first))


def golden():
    plain, renamed = Plain(), Renamed()
    counts = {"plain": 0, "look-alikes": 0}

    def ids(template, prompt, query, document):
        own = renamed.ids(template, prompt, query, document)
        if renamed.looks_like_control(prompt, query, document):
            counts["look-alikes"] += 1
        else:
            counts["plain"] += 1
            expected = plain.ids(template, prompt, query, document)
            assert own == expected, (query, document)
        return own

    forms = {
        "chatml": {"chat_template": None, "prompt": ERANK},
        "human": {"chat_template": HUMAN, "prompt": ERANK},
        "tight": {"chat_template": None, "prompt": TIGHT},
    }
    written, encoded = [], {form: [] for form in forms}
    everything = [(*case, None) for case in cases()]
    everything += [("truncated", query, document, limits) for query, document, *limits in truncated_cases()]
    for index, (kind, query, document, limits) in enumerate(everything):
        case = {"kind": kind, "query": query, "document": document}
        kept = [query, document]
        if limits:
            (kept[0], query_cut), (kept[1], document_cut) = map(renamed.truncate, kept, limits)
            case["truncation"] = {"limits": limits, "truncated": [query_cut, document_cut]}
        tight = index % 3 == 0
        for form, about in forms.items():
            if form != "tight" or tight:
                encoded[form].append(ids(about["chat_template"], about["prompt"], *kept))
        case["tight"] = tight
        written.append(case)

    frames = {}
    for form, lists in encoded.items():
        start = common_length(lists)
        end = common_length([ids[start:][::-1] for ids in lists])
        frames[form] = {**forms[form], "before": lists[0][:start], "after": lists[0][len(lists[0]) - end :]}
        encoded[form] = iter([ids[start : len(ids) - end] for ids in lists])
    for case in written:
        case["ids"] = next(encoded["chatml"])
        assert case["ids"] == next(encoded["human"]), "the forms differ around the query and the document"
        case["tight"] = next(encoded["tight"]) if case["tight"] else None
    return frames, written, counts


def readable_json(value):
    """Returns JSON on one line, with unprintable characters escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def main():
    frames, written, counts = golden()
    lines = ['{"made_with":%s,' % json.dumps(f"transformers {transformers.__version__}"), '"instruction":%s,' % json.dumps(INSTRUCTION)]
    lines += ['"forms":{', ",\n".join(f'{json.dumps(form)}:{readable_json(frame)}' for form, frame in frames.items()), "},"]
    lines += ['"cases":[', ",\n".join(map(readable_json, written)), "]}"]
    (HERE / "tokenizer.json").write_text("\n".join(lines) + "\n")
    print(f"{len(written)} cases; prompts by source: {counts}")


if __name__ == "__main__":
    main()

"""The tokenizer: a search engine's text analysis, written as a `tokenizers` pipeline.

The analysis lower-cases text and removes accents, punctuation, function words and suffixes. It leaves
stems of at most five letters, which are split into BPE pieces. As a result, prompts have about half
the length, all forms of a word match, and nearly every word is one token.

The constant parts of the prompt are added tokens. The vocabulary also contains the words with which a
thought states its evidence (see `evidence.py`). Text cannot produce those, because the analysis
removes punctuation.
"""

import collections
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from evidence import LENGTH_WORDS, MARKS, TOTALS
from words import STOP_WORDS, SUFFIXES

VOCABULARY_SIZE = 10240
WORD_START = "▁"
LONGEST_STEM = 5  # letters
LETTERS_AND_DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"
# BPE training weighs a word by its frequency to this power, so that rarer words get pieces too.
FREQUENCY_DAMPING = 0.8

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"

# The fixed parts of ERank's prompt, around the instruction, the query and the document.
PROMPT_START = (
    "Given a query and a document, please give a relevance score of 0~10.\n"
    "The goal or relevance definition is: "
)
PROMPT_QUERY = "\n\nHere is the query:\n"
PROMPT_DOCUMENT = "\n\nHere is the document:\n"
PROMPT_END = (
    "\n\nAfter thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].\n"
    "- 0 represents completely not related\n"
    "- 10 means perfectly related.\n"
    "\n"
    "Desired output format:\n"
    "<think>put your thinking here</think><answer>Only allows an integer here</answer>\n"
    "\n"
    "Your output:"
)

SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
FORMAT_TOKENS = (THINK, END_THINK, ANSWER, END_ANSWER)
PROMPT_TOKENS = (PROMPT_START, PROMPT_QUERY, PROMPT_DOCUMENT, PROMPT_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prompt_text(instruction, query, document):
    return PROMPT_START + instruction + PROMPT_QUERY + query + PROMPT_DOCUMENT + document + PROMPT_END


def chat_text(instruction, query, document):
    """Returns the prompt rendered with the chat template."""
    prompt = prompt_text(instruction, query, document)
    return f"{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}assistant\n"


def text_analysis(tokenizer):
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[^a-z0-9]+"), " "),
            # Every word gets the same prefix, including the first word of a text. Numbers get no prefix.
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(" (?=[a-z])"), WORD_START),
        ]
    )
    stop_words, suffixes = "|".join(STOP_WORDS), "|".join(SUFFIXES)
    stem = f"{WORD_START}[a-z]{{3,{LONGEST_STEM}}}?(?=(?:{suffixes})(?![a-z]))"
    beginning = f"{WORD_START}[a-z]{{1,{LONGEST_STEM}}}"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" "), "removed"),
            pre_tokenizers.Split(Regex(f"{WORD_START}(?:{stop_words})(?![a-z])"), "removed"),
            pre_tokenizers.Split(Regex(f"{stem}|{beginning}|[a-z]+|[0-9]"), "isolated"),
            # A piece without the prefix is a suffix, the rest of a word, or letters directly after a number.
            pre_tokenizers.Split(Regex("^[a-z]+$"), "removed"),
        ]
    )
    tokenizer.decoder = decoders.Replace(WORD_START, " ")
    return tokenizer


def train(texts):
    """Returns a tokenizer with BPE pieces learned from `texts`."""
    analysis = text_analysis(Tokenizer(models.BPE()))
    frequencies = collections.Counter()
    for text in texts:
        normalized = analysis.normalizer.normalize_str(text)
        frequencies.update(piece for piece, _ in analysis.pre_tokenizer.pre_tokenize_str(normalized))
    evidence_words = (*LENGTH_WORDS, *MARKS, *TOTALS)
    added = (*SPECIAL_TOKENS, *FORMAT_TOKENS, *PROMPT_TOKENS)
    learner = Tokenizer(models.BPE())
    learner.train_from_iterator(
        (
            word
            for word, frequency in sorted(frequencies.items())
            for _ in range(round(frequency**FREQUENCY_DAMPING))
        ),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE - len(evidence_words) - len(added),
            initial_alphabet=list(LETTERS_AND_DIGITS + WORD_START),
            show_progress=False,
        ),
    )
    tokenizer = text_analysis(learner)
    tokenizer = with_evidence_words(tokenizer, evidence_words)
    for texts, special in ((FORMAT_TOKENS + PROMPT_TOKENS, False), (SPECIAL_TOKENS, True)):
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in texts])
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE
    return tokenizer


def with_evidence_words(tokenizer, evidence_words):
    """Returns the tokenizer with the evidence words added to its vocabulary. No merge produces them."""
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    for word in evidence_words:
        vocabulary[word] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(description))

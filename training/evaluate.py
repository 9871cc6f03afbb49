"""Measures an exported model by reranking the first stage's top 20 documents.

    python evaluate.py MODEL_FOLDER SETS_FOLDER [--work WORK_FOLDER] [--queries N]

SETS_FOLDER holds the files that `evaluation_sets.py` writes. If WORK_FOLDER (from `train.py`) is
given, the teacher's rule is measured as well. Scores are computed as in ERank: N x P(N), where P(N)
is the joint probability of the digits of N. Ties are shuffled, and the mean over several shuffles is
reported.
"""

import argparse
import collections
import json
import math
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen3ForCausalLM

import tokenizer as texts

INSTRUCTION = "Given a query, retrieval relevant passage."
SHUFFLES = 10
CUT = 10
FIRST_STAGE_SHARE = 0.2  # weight of the first stage in the hybrid score
MOST_NEW_TOKENS = 96
BATCH_TOKENS = 24_000
WELL_FORMED = re.compile(
    r"<think> (?:brief|short|long|lengthy):(?: [a-z]+!{0,2}(?:-|\+{1,2}))* =(?:10|[0-9](?:\.(?:25|5|75))?)</think>"
    r"<answer>(10|[0-9])</answer><\|endoftext\|>"
)
ANSWER_ONLY = f"{texts.THINK}\n\n{texts.END_THINK}\n\n{texts.ANSWER}"


# Ranking


def discounted_gain(grades):
    return sum(max(grade, 0) / math.log2(rank + 2) for rank, grade in enumerate(grades[:CUT]))


def mean_ndcg(queries, scores, shuffles=SHUFFLES):
    """Returns the mean nDCG@10 as trec_eval computes it, over the queries that have a relevant document."""
    draw = random.Random(0)
    values = []
    for query, query_scores in zip(queries, scores):
        ideal = discounted_gain(sorted(query["grades"], reverse=True))
        if not ideal:
            continue
        for _ in range(shuffles):
            order = list(range(len(query_scores)))
            draw.shuffle(order)
            order.sort(key=lambda index: -query_scores[index])
            values.append(discounted_gain([query["documents"][index]["grade"] for index in order]) / ideal)
    return float(np.mean(values))


def standardised(values):
    values = np.asarray(values, float)
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation else np.zeros_like(values)


def hybrid(first_stage, scores):
    return [
        FIRST_STAGE_SHARE * standardised(first) + (1 - FIRST_STAGE_SHARE) * standardised(second)
        for first, second in zip(first_stage, scores)
    ]


# Generation


@dataclass
class Answer:
    text: str
    well_formed: bool
    number: int
    score: float  # N x P(N)
    expected: float  # expected value of the distribution over 0..10


class Reranker:
    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end = self.tokenizer.token_to_id(texts.END_OF_TEXT)
        self.answer = self.tokenizer.token_to_id(texts.ANSWER)
        self.digits = [self.tokenizer.token_to_id(str(digit)) for digit in range(10)]
        self.end_answer = self.tokenizer.token_to_id(texts.END_ANSWER)

    def prompt(self, query, document, answer_only=False):
        text = texts.chat_text(INSTRUCTION, query, document)
        return self.tokenizer.encode(text + (ANSWER_ONLY if answer_only else "")).ids

    def rerank(self, pairs, answer_only=False):
        prompts = [self.prompt(query, document, answer_only) for query, document in pairs]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers = [None] * len(prompts)
        while order:
            rows = max(1, BATCH_TOKENS // len(prompts[order[-1]]))
            batch, order = order[-rows:], order[:-rows]
            generated = self.generate([prompts[index] for index in batch])
            for index, (tokens, chances) in zip(batch, generated):
                if answer_only:
                    tokens = [self.answer, *tokens]
                    chances = [None, *chances]
                answers[index] = self.read(tokens, chances, answer_only)
        return answers

    @torch.no_grad()
    def generate(self, prompts):
        """Decodes greedily; yields each prompt's output tokens and probabilities.

        Each output token comes with the probabilities of the ten digits and of `</answer>`.
        """
        rows, longest = len(prompts), max(map(len, prompts))
        ids = torch.full((rows, longest), self.end)
        mask = torch.zeros((rows, longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        kept = torch.tensor([*self.digits, self.end_answer])
        tokens, chances = [], []
        done = torch.zeros(rows, dtype=torch.bool)
        while len(tokens) < MOST_NEW_TOKENS and not done.all():
            output = self.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            distribution = output.logits[:, -1].float().softmax(-1)
            ids = distribution.argmax(-1, keepdim=True)
            tokens.append(ids[:, 0])
            chances.append(distribution[:, kept])
            done |= ids[:, 0] == self.end
            positions = positions[:, -1:] + 1
            mask = torch.cat((mask, torch.ones(rows, 1, dtype=torch.long)), 1)
        tokens, chances = torch.stack(tokens, 1).tolist(), torch.stack(chances, 1).tolist()
        for row in range(rows):
            count = tokens[row].index(self.end) + 1 if self.end in tokens[row] else len(tokens[row])
            yield tokens[row][:count], chances[row][:count]

    def read(self, tokens, chances, answer_only):
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        pattern = re.compile(r"<answer>(10|[0-9])</answer><\|endoftext\|>") if answer_only else WELL_FORMED
        match = re.search(r"<answer>(10|[0-9])</answer>", text)
        if not match:
            return Answer(text, False, 0, 0.0, 0.0)
        number = int(match.group(1))
        start = tokens.index(self.answer) + 1
        first, second = chances[start], chances[start + 1]
        probability = first[int(str(number)[0])]
        if number == 10:
            probability *= second[0]
        # "1" is the first token of both 1 and 10. The next position tells them apart, if the model chose "1".
        one = (second[10] * 1 + second[0] * 10) if str(number)[0] == "1" else 1
        expected = sum(chance * (one if digit == 1 else digit) for digit, chance in enumerate(first[:10]))
        return Answer(text, bool(pattern.fullmatch(text)), number, number * probability, expected)


def split(values, queries):
    values = iter(values)
    return [[next(values) for _ in query["documents"]] for query in queries]


# Report


def teacher_answers(work, queries, tokenizer):
    """Returns the integer and its probability that the teacher's rule gives each document."""
    import corpus
    import evidence
    from samples import Corpus, Vocabulary

    vocabulary = Vocabulary(tokenizer)
    teacher = Corpus(vocabulary, *corpus.load(work)).teacher()
    return [
        [
            evidence.answer(teacher.judge(vocabulary.terms(query["query"]), vocabulary.terms(document["text"]))[3])
            for document in query["documents"]
        ]
        for query in queries
    ]


def report(name, queries, reranker, work):
    first_stage = [[document["score"] for document in query["documents"]] for query in queries]
    nothing = [[0] * len(scores) for scores in first_stage]
    chance, base = mean_ndcg(queries, nothing, 50), mean_ndcg(queries, first_stage)
    print(f"{name}: {len(queries)} queries, random {chance:.3f}, first stage {base:.3f}")

    def line(label, scores, note=""):
        value = mean_ndcg(queries, scores)
        mixed = mean_ndcg(queries, hybrid(first_stage, scores))
        share = (value - chance) / (base - chance)
        print(f"  {label}: {value:.3f} ({share:.0%} of the way), hybrid {mixed:.3f}{note}", flush=True)

    exact = None
    if work:
        exact = teacher_answers(work, queries, reranker.tokenizer)
        line("exact teacher", [[number * chance for number, chance in answers] for answers in exact])
    pairs = [(query["query"], document["text"]) for query in queries for document in query["documents"]]
    for label, answer_only in (("model", False), ("answer only", True)):
        started = time.time()
        answers = reranker.rerank(pairs, answer_only)
        seconds = time.time() - started
        line(f"{label}, N x P(N)", split([answer.score for answer in answers], queries))
        line(f"{label}, expected value", split([answer.expected for answer in answers], queries))
        histogram = collections.Counter(answer.number for answer in answers)
        well_formed = np.mean([answer.well_formed for answer in answers])
        certainty = np.mean([answer.score / answer.number for answer in answers if answer.number])
        print(
            f"    well-formed {well_formed:.4f}, mean P(N) {certainty:.3f}, {len(histogram)} integers "
            f"{dict(sorted(histogram.items()))}, {seconds:.0f} s"
        )
        if exact:
            numbers = np.array([number for answers in exact for number, _ in answers])
            distance = np.abs(numbers - [answer.number for answer in answers])
            print(f"    as the teacher {np.mean(distance == 0):.3f}, within one {np.mean(distance <= 1):.3f}")
        if not answer_only:
            for answer in [answer for answer in answers if not answer.well_formed][:3]:
                print("    malformed:", answer.text)
            for answer in answers[:: max(1, len(answers) // 3)][:3]:
                print("    ", answer.text)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("model", type=Path)
    arguments.add_argument("sets", type=Path)
    arguments.add_argument("--work", type=Path)
    arguments.add_argument("--queries", type=int, help="about this many of each collection, evenly spaced")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    reranker = Reranker(options.model)
    for path in sorted(options.sets.glob("*.jsonl")):
        queries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        queries = [query for query in queries if any(grade > 0 for grade in query["grades"])]
        if options.queries:
            queries = queries[:: max(1, len(queries) // options.queries)]
        report(path.stem, queries, reranker, options.work)


if __name__ == "__main__":
    main()

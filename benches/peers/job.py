"""The work that every engine does, and its report. The work is that of benches/forward.rs and benches/engine.rs.

usage of every script: python ENGINE.py FOLDER [FIGURE…]

FOLDER is a checkpoint of random weights; its name ends in 0.6B or 4B. FIGURES are `prefill_512`,
`decode_1`, `decode_8`, `decode_32`, `job`, `one_pass_128`, `one_pass_512` and `one_pass_2048`; by default
the first five. `PEERS_TINY=1` makes all work short, to test that a script runs.
"""

import json
import os
import random
import statistics
import sys
import time

TINY = bool(os.environ.get("PEERS_TINY"))
THREADS = 2
PROMPT = 48 if TINY else 512
PROMPTS = 2 if TINY else 32
SHARED_TOKENS = 20 if TINY else 150
OWN_TOKENS = 30 if TINY else 350
NEW_TOKENS = 4 if TINY else 64
# The prompts of one pass share a frame, an instruction and a query.
ONE_PASS_SHARED_TOKENS = 20 if TINY else 100
DOCUMENTS = 3 if TINY else int(os.environ.get("PEERS_DOCUMENTS", 100))
RUNS = 2 if TINY else 5
JOB_RUNS = 1 if TINY else int(os.environ.get("PEERS_JOB_RUNS", 3))
# Steps in a run of decoding, after one step that is not timed.
STEPS = 2 if TINY else 6
BY_DEFAULT = ["prefill_512", "decode_1", "decode_8", "decode_32", "job"]
ONE_PASS = {"one_pass_128": 128, "one_pass_512": 512, "one_pass_2048": 2048}
FIGURES = [*BY_DEFAULT, *ONE_PASS]

# The folder is the first argument, the figures follow.
names = sys.argv[2:]
unknown = [name for name in names if name not in FIGURES]
if len(sys.argv) < 2 or unknown:
    sys.exit(f"usage: {sys.argv[0]} FOLDER [{' | '.join(FIGURES)}]…")
FOLDER = sys.argv[1].rstrip("/")
SHAPE = FOLDER.rsplit("-", 1)[-1]


def is_wanted(figure):
    return figure in (names or BY_DEFAULT)


_random = random.Random(0)


def tokens(count):
    """Returns random ordinary tokens, different at each call, so that no prefix cache holds them."""
    return [_random.randrange(150_000) for _ in range(count)]


def prompts_with_prefix(count, shared_tokens, own_tokens):
    shared = tokens(shared_tokens)
    return [shared + tokens(own_tokens) for _ in range(count)]


def timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Report:
    """Prints a line of JSON per figure."""

    def __init__(self, engine, version, dtype):
        self.about = {"engine": engine, "version": version, "dtype": dtype, "shape": SHAPE}

    def rate(self, figure, count, seconds):
        """Reports runs that computed `count` tokens each and took `seconds`, one number per run."""
        self._line(figure, [count / s for s in seconds], "tokens/s")

    def documents(self, figure, count, seconds):
        """Reports runs that scored `count` documents each."""
        self._line(figure, [count / s for s in seconds], "documents/s", documents=count)

    def seconds(self, figure, seconds, **more):
        self._line(figure, seconds, "s", **more)

    def _line(self, figure, runs, unit, **more):
        value = statistics.median(runs)
        line = {**self.about, "figure": figure, "value": round(value, 3), "unit": unit}
        line |= {"runs": [round(run, 3) for run in runs], **more}
        if TINY:
            line["tiny"] = True
        print(json.dumps(line), flush=True)


def measure(report, engine):
    """Measures the figures of an engine with the methods `prefill(prompt)`, `decode(prompts, steps)` and
    `job(prompts, shared, new)`.

    `prefill` reads a prompt and generates one token. `decode` reads prompts, runs `steps` decoding steps,
    each of which generates one token per prompt, and returns the seconds of each step. `job` reads prompts
    whose first `shared` tokens are the same and generates `new` tokens for each.
    """
    engine.prefill(tokens(PROMPT))
    if is_wanted("prefill_512"):
        report.rate("prefill_512", PROMPT, [timed(lambda: engine.prefill(tokens(PROMPT))) for _ in range(RUNS)])
    for rows in [1, 8, 32]:
        if is_wanted(f"decode_{rows}"):
            steps = engine.decode([tokens(PROMPT) for _ in range(rows)], 1 + RUNS * STEPS)[1:]
            assert len(steps) == RUNS * STEPS
            runs = [sum(steps[i : i + STEPS]) for i in range(0, len(steps), STEPS)]
            report.rate(f"decode_{rows}", rows * STEPS, runs)
    if is_wanted("job"):
        runs = []
        for _ in range(JOB_RUNS):
            prompts = prompts_with_prefix(PROMPTS, SHARED_TOKENS, OWN_TOKENS)
            runs.append(timed(lambda: engine.job(prompts, SHARED_TOKENS, NEW_TOKENS)))
        report.seconds("job", runs)
    for figure, own_tokens in ONE_PASS.items():
        if is_wanted(figure):
            shared = ONE_PASS_SHARED_TOKENS
            runs = []
            for _ in range(JOB_RUNS):
                prompts = prompts_with_prefix(DOCUMENTS, shared, 30 if TINY else own_tokens)
                runs.append(timed(lambda: engine.job(prompts, shared, 1)))
            report.documents(figure, DOCUMENTS, runs)

"""The work that every engine does, and its report. The work is that of benches/forward.rs and benches/engine.rs.

usage of every script: python ENGINE.py FOLDER [FIGURE…]

FOLDER is a checkpoint of random weights; its name ends in 0.6B or 4B. FIGURES are `prefill_512`,
`decode_1`, `decode_8`, `decode_32` and `job`; by default all. `PEERS_TINY=1` makes all work short, to test
that a script runs.
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
RUNS = 2 if TINY else 5
JOB_RUNS = 1 if TINY else int(os.environ.get("PEERS_JOB_RUNS", 3))
# Steps in a run of decoding, after one step that is not timed.
STEPS = 2 if TINY else 6
FIGURES = ["prefill_512", "decode_1", "decode_8", "decode_32", "job"]

# The folder is the first argument, the figures follow.
names = sys.argv[2:]
unknown = [name for name in names if name not in FIGURES]
if len(sys.argv) < 2 or unknown:
    sys.exit(f"usage: {sys.argv[0]} FOLDER [{' | '.join(FIGURES)}]…")
FOLDER = sys.argv[1].rstrip("/")
SHAPE = FOLDER.rsplit("-", 1)[-1]


def is_wanted(figure):
    return not names or figure in names


_random = random.Random(0)


def tokens(count):
    """Returns random ordinary tokens, different at each call, so that no prefix cache holds them."""
    return [_random.randrange(150_000) for _ in range(count)]


def job_prompts():
    shared = tokens(SHARED_TOKENS)
    return [shared + tokens(OWN_TOKENS) for _ in range(PROMPTS)]


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
    """Measures the figures of an engine with `prefill(prompt)`, `decode(prompts, steps)` and `job(prompts)`.

    `prefill` reads a prompt and generates one token. `decode` reads prompts, runs `steps` decoding steps,
    each of which generates one token per prompt, and returns the seconds of each step. `job` reads prompts
    and generates `NEW_TOKENS` tokens for each.
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
            prompts = job_prompts()
            runs.append(timed(lambda: engine.job(prompts)))
        report.seconds("job", runs)

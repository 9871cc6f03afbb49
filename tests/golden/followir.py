"""Computes p-MRR with the package mteb, FollowIR's own evaluation; creates `followir.json`.

    pip install --no-deps mteb==2.26.24
    pip install numpy pandas scikit-learn pytrec_eval-terrier packaging pydantic typing-extensions
    python followir.py

The package's `__init__` is left out, because it imports torch and many models, which p-MRR does not need.

Each case has the runs of the original and of the changed instructions, the documents that are not relevant any more,
and mteb's p-MRR of each query and of all. Queries without documents in a run are warned of and left out by mteb.
"""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path


def metrics():
    """Returns the module of mteb's measures."""
    package = Path(importlib.util.find_spec("mteb").origin).parent
    for name in ["mteb", "mteb._evaluators", "mteb.types"]:
        module = types.ModuleType(name)
        module.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    # The name is used in an annotation alone.
    sys.modules["mteb.types"].RetrievalEvaluationResult = tuple
    return importlib.import_module("mteb._evaluators.retrieval_metrics")


def cases():
    yield {"q": {"a": 1.0}}, {"q": {"a": 1.0}}, {"q": ["a"]}
    yield {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"a": 1.0, "b": 2.0, "c": 3.0}}, {"q": ["a", "c"]}
    # Equal scores, and documents that a run lacks.
    yield ({"q": {"a": 1.0, "b": 1.0, "c": 1.0}}, {"q": {"c": 0.5, "a": 0.5}}, {"q": ["a", "b", "z"]})
    # Queries in only one of the runs.
    yield ({"q": {"a": 2.0, "b": 1.0}, "r": {"a": 1.0}}, {"q": {"b": 2.0, "a": 1.0}, "s": {"a": 1.0}},
           {"q": ["a"], "r": ["a"], "s": ["a"]})
    rng = random.Random(20261129)
    for queries, documents in [(5, 20), (20, 100), (2, 300)]:
        original, changed, removed = {}, {}, {}
        for query in map(str, range(queries)):
            ids = [f"d{number}" for number in range(documents)]
            # Coarse scores produce ties.
            original[query] = {d: rng.randint(0, 80) / 8 for d in ids}
            removed[query] = rng.sample(ids, rng.randint(1, 6))
            changed[query] = {d: score / (4 if d in removed[query] and rng.random() < 0.7 else 1) + rng.randint(0, 8) / 8
                              for d, score in original[query].items() if rng.random() < 0.95}
        yield original, changed, removed


def main():
    mteb = metrics()
    rows = []
    for original, changed, removed in cases():
        runs = ({f"{q}-og": docs for q, docs in original.items()}, {f"{q}-changed": docs for q, docs in changed.items()})
        both = sorted(set(original) & set(changed))
        values = {q: float(mteb.calculate_pmrr(*runs, {q: removed[q]})) for q in both}
        mean = float(mteb.calculate_pmrr(*runs, removed))
        rows.append({"original": original, "changed": changed, "removed": removed, "values": values, "mean": mean})
    path = Path(__file__).parent / "followir.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8", newline="\n")


main()

"""Compare what `erank eval` reports with trec_eval and scipy.

    pip install pytrec-eval-terrier==0.5.11 scipy
    python check.py QRELS OUTPUT_FOLDER

Reads the runs in the output folder of `erank eval`. Computes each measure of report.json with trec_eval
(through pytrec_eval), query by query, and the paired t-tests with scipy. Prints means, p-values and the
largest difference, and fails if the difference exceeds rounding errors.
"""

import json
import re
import sys
from pathlib import Path

import pytrec_eval
from scipy import stats

RUNS = {"first stage": "first_stage.run", "reranked": "reranked.run", "hybrid": "hybrid.run"}
NAMES = {"nDCG": "ndcg_cut", "AP": "map_cut", "RR": "recip_rank", "P": "P", "R": "recall"}


def rows(path):
    return [line.split() for line in path.read_text().splitlines()]


def reported(figures, system, index):
    """Return a query's value in the report; `index` is the position among the hybrids."""
    key = system["name"].replace(" ", "_")
    return figures[key][index] if system["name"] == "hybrid" else figures[key]


def by_trec_eval(qrels, run, measure):
    """Return the measure of each judged query, or 0 if the run does not contain the query."""
    name, level, cutoff = re.fullmatch(r"(\w+)(?:\(rel=(\d+)\))?(?:@(\d+))?", measure).groups()
    theirs = NAMES[name]
    if cutoff and name == "RR":  # trec_eval has no cutoff for RR, so the run is cut.
        run = {query: dict(list(scores.items())[: int(cutoff)]) for query, scores in run.items()}
    elif cutoff:
        theirs = f"{theirs}_{cutoff}"
    else:
        theirs = theirs.removesuffix("_cut")
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {theirs}, relevance_level=int(level or 1))
    values = evaluator.evaluate(run)
    return {query: values.get(query, {}).get(theirs, 0.0) for query in sorted(qrels)}


def main():
    qrels_file, folder = map(Path, sys.argv[1:])
    qrels = {}
    for query, _, document, grade in rows(qrels_file):
        qrels.setdefault(query, {})[document] = int(grade)
    report = json.loads((folder / "report.json").read_text())
    queries = {query["id"]: query["figures"] for query in report["queries"]}
    differences, before = [], {}
    for number, system in enumerate(report["systems"]):
        run = {}
        for query, _, document, _, score, tag in rows(folder / RUNS[system["name"]]):
            run.setdefault(query, {})[document] = float(score)
        if system["name"] == "hybrid" and not tag.endswith(f"-{system['alpha']}"):
            continue
        for position, figure in enumerate(system["figures"]):
            values = by_trec_eval(qrels, run, figure["measure"])
            mean = sum(values.values()) / len(values)
            differences.append(abs(mean - figure["mean"]))
            for query, value in values.items():
                ours = reported(queries[query][position], system, number - 2)
                differences.append(abs(value - ours))
            test = ""
            if figure["gain"] and figure["gain"]["t_test"]:
                p = stats.ttest_rel(list(values.values()), before[position]).pvalue
                differences.append(abs(p - figure["gain"]["t_test"]["p_value"]))
                test = f"p {p:.6f}"
            before.setdefault(position, list(values.values()))
            print(f"{system['name']:12} {figure['measure']:14} {mean:.6f} {test}")
    print(f"{len(differences)} values, largest difference {max(differences):.1e}")
    sys.exit(1 if max(differences) > 1e-9 else 0)


if __name__ == "__main__":
    main()

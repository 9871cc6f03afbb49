"""Creates the files of this folder, which `../trec_eval.rs` reads.

    pip install pytrec-eval-terrier==0.5.11 ir-measures==0.4.3 scipy==1.17.1
    python make.py

- `qrels.txt`, `before.run`, `after.run`: small files with all difficult cases, namely ties, negative
  grades, unjudged documents, queries without relevant documents, queries in only one of the files, and
  ranks that contradict the scores. The lines are shuffled.
- `expected.tsv`: measure, run, query and value of trec_eval, computed with pytrec_eval-terrier. The query
  `all` has the mean over all judged queries. A query without documents in the run has the value 0, as with
  `trec_eval -c`. RR with a cutoff is trec_eval's recip_rank of the run truncated to that length (`-M`).
  nDCG with exponential gain is trec_eval's nDCG of grades mapped to 2^grade - 1. Both are compared with
  the other implementations that ir-measures contains (MSMARCO's and gdeval's).
- `t_test.tsv`: measure, t and p of scipy's two-sided paired t-test of `after` against `before`.
- `student.tsv`: t, degrees of freedom and two-sided p of scipy, over the range of both.
- `kendall.tsv`: two lists of scores and scipy's `kendalltau` (tau-b) of them, `nan` if it is undefined.

No two scores differ only beyond single precision, because trec_eval 9, which pytrec_eval-terrier contains,
compares scores in single precision.
"""

import random
from pathlib import Path

import ir_measures
import pytrec_eval
from scipy import stats

HERE = Path(__file__).parent
MEASURES = {
    "nDCG@1": "ndcg_cut_1", "nDCG@10": "ndcg_cut_10", "nDCG@100": "ndcg_cut_100", "nDCG": "ndcg",
    "AP": "map", "AP@10": "map_cut_10", "RR": "recip_rank", "P@5": "P_5", "P@10": "P_10",
    "P@1000": "P_1000", "R@5": "recall_5", "R@100": "recall_100",
}
LEVELS = [("AP(rel=2)", "map", 2), ("RR(rel=2)", "recip_rank", 2), ("P(rel=2)@10", "P_10", 2),
          ("R(rel=3)@100", "recall_100", 3)]


def make_data():
    """Returns (grades, scores before, scores after) for each query, with None for a file without it."""
    rng = random.Random(20240717)
    data = {
        # Ties are in descending byte order: "é" > "z" > "a" > "Z" > "9" > "10" > "1".
        "ties": ({"10": 1, "9": 0, "z": 0, "Z": 2, "é": 0, "a": 3, "1": 1},
                 {d: 1.5 for d in ["1", "10", "9", "Z", "a", "z", "é"]},
                 {"1": 2, "10": 2.0, "9": -1, "Z": 2, "a": 0, "z": -0.0, "é": 0}),
        "negative": ({"a": -1, "b": 2, "c": -2, "d": 0, "e": 1},
                     {"a": 9, "b": 8, "c": 7, "d": 6, "e": 5}, {"c": 3, "e": 2, "a": 1}),
        "nothing-relevant": ({"a": 0, "b": -1, "c": 0}, {"a": 2, "b": 1}, {"c": 1, "a": 0.5}),
        "all-unjudged": ({"a": 1, "b": 1}, {"x": 3, "y": 2, "z": 1}, {"x": 1, "b": 2}),
        "perfect": ({"a": 4, "b": 3, "c": 1, "d": 0}, {"a": 4, "b": 3, "c": 2, "d": 1},
                    {"d": 4, "c": 3, "b": 2, "a": 1}),
        "one-document": ({"a": 3}, {"a": -7.25}, {"a": 1e-30}),
        "not-retrieved": ({"a": 1, "b": 2}, None, {"b": 1}),
        "not-judged": (None, {"a": 1}, {"a": 1}),
    }
    for number, (judged, length) in enumerate([(30, 40), (5, 8), (60, 150), (12, 100), (3, 300)], 1):
        documents = [f"D{number}-{i}" for i in range(length)]
        grades = {d: rng.choice([-1, 0, 0, 0, 1, 1, 2, 3]) for d in rng.sample(documents, judged)}
        grades |= {f"elsewhere-{i}": rng.randint(0, 3) for i in range(number)}
        # Coarse scores produce ties.
        before = {d: rng.randint(0, 40) / 8 for d in documents}
        after = {d: before[d] / 4 + max(grades.get(d, 0), 0) + rng.randint(0, 8) / 4
                 for d in rng.sample(documents, length * 3 // 4)}
        data[str(number * 7)] = (grades, before, after)
    return data


def write_files(data):
    rng = random.Random(1)
    for name, place in [("before", 1), ("after", 2)]:
        lines = [f"{query} Q0 {document} {rng.randint(1, 99)} {score} {name}\n"
                 for query, row in data.items() for document, score in (row[place] or {}).items()]
        rng.shuffle(lines)
        (HERE / f"{name}.run").write_text("".join(lines), encoding="utf-8", newline="\n")
    lines = [f"{query} 0 {document} {grade}\n"
             for query, row in data.items() for document, grade in (row[0] or {}).items()]
    rng.shuffle(lines)
    (HERE / "qrels.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def trec_eval(qrels, run, name, level=1):
    found = pytrec_eval.RelevanceEvaluator(qrels, {name}, relevance_level=level).evaluate(run)
    return {query: found.get(query, {}).get(name, 0.0) for query in qrels}


def ordered(run, k=None):
    """Returns the first k documents of every query in trec_eval's order, with scores without ties."""
    def best(scores):
        return sorted(scores, key=lambda d: (scores[d], d.encode()), reverse=True)[:k]
    return {query: {d: -rank for rank, d in enumerate(best(scores))} for query, scores in run.items()}


def check(measure, values, qrels, run, tolerance=1e-12):
    """Checks that ir-measures agrees. Queries are numbered because gdeval requires numbers."""
    numbers = {query: str(number) for number, query in enumerate(qrels, 1)}
    numbered = {numbers[q]: judged for q, judged in qrels.items()}
    run = {numbers[q]: scores for q, scores in ordered(run).items() if q in numbers}
    by_number = {numbers[q]: value for q, value in values.items()}
    for metric in ir_measures.iter_calc([ir_measures.parse_measure(measure)], numbered, run):
        ours = by_number[metric.query_id]
        assert abs(ours - metric.value) <= tolerance, (measure, metric, ours)


def evaluate(qrels, run):
    """Returns the measures with their values by query."""
    for measure, name in MEASURES.items():
        yield measure, trec_eval(qrels, run, name)
    for measure, name, level in LEVELS:
        yield measure, trec_eval(qrels, run, name, level)
    for k in [1, 3, 10]:
        values = trec_eval(qrels, ordered(run, k), "recip_rank")
        check(f"RR@{k}", values, qrels, run)
        yield f"RR@{k}", values
    exponential = {q: {d: 2**g - 1 if g > 0 else g for d, g in judged.items()}
                   for q, judged in qrels.items()}
    for k in [3, 10]:
        measure = f"nDCG(dcg='exp-log2')@{k}"
        values = trec_eval(exponential, run, f"ndcg_cut_{k}")
        check(measure, values, qrels, run, tolerance=1e-5)  # gdeval prints five decimals
        yield measure, values
    yield "nDCG(dcg='exp-log2')", trec_eval(exponential, run, "ndcg")


def main():
    write_files(make_data())
    qrels = pytrec_eval.parse_qrel(open(HERE / "qrels.txt", encoding="utf-8"))
    runs = {name: pytrec_eval.parse_run(open(HERE / f"{name}.run", encoding="utf-8"))
            for name in ["before", "after"]}
    values = {name: dict(evaluate(qrels, run)) for name, run in runs.items()}
    with open(HERE / "expected.tsv", "w", encoding="utf-8", newline="\n") as file:
        for name, measures in values.items():
            for measure, by_query in measures.items():
                for query in sorted(by_query):
                    print(measure, name, query, f"{by_query[query]:.12f}", sep="\t", file=file)
                mean = sum(by_query.values()) / len(by_query)
                print(measure, name, "all", f"{mean:.12f}", sep="\t", file=file)
    with open(HERE / "t_test.tsv", "w", encoding="utf-8", newline="\n") as file:
        for measure in values["before"]:
            before, after = (values[name][measure] for name in ["before", "after"])
            test = stats.ttest_rel([after[q] for q in qrels], [before[q] for q in qrels])
            print(measure, f"{test.statistic:.9e}", f"{test.pvalue:.9e}", sep="\t", file=file)
    with open(HERE / "student.tsv", "w", encoding="utf-8", newline="\n") as file:
        for degrees in [1, 2, 3, 5, 10, 42, 99, 500, 6979, 100_000]:
            for t in [0, 1e-9, 0.01, 0.3, 0.7, 1, 1.5, 2, 2.5, 4, 9, 30, 1e3, 1e6]:
                p = 2 * stats.t.sf(t, degrees)
                print(t, degrees, f"{p:.12e}", sep="\t", file=file)
    rng = random.Random(7)
    with open(HERE / "kendall.tsv", "w", encoding="utf-8", newline="\n") as file:
        for number in range(40):
            # Few levels produce many ties, and one level makes tau undefined.
            length, levels = rng.choice([2, 3, 5, 12, 40]), rng.choice([1, 2, 4, 11, 1000])
            first = [rng.randrange(levels) / 4 for _ in range(length)]
            second = [score * rng.choice([-1, 1, 1, 1]) + rng.randrange(levels) / 8 for score in first]
            tau = stats.kendalltau(first, second).statistic
            lists = [" ".join(map(str, scores)) for scores in (first, second)]
            print(*lists, f"{tau:.15f}", sep="\t", file=file)


main()

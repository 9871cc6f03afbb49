"""Writes the two evaluation collections as JSON lines.

    python evaluation_sets.py CRANFIELD_FOLDER DL19_FOLDER OUTPUT_FOLDER

Each line is one query with the first stage's top 20 documents:

    {"query": ..., "documents": [{"id", "text", "score", "grade"}, ...], "grades": [...]}

"score" is the first stage's score. "grade" is the judged relevance, 0 if the document is unjudged.
"grades" lists every judged grade of the query; nDCG's ideal ranking needs it. Neither collection is
used for training.

This script searches Cranfield (`cran.all.1400`, `cran.qry`, `cranqrel`) with BM25. TREC DL19 includes
its first stage (`bm25_top100_with_text.json`, `qrels.dl19-passage.txt`).
"""

import argparse
import collections
import json
import math
import re
from pathlib import Path

from words import STOP_WORDS

DEPTH = 20
BM25_K1 = 0.9
BM25_B = 0.4

# Cranfield's relevance codes are 1 (best) to 4, and -1 for not relevant.
CRANFIELD_GRADES = {1: 4, 2: 3, 3: 2, 4: 1, -1: 0}


def search_words(text):
    return [word for word in re.findall(r"[a-z]+|[0-9]", text.lower()) if word not in STOP_WORDS]


def bm25_rankings(queries, documents):
    """Returns the top `DEPTH` (document index, score) pairs of each query."""
    postings = collections.defaultdict(list)
    lengths = []
    for index, document in enumerate(documents):
        words = re.findall(r"[a-z]+|[0-9]", document.lower())
        lengths.append(len(words))
        for word, count in collections.Counter(words).items():
            postings[word].append((index, count))
    mean_length = sum(lengths) / len(lengths)
    rankings = []
    for query in queries:
        scores = collections.Counter()
        for word in search_words(query):
            matches = postings.get(word, ())
            idf = math.log(1 + (len(documents) - len(matches) + 0.5) / (len(matches) + 0.5))
            for index, count in matches:
                length_factor = 1 - BM25_B + BM25_B * lengths[index] / mean_length
                scores[index] += idf * count * (BM25_K1 + 1) / (count + BM25_K1 * length_factor)
        rankings.append(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:DEPTH])
    return rankings


def cranfield_field(record, field):
    """Returns the text of a field (".W", ".T", ...) of a Cranfield record, or "" if it is missing."""
    match = re.search(rf"^\.{field}\n(.*?)(?=^\.[A-Z]|\Z)", record, flags=re.M | re.S)
    return " ".join(match.group(1).split()) if match else ""


def cranfield(folder):
    documents = {}
    for record in re.split(r"^\.I ", (folder / "cran.all.1400").read_text(), flags=re.M)[1:]:
        text = cranfield_field(record, "W") or cranfield_field(record, "T")
        if text:
            documents[int(record.split("\n", 1)[0])] = text
    queries = [
        cranfield_field(record, "W")
        for record in re.split(r"^\.I ", (folder / "cran.qry").read_text(), flags=re.M)[1:]
    ]
    # `cranqrel` numbers the queries by their order in `cran.qry`, not by the ids given there.
    judgements = collections.defaultdict(dict)
    for line in (folder / "cranqrel").read_text().splitlines():
        fields = line.split()
        if len(fields) >= 3:
            judgements[int(fields[0]) - 1][int(fields[1])] = CRANFIELD_GRADES[int(fields[2])]
    ids = sorted(documents)
    rankings = bm25_rankings(queries, [documents[identifier] for identifier in ids])
    for number, (query, ranking) in enumerate(zip(queries, rankings)):
        yield {
            "query": query,
            "documents": [
                {
                    "id": str(ids[index]),
                    "text": documents[ids[index]],
                    "score": score,
                    "grade": judgements[number].get(ids[index], 0),
                }
                for index, score in ranking
            ],
            "grades": list(judgements[number].values()),
        }


def dl19(folder):
    judgements = collections.defaultdict(dict)
    for line in (folder / "qrels.dl19-passage.txt").read_text().splitlines():
        query_id, _, document_id, grade = line.split()
        judgements[query_id][document_id] = int(grade)
    for entry in json.loads((folder / "bm25_top100_with_text.json").read_text()):
        grades = judgements[str(entry["hits"][0]["qid"])]
        yield {
            "query": entry["query"],
            "documents": [
                {
                    "id": str(hit["docid"]),
                    "text": hit["content"],
                    "score": hit["score"],
                    "grade": grades.get(str(hit["docid"]), 0),
                }
                for hit in entry["hits"][:DEPTH]
            ],
            "grades": list(grades.values()),
        }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("cranfield", type=Path)
    arguments.add_argument("dl19", type=Path)
    arguments.add_argument("output", type=Path)
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, queries in (("cranfield", cranfield(options.cranfield)), ("dl19", dl19(options.dl19))):
        path = options.output / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for query in queries:
                file.write(json.dumps(query, ensure_ascii=False) + "\n")
        print(path)


if __name__ == "__main__":
    main()

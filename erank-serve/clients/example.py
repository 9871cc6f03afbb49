"""The query, the documents and the checks that the scripts of the clients share.

The service must run the bundled model. The last document is blank, so it has no score: by default, it is the last
result, with the score -1.
"""

import json
import sys
import urllib.request

MODEL = "erank-tiny"
QUERY = "how do bees make honey"
DOCUMENTS = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Bees visit flowers.",
    "",
]
ORDER = [1, 2, 0, 3]


def url():
    """Returns the address of the service, which is the only argument of a script."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} URL")
    return sys.argv[1].rstrip("/")


def post(address, body):
    """Returns the JSON reply to a request that no client library takes part in."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def check(base, found, top_n=len(DOCUMENTS), known_missing=()):
    """Checks pairs of an index and a score, which a client returned, against the order and the service's own reply."""
    reply = post(f"{base}/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
    expected = {result["index"]: result["relevance_score"] for result in reply["results"]}
    assert expected[ORDER[-1]] == -1 and 1 >= expected[ORDER[0]] > expected[ORDER[1]] > 0, expected
    found = list(found)
    order = [index for index in ORDER[:top_n] if index not in known_missing]
    assert [index for index, _ in found] == order, found
    for index, score in found:
        assert abs(score - expected[index]) < 1e-6, (index, score, expected)

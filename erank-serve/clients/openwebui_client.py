"""Checks the service with the request of Open WebUI's external reranker: python openwebui_client.py URL

Open WebUI has hundreds of dependencies. This script sends the request that open_webui/retrieval/models/external.py of
the package open-webui 0.12.4 sends, and reads the reply as that file does: it sorts the results by their index, and
expects a result for every document.
"""

import requests

from example import DOCUMENTS, MODEL, ORDER, QUERY, check, url


def main():
    base = url()
    reply = requests.post(
        f"{base}/v1/rerank",
        headers={"Content-Type": "application/json", "Authorization": "Bearer no-key"},
        json={"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)},
        timeout=60,
    )
    reply.raise_for_status()
    results = sorted(reply.json()["results"], key=lambda result: result["index"])
    scores = [result["relevance_score"] for result in results]
    assert len(scores) == len(DOCUMENTS), scores
    check(base, [(index, scores[index]) for index in ORDER])
    print("Open WebUI 0.12.4, its request: a score for each document, -1 for the blank one")


if __name__ == "__main__":
    main()

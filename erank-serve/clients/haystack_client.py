"""Checks the service with Haystack's rankers of Cohere and Jina: python haystack_client.py URL"""

import os
from importlib.metadata import version

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.jina import JinaRanker

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    documents = [Document(content=text, id=str(index)) for index, text in enumerate(DOCUMENTS)]
    key = Secret.from_token("no-key")
    cohere = CohereRanker(model=MODEL, api_key=key, api_base_url=base, top_k=len(DOCUMENTS))
    jina = JinaRanker(model=MODEL, api_key=key, base_url=f"{base}/v1/rerank", top_k=len(DOCUMENTS))
    for ranker in [cohere, jina]:
        results = ranker.run(query=QUERY, documents=documents)["documents"]
        check(base, [(int(document.id), document.score) for document in results])
    # A threshold leaves out the blank document.
    results = jina.run(query=QUERY, documents=documents, score_threshold=0)["documents"]
    check(base, [(int(document.id), document.score) for document in results], known_missing=[3])
    print(f"cohere-haystack {version('cohere-haystack')}: run")
    print(f"jina-haystack {version('jina-haystack')}: run, score_threshold")


if __name__ == "__main__":
    main()

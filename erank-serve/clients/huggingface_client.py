"""Checks the service with huggingface_hub: python huggingface_client.py URL

The library has no call for /rerank. The script sends text-embeddings-inference's request with the library's HTTP
session, and calls what InferenceClient has for such a server.
"""

from importlib.metadata import version

from huggingface_hub import InferenceClient
from huggingface_hub.utils import get_session

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    client = InferenceClient(provider="hf-inference")
    assert client.health_check(base)
    info = client.get_endpoint_info(model=base)
    assert info["model_id"] == MODEL and "reranker" in info["model_type"], info

    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False, "truncate": True}
    reply = get_session().post(f"{base}/rerank", json=body)
    reply.raise_for_status()
    check(base, [(result["index"], result["score"]) for result in reply.json()])

    reply = get_session().post(f"{base}/rerank", json={**body, "return_text": True})
    assert reply.json()[0]["text"] == DOCUMENTS[1]

    reply = get_session().post(f"{base}/rerank", json={"query": QUERY, "texts": []})
    assert reply.status_code == 422 and reply.json()["error_type"] == "validation", reply.text
    print(f"huggingface_hub {version('huggingface_hub')}: health_check, get_endpoint_info; /rerank")


if __name__ == "__main__":
    main()

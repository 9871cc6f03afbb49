"""Checks the service with LiteLLM's rerank and five of its providers: python litellm_client.py URL"""

import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from example import DOCUMENTS, MODEL, QUERY, check, url

# A provider of LiteLLM, the path of its api_base, and whether it asks for the documents. Infinity replies with a document
# as a string, and Cohere with an object, as the service does. LiteLLM asks for the documents by default.
PROVIDERS = [
    ("cohere", "/v2/rerank", True),
    ("jina_ai", "/v1/rerank", True),
    ("hosted_vllm", "", True),
    ("infinity", "", False),
    ("huggingface", "", True),
]


def main():
    base = url()
    litellm.telemetry = False
    for provider, path, with_documents in PROVIDERS:
        response = litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=QUERY,
            documents=DOCUMENTS,
            top_n=len(DOCUMENTS),
            return_documents=with_documents,
            api_base=base + path,
            api_key="no-key",
        )
        results = [(result["index"], result["relevance_score"]) for result in response.results]
        check(base, results)
        print(f"litellm {version('litellm')}, provider {provider}: rerank")


if __name__ == "__main__":
    main()

"""Checks the service with LiteLLM's rerank and five of its providers: python litellm_client.py URL"""

import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from example import DOCUMENTS, MODEL, QUERY, check, url

# A provider of LiteLLM, and the path of its api_base.
PROVIDERS = [
    ("cohere", "/v2/rerank"),
    ("jina_ai", "/v1/rerank"),
    ("hosted_vllm", ""),
    ("infinity", ""),
    ("huggingface", ""),
]


def main():
    base = url()
    litellm.telemetry = False
    for provider, path in PROVIDERS:
        response = litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=QUERY,
            documents=DOCUMENTS,
            top_n=len(DOCUMENTS),
            api_base=base + path,
            api_key="no-key",
        )
        results = [(result["index"], result["relevance_score"]) for result in response.results]
        check(base, results)
        print(f"litellm {version('litellm')}, provider {provider}: rerank")


if __name__ == "__main__":
    main()

"""Checks the service with LlamaIndex's CohereRerank: python llamaindex_cohere_client.py URL"""

from importlib.metadata import version

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(index)))
        for index, text in enumerate(DOCUMENTS)
    ]
    reranker = CohereRerank(
        model=MODEL, base_url=base, api_key="no-key", top_n=len(DOCUMENTS), max_retries=1
    )
    results = reranker.postprocess_nodes(nodes, QueryBundle(QUERY))
    check(base, [(int(result.node.node_id), result.score) for result in results])
    name = "llama-index-postprocessor-cohere-rerank"
    print(f"{name} {version(name)}: postprocess_nodes")


if __name__ == "__main__":
    main()

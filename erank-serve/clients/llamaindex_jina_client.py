"""Checks the service with LlamaIndex's postprocessors for Jina and for text-embeddings-inference:
python llamaindex_jina_client.py URL"""

from importlib.metadata import version

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    for reranker in [
        JinaRerank(model=MODEL, base_url=f"{base}/v1", api_key="no-key", top_n=len(DOCUMENTS)),
        TextEmbeddingInference(base_url=base, top_n=len(DOCUMENTS)),
    ]:
        nodes = [
            NodeWithScore(node=TextNode(text=text, id_=str(index)))
            for index, text in enumerate(DOCUMENTS)
        ]
        results = reranker.postprocess_nodes(nodes, QueryBundle(QUERY))
        check(base, [(int(result.node.node_id), result.score) for result in results])
    for name in ["jinaai", "tei"]:
        name = f"llama-index-postprocessor-{name}-rerank"
        print(f"{name} {version(name)}: postprocess_nodes")


if __name__ == "__main__":
    main()

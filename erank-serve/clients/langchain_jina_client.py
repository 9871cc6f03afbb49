"""Checks the service with LangChain's JinaRerank: python langchain_jina_client.py URL

The client has no setting for the address. The script replaces the address in its module.
"""

from importlib.metadata import version

from langchain_community.document_compressors import jina_rerank
from langchain_core.documents import Document

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    jina_rerank.JINA_API_URL = f"{base}/v1/rerank"
    reranker = jina_rerank.JinaRerank(model=MODEL, jina_api_key="no-key", top_n=len(DOCUMENTS))
    results = reranker.rerank(DOCUMENTS, QUERY)
    check(base, [(result["index"], result["relevance_score"]) for result in results])

    documents = [
        Document(page_content=text, metadata={"index": i}) for i, text in enumerate(DOCUMENTS)
    ]
    documents = reranker.compress_documents(documents, QUERY)
    check(base, [(d.metadata["index"], d.metadata["relevance_score"]) for d in documents])

    # The client shows the field `detail` of an error.
    try:
        reranker.rerank(DOCUMENTS, QUERY, model="unknown")
    except RuntimeError as error:
        assert "unknown" in str(error), error
    else:
        raise AssertionError("no RuntimeError")
    print(
        f"langchain-community {version('langchain-community')}: rerank, compress_documents, an error"
    )


if __name__ == "__main__":
    main()

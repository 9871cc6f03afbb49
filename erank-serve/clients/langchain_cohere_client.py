"""Checks the service with LangChain's CohereRerank: python langchain_cohere_client.py URL"""

from importlib.metadata import version

from langchain_cohere import CohereRerank
from langchain_core.documents import Document

from example import DOCUMENTS, MODEL, QUERY, check, url


def main():
    base = url()
    reranker = CohereRerank(
        model=MODEL, base_url=base, cohere_api_key="no-key", top_n=len(DOCUMENTS)
    )
    results = reranker.rerank(DOCUMENTS, QUERY)
    check(base, [(result["index"], result["relevance_score"]) for result in results])

    documents = [Document(text, metadata={"index": index}) for index, text in enumerate(DOCUMENTS)]
    documents = reranker.compress_documents(documents, QUERY)
    check(base, [(d.metadata["index"], d.metadata["relevance_score"]) for d in documents])
    print(f"langchain-cohere {version('langchain-cohere')}: rerank, compress_documents")


if __name__ == "__main__":
    main()

"""Checks the service with Cohere's published client: python cohere_client.py URL"""

import asyncio

import cohere

from example import DOCUMENTS, MODEL, QUERY, check, url


def check_reply(base, response, top_n=len(DOCUMENTS)):
    check(base, [(result.index, result.relevance_score) for result in response.results], top_n)
    assert response.meta.billed_units.search_units == 1
    assert response.meta.tokens.input_tokens > 0 and response.meta.tokens.output_tokens > 0
    # The blank document has no score.
    assert len(response.meta.warnings) == 1 and "document 3" in response.meta.warnings[0]


def main():
    base = url()
    v1 = cohere.Client("no-key", base_url=base)
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, *DOCUMENTS[2:]]
    response = v1.rerank(
        model=MODEL, query=QUERY, documents=documents, top_n=2, return_documents=True
    )
    check_reply(base, response, top_n=2)
    assert response.results[0].document.text == DOCUMENTS[1]

    v2 = cohere.ClientV2("no-key", base_url=base)
    check_reply(base, v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS))
    check_reply(base, v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=1), top_n=1)

    async def ask():
        client = cohere.AsyncClientV2("no-key", base_url=base)
        check_reply(base, await client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS))

    asyncio.run(ask())

    for documents, model, error in [
        (DOCUMENTS, "rerank-v3.5", cohere.NotFoundError),
        ([], MODEL, cohere.UnprocessableEntityError),
    ]:
        try:
            v2.rerank(model=model, query=QUERY, documents=documents)
        except error as found:
            assert found.body["message"] and found.body["field"] in ("model", "documents"), found
        else:
            raise AssertionError(f"no {error.__name__}")
    print(f"cohere {cohere.__version__}: v1, v2, asynchronous, errors")


if __name__ == "__main__":
    main()

"""Checks the service with Cohere's published client: python cohere_client.py URL

The service must run the bundled model. A reply that differs from what Cohere's client expects raises an
AssertionError.
"""

import asyncio
import sys

import cohere

QUERY = "how do bees make honey"
DOCUMENTS = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "",
]


def check(response):
    assert [result.index for result in response.results] == [1, 0], response
    scores = [result.relevance_score for result in response.results]
    assert 1 >= scores[0] > scores[1] >= 0, scores
    assert response.meta.billed_units.search_units == 1
    assert response.meta.tokens.input_tokens > 0 and response.meta.tokens.output_tokens > 0
    # The blank document has no score.
    assert len(response.meta.warnings) == 1 and "document 2" in response.meta.warnings[0]


def main(url):
    v1 = cohere.Client("no-key", base_url=url)
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    response = v1.rerank(
        model="erank-tiny", query=QUERY, documents=documents, top_n=2, return_documents=True
    )
    check(response)
    assert response.results[0].document.text == DOCUMENTS[1]

    v2 = cohere.ClientV2("no-key", base_url=url)
    check(v2.rerank(model="erank-tiny", query=QUERY, documents=DOCUMENTS))
    assert len(v2.rerank(model="erank-tiny", query=QUERY, documents=DOCUMENTS, top_n=1).results) == 1

    async def ask():
        client = cohere.AsyncClientV2("no-key", base_url=url)
        check(await client.rerank(model="erank-tiny", query=QUERY, documents=DOCUMENTS))

    asyncio.run(ask())

    for documents, model, error in [
        (DOCUMENTS, "rerank-v3.5", cohere.NotFoundError),
        ([], "erank-tiny", cohere.UnprocessableEntityError),
    ]:
        try:
            v2.rerank(model=model, query=QUERY, documents=documents)
        except error as found:
            assert found.body["message"] and found.body["field"] in ("model", "documents"), found
        else:
            raise AssertionError(f"no {error.__name__}")
    print("v1, v2, asynchronous, errors: as expected")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])

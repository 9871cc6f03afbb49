// Checks the service with Cohere's JavaScript client and with LangChain's CohereRerank on top of it:
// node cohere_client.mjs URL
//
// fetch.sh installs both clients into tests/.cache/clients/node.

import assert from "node:assert";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const folder = new URL("../../tests/.cache/clients/node/", import.meta.url);
const require = createRequire(folder);
const version = (name) => require(fileURLToPath(new URL(`node_modules/${name}/package.json`, folder))).version;
const { CohereClient, CohereClientV2, CohereError } = require("cohere-ai");
const { CohereRerank } = require("@langchain/cohere");

const MODEL = "erank-tiny";
const QUERY = "how do bees make honey";
const DOCUMENTS = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Bees visit flowers.",
    "",
];
const ORDER = [1, 2, 0, 3];

const url = process.argv[2];
assert(url, "usage: node cohere_client.mjs URL");

const reply = await fetch(`${url}/v1/rerank`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ query: QUERY, documents: DOCUMENTS }),
});
const expected = (await reply.json()).results.map(({ index, relevance_score }) => [index, relevance_score]);
assert.deepEqual(expected.map(([index]) => index), ORDER);
assert.equal(expected[3][1], -1);

const check = (results, count = ORDER.length) => {
    assert.deepEqual(results.map(({ index }) => index), ORDER.slice(0, count));
    results.forEach(({ relevanceScore }, rank) => assert(Math.abs(relevanceScore - expected[rank][1]) < 1e-6));
};

const v1 = new CohereClient({ token: "no-key", environment: url });
const first = await v1.rerank({ model: MODEL, query: QUERY, documents: DOCUMENTS, topN: 2, returnDocuments: true });
check(first.results, 2);
assert.equal(first.results[0].document.text, DOCUMENTS[1]);

const v2 = new CohereClientV2({ token: "no-key", environment: url });
check((await v2.rerank({ model: MODEL, query: QUERY, documents: DOCUMENTS })).results);
await assert.rejects(
    v2.rerank({ model: "rerank-v3.5", query: QUERY, documents: DOCUMENTS }),
    (error) => error instanceof CohereError && error.statusCode === 404 && error.body.field === "model",
);
console.log(`cohere-ai ${version("cohere-ai")} (JavaScript): v1, v2, an error`);

const reranker = new CohereRerank({ client: v1, model: MODEL, topN: DOCUMENTS.length });
check(await reranker.rerank(DOCUMENTS, QUERY));
console.log(`@langchain/cohere ${version("@langchain/cohere")} (JavaScript): rerank`);

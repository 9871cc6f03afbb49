// Tests the page in headless Chromium against a running service with the bundled demonstration model.
//
//     erank-serve/page/fetch_chromium.sh
//     node erank-serve/page/test_page.mjs http://127.0.0.1:8080/ [WORDS OF A TEST'S NAME]
//
// The service needs no key. Replies that a service rarely gives are invented by the tests (`invent`).

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(new URL("../../tests/.cache/page/", import.meta.url));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, only = ""] = process.argv.slice(2);
assert.ok(url, "usage: node test_page.mjs URL [WORDS OF A TEST'S NAME]");

const programs = [process.env.CHROMIUM, "chromium", "chromium-browser", "google-chrome"].filter(Boolean);
const find = (name) => execFileSync("sh", ["-c", 'command -v "$0" || true', name], { encoding: "utf8" }).trim();
const browser = await chromium.launch({ executablePath: programs.map(find).find(Boolean), args: ["--no-sandbox"] });

const tests = [];
const test = (name, run, options = {}) => tests.push({ name, run, options });

// Runs in the page before its own script, and records what later assertions need.
function record() {
  window.seen = { violations: [], announcements: [], liveThoughts: 0, liveRanks: 0, animations: 0 };
  document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  const animate = Element.prototype.animate;
  Element.prototype.animate = function (...args) {
    seen.animations++;
    return animate.apply(this, args);
  };
  new MutationObserver((changes) => {
    if (changes.some((change) => change.target.id === "live")) seen.announcements.push(document.getElementById("live").textContent);
    if (!document.querySelector("#results[aria-busy=true]")) return;
    seen.liveThoughts += [...document.querySelectorAll(".thinking .thought")].some((thought) => thought.textContent);
    seen.liveRanks += [...document.querySelectorAll(".rank")].some((rank) => rank.textContent === "1");
  }).observe(document, { subtree: true, childList: true });
}

/** Runs a test in a fresh page, and checks what holds for all: no foreign request, no error, no violation. */
async function runTest({ run, options }) {
  const { mayFail = [], ...settings } = options;
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...settings });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: new URL(url).origin });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => {
    const isExpected = mayFail.some((text) => message.text().includes(text));
    if (["error", "warning"].includes(message.type()) && !isExpected) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol !== "data:" && origin !== new URL(url).origin) problems.push(`request to ${request.url()}`);
  });
  page.setDefaultTimeout(60_000);
  try {
    await page.addInitScript(record);
    await page.goto(url);
    await page.waitForFunction(() => document.getElementById("model").textContent);
    await run(page);
    problems.push(...(await page.evaluate(() => seen.violations)));
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
  }
}

// What a person does and sees.

const press = (page) => page.locator("#rank").click();
const settle = (page) => page.waitForFunction(() => document.querySelector("#results[aria-busy=false]"));
async function rank(page) {
  await press(page);
  await settle(page);
}
const texts = (page, selector) => page.locator(selector).allTextContents();
const order = (page) => page.locator("#ranked .scored .name").evaluateAll((names) => names.map((name) => Number(name.textContent.slice("Document ".length)) - 1));
const problem = (page) => page.locator("#problem:not([hidden])").textContent();
const many = (count) => Array.from({ length: count }, (_, i) => `Bees of hive ${i} make honey from nectar, and keepers sell it.`).join("\n");

async function drop(page, name, content) {
  const transfer = await page.evaluateHandle(([name, content]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([content], name));
    return transfer;
  }, [name, content]);
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
}

/** Presses Rank, waits for the end, and returns the request's body. */
async function sent(page) {
  const [request] = await Promise.all([page.waitForRequest("**/v1/rerank"), press(page)]);
  await settle(page);
  return request.postDataJSON();
}

/** Replies to the next request with this status, or with these events. */
async function invent(page, { events, status = 200, ...reply }) {
  const body = events ? events.map(([name, data]) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`).join(": wait\n\n") : JSON.stringify(reply.json);
  const contentType = events ? "text/event-stream" : "application/json";
  await page.route("**/v1/rerank", (route) => route.fulfill({ status, contentType, body, headers: reply.headers }), { times: 1 });
}

/** Lets the page read the first documents of a reply, and no more until the request is stopped. */
const hold = (page) => page.evaluate(() => {
  const { fetch } = window;
  window.fetch = async (resource, options) => {
    const reply = await fetch(resource, options);
    const reader = reply.body.getReader();
    let wasScored = false;
    const body = new ReadableStream({
      async pull(controller) {
        if (wasScored) await new Promise((_, reject) => options.signal.addEventListener("abort", () => reject(options.signal.reason)));
        const { value, done } = await reader.read();
        if (done) return controller.close();
        controller.enqueue(value);
        wasScored = new TextDecoder().decode(value).includes("event: document");
      },
    });
    return new Response(body, reply);
  };
});

async function fits(page) {
  const tooWide = await page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    // Cards clip what is too wide, so the width of the page alone does not tell.
    const outside = [...document.querySelectorAll("body *")].filter((element) => element.getBoundingClientRect().right > width + 0.5);
    return [document.documentElement.scrollWidth > width && "the page", ...outside.map((element) => element.outerHTML.slice(0, 80))].filter(Boolean);
  });
  assert.deepEqual(tooWide, []);
}

async function accessible(page, state) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => `${state}: ${id} ${nodes[0].html} ${nodes[0].failureSummary}`), []);
}

// The policy.

test("the policy allows the page's script and style by their hashes only", async (page) => {
  const response = await page.request.get(url);
  const policy = response.headers()["content-security-policy"];
  for (const part of [/default-src 'none'/, /script-src 'sha256-[^' ]+'(;|$)/, /style-src 'sha256-[^' ]+'(;|$)/, /connect-src 'self'/]) assert.match(policy, part);
  const html = await response.text();
  for (const tag of ["<script>", "</script>", "<style>", "</style>"]) assert.equal(html.split(tag).length, 2, `${tag} occurs once`);
});

// Ranking.

test("thoughts and ranks appear before the end", async (page) => {
  await page.locator("#documents").fill(many(150));
  await rank(page);
  const { liveThoughts, liveRanks } = await page.evaluate(() => seen);
  assert.ok(liveThoughts > 0, "a thought is seen before the end");
  assert.ok(liveRanks > 0, "a rank is seen before the end");
});

test("the example is ranked", async (page) => {
  await rank(page);
  assert.deepEqual(await texts(page, "#ranked .rank"), ["1", "2", "3", "4", "5", "6"]);
  const scores = (await texts(page, "#ranked .score")).map(Number);
  assert.deepEqual(scores, scores.toSorted((a, b) => b - a));
  assert.ok(scores[0] > scores[5], "the model tells the documents apart");
  assert.match((await texts(page, "#ranked .text"))[0], /bees .* honey/i);
  const { announcements } = await page.evaluate(() => seen);
  assert.ok(announcements.length <= 3, `few announcements: ${announcements}`);
  assert.match(announcements.at(-1), /^6 documents in .* First: document \d\.$/);
  assert.match(await page.locator("#status").textContent(), /^6 documents in [\d.]+ s · [\d,]+ tokens read, [\d,]+ written$/);
  assert.match(await page.locator("#ranked svg").first().getAttribute("aria-label"), /^Probability of each answer: \d+ [\d.]+\u00a0%/);
  assert.match((await texts(page, "#ranked .answer"))[0], /^answer \d+, [\d.]+\u00a0%$/);
  assert.match((await texts(page, "#ranked .was"))[0], /^was \d$/);
});

test("a thought is closed at the end, and opens", async (page) => {
  await rank(page);
  const thought = page.locator("#ranked .thought").first();
  assert.equal(await thought.isVisible(), false);
  await page.locator("#ranked summary").first().click();
  assert.equal(await thought.isVisible(), true);
  assert.ok((await thought.textContent()).trim());
  await page.locator("#toggle").click();
  assert.equal(await page.locator("#ranked .thought:visible").count(), 6);
  await page.locator("#toggle").click();
  assert.equal(await page.locator("#ranked .thought:visible").count(), 0);
});

test("the order by the slider equals the service's by first_stage_weight", async (page) => {
  const body = await sent(page);
  assert.equal(body.first_stage_weight, undefined);
  const orders = new Set();
  for (const weight of [0, 0.2, 0.35, 0.5, 0.8, 1]) {
    await page.locator("#weight").fill(String(weight));
    const expected = await page.evaluate(async (body) => {
      const headers = { "content-type": "application/json" };
      const reply = await fetch("v1/rerank", { method: "POST", headers, body: JSON.stringify(body) });
      return (await reply.json()).results.map((result) => result.index);
    }, { ...body, stream: false, first_stage_weight: weight });
    assert.deepEqual(await order(page), expected, `weight ${weight}`);
    orders.add(String(expected));
  }
  assert.ok(orders.size > 1, "the weight changes the order");
});

test("the slider needs a first-stage score for each document", async (page) => {
  await page.locator("#documents").fill("1 | bees\n2 | honey");
  await page.waitForFunction(() => !document.getElementById("weight").disabled && document.getElementById("weight-hint").hidden);
  await page.locator("#documents").fill("1 | bees\nhoney");
  await page.waitForFunction(() => document.getElementById("weight").disabled && !document.getElementById("weight-hint").hidden);
  assert.deepEqual((await sent(page)).documents, ["1 | bees", "honey"]);
});

test("stop keeps what is there", async (page) => {
  await page.locator("#documents").fill(many(300));
  await hold(page);
  await press(page);
  await page.waitForSelector("#ranked .scored");
  const [failed] = await Promise.all([page.waitForEvent("requestfailed"), page.locator("#stop").click()]);
  assert.match(failed.url(), /rerank/);
  await settle(page);
  const scored = await page.locator("#ranked .scored").count();
  assert.ok(scored > 0 && scored < 300, `${scored} of 300`);
  assert.match(await page.locator("#status").textContent(), new RegExp(`^Stopped: ${scored} of 300 documents ranked`));
  assert.equal(await page.locator("#ranked .card").count(), 300);
  assert.equal(await page.locator(".thinking, .waiting").count(), 0);
  assert.equal(await page.evaluate(() => document.activeElement.id), "rank");
  await page.locator("#documents").fill("bees make honey");
  await rank(page);
  assert.deepEqual(await texts(page, "#ranked .rank"), ["1"]);
});

test("settings reach the request", async (page) => {
  await page.locator("#preset").selectOption({ label: "Contradicts the claim" });
  assert.match(await page.locator("#goal").inputValue(), /contradicts/);
  await page.locator("#settings summary").click();
  for (const [id, value] of [["max_tokens", "48"], ["temperature", "0,5"], ["max_tokens_per_doc", "64"], ["min_score", "0.1"]]) await page.locator(`#${id}`).fill(value);
  const { documents, ...body } = await sent(page);
  assert.deepEqual(documents[3], { text: "Maple syrup is boiled from the sap of trees, and no insect takes part in it.", score: 9.7 });
  assert.deepEqual(body, {
    query: "how do bees make honey", instruction: "A document is relevant if it contradicts the claim in the query.", mode: "reason", max_tokens: 48,
    temperature: 0.5, max_tokens_per_doc: 64, min_score: 0.1, stream: true, return_reasoning: true, unscored: "omit",
  });
  assert.equal(await page.locator("#problem").isVisible(), false);
});

test("answers at once have no thought", async (page) => {
  await page.locator("text=Answer at once").click();
  const body = await sent(page);
  assert.equal(body.mode, "answer_only");
  assert.equal(await page.locator("#ranked .scored").count(), 6);
  assert.equal(await page.locator("#ranked details:visible").count(), 0);
});

test("cut documents say so", async (page) => {
  await page.locator("#settings summary").click();
  await page.locator("#max_tokens_per_doc").fill("5");
  await rank(page);
  assert.match((await texts(page, "#ranked .cut:visible"))[0], /^Cut: the model did not read the end/);
});

test("documents below the minimum stand apart", async (page) => {
  await page.locator("#settings summary").click();
  await page.locator("#min_score").fill("0.5");
  await rank(page);
  const [above, below] = [await page.locator("#ranked .scored").count(), await page.locator("#below .scored").count()];
  assert.ok(below > 0 && above + below === 6, `${above} above, ${below} below`);
  assert.deepEqual(await texts(page, "#below .rank"), Array(below).fill(""));
  for (const facts of await texts(page, "#below .facts")) assert.ok(Number(/relevance ([\d.]+)/.exec(facts)[1]) <= 0.5, facts);
});

test("a bad document has its reason, and the others have ranks", async (page) => {
  await page.locator("#documents").fill(JSON.stringify(["Bees make honey.", null, "", { other: 1 }, { title: "Honey" }]));
  await rank(page);
  assert.equal(await page.locator("#ranked .scored").count(), 2);
  const reasons = await texts(page, "#failed .reason");
  assert.equal(reasons.length, 3);
  for (const reason of reasons) assert.match(reason, /^This document has no score: .{5,}/);
});

// Hostile text.

const HOSTILE = ["<img src=x onerror=\"window.hit=1\">", "<script>window.hit=1</script>", "</textarea><svg onload=window.hit=1>", "javascript:window.hit=1 {{7*7}} ${hit}", "\u202egnirts\u202c"];

test("hostile documents are shown as text", async (page) => {
  await page.locator("#query").fill(HOSTILE[0]);
  await page.locator("#documents").fill(HOSTILE.map((text) => JSON.stringify({ text, title: text, _id: text })).join("\n"));
  await rank(page);
  const shown = await texts(page, "#ranked .text");
  assert.deepEqual(shown.toSorted(), HOSTILE.toSorted());
  assert.deepEqual((await texts(page, "#ranked .title")).toSorted(), HOSTILE.toSorted());
  assert.deepEqual((await texts(page, "#ranked .name")).toSorted(), HOSTILE.toSorted());
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await page.locator("img, iframe, #results script").count(), 0);
});

test("hostile thoughts, labels, warnings and messages are shown as text", async (page) => {
  const [bad] = HOSTILE;
  const scored = { index: 0, sample: 0, relevance_score: 0.5, answer: 5, probability: 1, reasoning: bad, distribution: [{ answer: 5, label: bad, probability: 1 }] };
  const result = { results: [scored], unscored: [{ index: 1, error: { code: bad, message: bad } }], meta: { warnings: [`news: ${HOSTILE[1]}`, `document 1: ${bad}`] } };
  await page.locator("#documents").fill("a\nb");
  await invent(page, { events: [["started", {}], ["thought", { index: 0, sample: 0, text: bad }], ["document", scored], ["result", result]] });
  await rank(page);
  assert.deepEqual(await texts(page, "#ranked .scored .thought"), [bad]);
  assert.deepEqual(await texts(page, "#warnings li"), [`news: ${HOSTILE[1]}`]);
  assert.deepEqual(await texts(page, "#failed .reason"), [`This document has no score: ${bad}`]);
  await invent(page, { status: 500, json: { message: bad } });
  await rank(page);
  assert.equal(await problem(page), bad);
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await page.locator("img").count(), 0);
}, { mayFail: ["status of 500"] });

// Files.

const FILES = {
  "lines.txt": ["\uFEFFone, with a comma\r\ntwo\r\n\r\n", ["one, with a comma", "two"], "one per line"],
  "scored.txt": ["1.5 | one\n-2e1|two", [{ text: "one", score: 1.5 }, { text: "two", score: -20 }], "first-stage scores"],
  "blank.txt": ["one\nstill one\n \ntwo\n", ["one\nstill one", "two"], "blank lines"],
  "objects.jsonl": ['{"_id": 7, "contents": "one", "score": 2}\n\n{"title": "T", "text": "two", "score": "3"}\n', [{ text: "one", score: 2 }, { title: "T", text: "two", score: 3 }], "JSON lines"],
  "array.json": ['[\n "one", {"text": "two"}, {"title": "T", "text": "three"}, null]', ["one", "two", { title: "T", text: "three" }, null], "JSON array"],
  "table.csv": ['_id,title,text,score\r\n1,T,"one, ""quoted""\r\nline",2.5\r\n2,,two,\r\n', [{ title: "T", text: 'one, "quoted"\nline', score: 2.5 }, "two"], "CSV"],
  "semicolons.csv": ['"text";"score"\none;1\ntwo;2', [{ text: "one", score: 1 }, { text: "two", score: 2 }], "CSV"],
  "table.tsv": ["score\ttext\n1\tsay \"x\"\n", [{ text: 'say "x"', score: 1 }], "TSV"],
};

for (const [name, [content, documents, format]] of Object.entries(FILES)) {
  test(`the dropped file ${name} is read`, async (page) => {
    await drop(page, name, content);
    await page.waitForFunction((text) => document.getElementById("documents-read").textContent.includes(text), format);
    assert.deepEqual((await sent(page)).documents, documents);
  });
}

test("a chosen file is read", async (page) => {
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.locator("#choose").click()]);
  await chooser.setFiles({ name: "a.jsonl", mimeType: "application/json", buffer: Buffer.from('{"text": "one"}') });
  await page.waitForFunction(() => document.getElementById("documents-read").textContent === "1 document, JSON lines");
  assert.deepEqual((await sent(page)).documents, ["one"]);
});

test("broken files are refused with their reason", async (page) => {
  for (const [content, reason] of [['{"text": "a"}\n{"text": ', /^Line 2 is not JSON/], ['["a", ', /^The text is not JSON/], ['text,score\n"a,1', /quote/], ["a\0b", /not a text file/]]) {
    await drop(page, "broken", content);
    if (!content.includes("\0")) {
      await page.waitForFunction((text) => document.getElementById("documents").value === text, content);
      await press(page);
    }
    await page.waitForSelector("#problem:not([hidden])");
    assert.match(await problem(page), reason);
    assert.equal(await page.locator("#documents").getAttribute("aria-invalid"), "true");
  }
});

// Errors.

test("a field's error is shown at the field", async (page) => {
  await page.locator("#settings summary").click();
  await page.locator("#max_tokens").fill("1.5");
  await page.locator("#settings summary").click();
  await rank(page);
  assert.match(await problem(page), /max_tokens/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "max_tokens");
  assert.equal(await page.locator("#max_tokens").getAttribute("aria-invalid"), "true");
  await page.locator("#max_tokens").fill("15");
  await page.locator("#temperature").fill("-1");
  await rank(page);
  assert.match(await problem(page), /temperature/);
  assert.equal(await page.locator(".card").count(), 0);
  await page.locator("#temperature").fill("0");
  await rank(page);
  assert.equal(await page.locator("#problem").isVisible(), false);
  assert.equal(await page.locator("#ranked .scored").count(), 6);
}, { mayFail: ["status of 422"] });

test("missing fields are named without a request", async (page) => {
  for (const [id, text] of [["documents", /document/], ["query", /query/]]) {
    await page.locator(`#${id}`).fill(" ");
    await press(page);
    assert.match(await problem(page), text);
    assert.equal(await page.evaluate(() => document.activeElement.id), id);
  }
});

test("a key is asked for, sent, and not stored", async (page) => {
  assert.equal(await page.locator("#key").isVisible(), false);
  await invent(page, { status: 401, json: { message: "no key" } });
  await press(page);
  await page.waitForSelector("#problem:not([hidden])");
  assert.match(await problem(page), /key/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "key");
  await page.keyboard.type("secret");
  const [request] = await Promise.all([page.waitForRequest("**/v1/rerank"), page.keyboard.press("Enter")]);
  assert.equal(request.headers().authorization, "Bearer secret");
  await settle(page);
  assert.deepEqual(await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]), [0, 0, ""]);
  await page.locator("[data-copy=curl]").click();
  const code = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(code.includes("$ERANK_API_KEY") && !code.includes("secret"));
}, { mayFail: ["status of 401"] });

test("a busy service says when to try again", async (page) => {
  await invent(page, { status: 429, json: { message: "The queue is full." }, headers: { "retry-after": "7" } });
  await rank(page);
  assert.equal(await problem(page), "The queue is full. Try again in 7 s.");
}, { mayFail: ["status of 429"] });

test("a stream that breaks off keeps what is there", async (page) => {
  const scored = { index: 0, sample: 0, relevance_score: 0.5, answer: 5, probability: 1, reasoning: "so", distribution: null, truncated: false };
  await invent(page, { events: [["started", {}], ["document", scored], ["thought", { index: 1, sample: 0, text: "it be" }]] });
  await rank(page);
  assert.match(await problem(page), /connection ended/);
  assert.equal(await page.locator("#ranked .scored").count(), 1);
  assert.match(await page.locator("#status").textContent(), /^Failed: 1 of 6/);
  // An error of a document has no sample.
  const empty = { index: 2, error: { code: "empty", message: "The document is empty." } };
  await invent(page, { events: [["document", scored], ["document", empty], ["error", { message: "The engine failed." }]] });
  await rank(page);
  assert.deepEqual(await texts(page, "#failed .reason"), ["This document has no score: The document is empty."]);
  assert.equal(await problem(page), "The engine failed.");
  await page.route("**/v1/rerank", (route) => route.abort(), { times: 1 });
  await rank(page);
  assert.match(await problem(page), /cannot be reached/);
}, { mayFail: ["net::ERR_FAILED"] });

// Use without a mouse, on small screens, and with a screen reader.

test("the page works with the keyboard alone", async (page) => {
  const focus = () => page.evaluate(() => document.activeElement.id || document.activeElement.dataset.copy || document.activeElement.localName);
  const reached = [];
  for (let i = 0; i < 14; i++) {
    await page.keyboard.press("Tab");
    reached.push(await focus());
  }
  assert.deepEqual(reached, ["a", "query", "preset", "goal", "choose", "documents", "input", "summary", "rank", "curl", "Rust", "Python", "weight", "body"]);
  await page.locator("#query").focus();
  await page.keyboard.press("Control+A");
  await page.keyboard.type("maple syrup");
  await page.keyboard.press("Control+Enter");
  await settle(page);
  assert.match((await texts(page, "#ranked .text"))[0], /^Maple syrup/);
  await page.locator("#weight").focus();
  const before = await order(page);
  await page.keyboard.press("End");
  await page.waitForFunction(() => document.getElementById("weight-value").textContent === "1.00");
  assert.notDeepEqual(await order(page), before);
  assert.equal(await focus(), "weight");
  await page.keyboard.press("Tab");
  assert.equal(await focus(), "toggle");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#ranked .thought").first().isVisible(), true);
});

test("a focused thought keeps the focus when its card moves", async (page) => {
  await rank(page);
  assert.notEqual((await order(page))[0], 0);
  const moved = await page.locator("#ranked .card", { hasText: "Document 1" }).locator("summary").elementHandle();
  await moved.focus();
  await page.evaluate(() => {
    document.getElementById("weight").value = "1";
    document.getElementById("weight").dispatchEvent(new Event("input"));
  });
  assert.equal((await order(page))[0], 0);
  assert.equal(await moved.evaluate((summary) => summary === document.activeElement), true);
});

test("the key of the page stops a run", async (page) => {
  await page.locator("#documents").fill(many(300));
  await hold(page);
  await page.locator("#rank").focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector("#ranked .scored");
  assert.equal(await page.evaluate(() => document.activeElement.id), "stop");
  await page.keyboard.press("Space");
  await settle(page);
  assert.match(await page.locator("#status").textContent(), /^Stopped/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "rank");
});

test("a view of 320 pixels does not scroll sideways", async (page) => {
  await fits(page);
  await page.locator("#settings summary").click();
  const word = "honey".repeat(60);
  const documents = [{ _id: word, title: word, text: word }, { text: word }, null, "bees"];
  await page.locator("#documents").fill(JSON.stringify(documents));
  await rank(page);
  await page.locator("#toggle").click();
  await fits(page);
  await page.locator("#documents").fill(JSON.stringify([...documents, ...Array(300).fill(word)]));
  await hold(page);
  await press(page);
  await page.waitForSelector("#results[aria-busy=true] #failed .card");
  await fits(page);
  await page.locator("#stop").click();
  await settle(page);
  await page.locator("#query").fill("");
  await press(page);
  await fits(page);
}, { viewport: { width: 320, height: 640 } });

test("cards slide", async (page) => {
  await rank(page);
  assert.ok((await page.evaluate(() => window.seen.animations)) > 0);
});

test("cards do not slide if motion is to be reduced", async (page) => {
  await rank(page);
  assert.equal(await page.evaluate(() => window.seen.animations), 0);
}, { reducedMotion: "reduce" });

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 320]) {
    test(`axe finds nothing in ${colorScheme} colours at ${width} pixels`, async (page) => {
      await accessible(page, "before");
      await page.locator("#settings summary").click();
      await page.locator("#min_score").fill("0.5");
      await page.locator("#max_tokens_per_doc").fill("12");
      await page.locator("#documents").fill(`${JSON.stringify(["Bees make honey.", null, { title: "Wasps", text: many(40) }])}`);
      await rank(page);
      await page.locator("#toggle").click();
      await accessible(page, "after");
      await page.locator("#temperature").fill("x");
      await press(page);
      await accessible(page, "error");
      await page.locator("#temperature").fill("");
      await page.locator("#documents").fill(many(300));
      await hold(page);
      await press(page);
      await page.waitForSelector(".thinking");
      await accessible(page, "during");
    }, { colorScheme, viewport: { width, height: 900 }, reducedMotion: "reduce" });
  }
}

// Code.

test("the copied curl and Python commands give the page's order", async (page) => {
  await page.locator("#query").fill("how do bees' wings make \"honey\" $HOME \\ `x`");
  await page.locator("#weight").fill("0.3");
  await rank(page);
  const expected = await order(page);
  for (const [language, program, args] of [["curl", "bash", []], ["Python", "python3", ["-"]]]) {
    await page.locator(`[data-copy=${language}]`).click();
    await page.waitForFunction((text) => document.getElementById("copied").textContent === text, `Copied as ${language}.`);
    const code = await page.evaluate(() => navigator.clipboard.readText());
    const output = execFileSync(program, args, { input: code, encoding: "utf8" });
    const found = language === "curl" ? JSON.parse(output).results.map((result) => result.index) : output.split("\n").flatMap((line) => /^-?[\d.e-]+ (\d+) /.exec(line)?.[1] ?? []).map(Number);
    assert.deepEqual(found, expected, language);
  }
});

test("the copied Rust program states the request", async (page) => {
  await page.locator("#query").fill('a "quoted" \\ line\u202e');
  await page.locator("#weight").fill("0.3");
  await page.locator("#settings summary").click();
  for (const [id, value] of [["max_tokens", "48"], ["temperature", "1"], ["max_tokens_per_doc", "64"], ["min_score", "0.1"]]) await page.locator(`#${id}`).fill(value);
  await page.locator("[data-copy=Rust]").click();
  await page.waitForFunction(() => document.getElementById("copied").textContent === "Copied as Rust.");
  const code = await page.evaluate(() => navigator.clipboard.readText());
  for (const part of [
    "use erank_core::{Document, Fusion, Request, Reranker, Sampling, ScoringOptions};", "Reranker::builder(CandleBackend::tiny()?)", ".max_tokens(48)",
    "Sampling::with_temperature(1.0)", "options.max_document_tokens = 64;", "first_stage_weight: 0.3", ".with_min_score(0.1)",
    'Request::new("a \\"quoted\\" \\\\ line\\u{202e}", [', 'in it.").with_first_stage_score(9.7),',
  ]) assert.ok(code.includes(part), `${part} in:\n${code}`);
});

test("code can be copied by hand if the browser does not allow it", async (page) => {
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await page.locator("[data-copy=curl]").click();
  assert.match(await page.locator("#code-text").inputValue(), /^curl /);
  await accessible(page, "dialog");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#code").isVisible(), false);
});

let failures = 0;
for (const each of tests.filter(({ name }) => name.includes(only))) {
  try {
    await runTest(each);
    console.log(`ok      ${each.name}`);
  } catch (error) {
    failures++;
    console.log(`FAILED  ${each.name}\n${error.stack}\n`);
  }
}
await browser.close();
console.log(failures ? `${failures} tests of the page failed` : "all tests of the page passed");
process.exitCode = failures ? 1 : 0;

"""Serves the page and answers requests with invented events. Only for work on the page without the service.

python mock.py [PORT]
"""
import base64, hashlib, json, math, random, re, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parent / "index.html"
SLOW = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0


def policy(html):
    part = lambda tag: base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", html, re.S)[1].encode()).digest()).decode()
    return (f"default-src 'none'; script-src 'sha256-{part('script')}'; style-src 'sha256-{part('style')}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")


def z(xs):
    m = sum(xs) / len(xs); d = math.sqrt(sum((x - m) ** 2 for x in xs) / len(xs))
    return [(x - m) / d if d else 0 for x in xs]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def reply(self, status, body, kind="application/json", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {"content-type": kind, "content-length": str(len(body)), **headers}.items(): self.send_header(k.replace("_", "-"), v)
        self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        if self.path == "/":
            html = PAGE.read_text()
            return self.reply(200, html.encode(), "text/html; charset=utf-8", content_security_policy=policy(html))
        if self.path == "/info":
            return self.reply(200, {"model_id": "erank-tiny", "version": "0.1.0", "erank": {"thinks": True, "default_instruction": "Retrieve relevant documents for the query.", "max_documents": 1000, "max_body_bytes": 8 << 20, "needs_key": False}})
        self.reply(404, {"message": "unknown route"})
    def do_POST(self):
        b = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if b.get("temperature", 0) < 0:
            m = "temperature must be finite and at least 0"
            return self.reply(422, {"message": m, "detail": m, "field": "temperature"})
        docs = [{"text": d} if isinstance(d, str) else d if isinstance(d, dict) else {} for d in b["documents"]]
        rng = random.Random(4)
        think = b["mode"] == "reason"
        words = b["query"].lower().split()
        made = []
        for i, d in enumerate(docs):
            t = (d.get("title") or "") + " " + (d.get("text") or "")
            if not t.strip(): made.append({"index": i, "sample": 0, "error": {"code": "empty", "message": "the document is empty"}}); continue
            hits = sum(w in t.lower() for w in words)
            n = min(10, hits * 2 + len(t) % 3); p = 0.5 + 0.49 * ((len(t) * 7919) % 97) / 97
            dist = [{"answer": a, "label": str(a), "probability": p if a == n else (1 - p) * (0.8 if a == max(0, n - 1) and n else 0.02)} for a in range(11)]
            thought = f"The query asks: {b['query']}. " + " ".join(f"The document {'mentions' if w in t.lower() else 'lacks'} “{w}”." for w in words) + " It begins with: " + t[:160] + ". So I weigh what it says against the goal, and I consider whether a reader would find the answer here." 
            made.append({"index": i, "sample": 0, "relevance_score": n * p / 10, "relevance": sum(e["answer"] * e["probability"] for e in dist) / 10, "answer": n, "probability": p, "reasoning": thought if think else "", "distribution": dist, "truncated": "max_tokens_per_doc" in b or len(t) > 2000, "finish_reason": "forced" if "max_tokens" in b else "answered", "tokens": {"prompt": 150 + len(t) // 4, "generated": len(thought) // 4 if think else 1}})
        ok = [m for m in made if "error" not in m]
        s = [m["relevance_score"] for m in ok]
        w = b.get("first_stage_weight", 0)
        if w: s = [w * x + (1 - w) * y for x, y in zip(z([docs[m["index"]]["score"] for m in ok]), z(s))]
        order = sorted(range(len(ok)), key=lambda i: -s[i])
        results = [ok[i] for i in order]; low = [m for m in results if m["relevance"] < b.get("min_score", 0)]
        final = {"id": "x", "results": [m for m in results if m not in low], "below_min_score": low, "unscored": [m for m in made if "error" in m], "meta": {"warnings": ["one document is empty"] if len(ok) < len(made) else []}}
        if not b.get("stream"): return self.reply(200, final)
        self.send_response(200); self.send_header("content-type", "text/event-stream"); self.send_header("connection", "close"); self.end_headers()
        def send(name, data): self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()); self.wfile.flush()
        try:
            send("started", {"id": "x", "model": "erank-tiny", "documents": len(docs)})
            time.sleep(0.4 * SLOW)
            waiting, running, done, tok = list(range(len(docs))), {}, 0, {"prompt": 0, "generated": 0}
            while waiting or running:
                while waiting and len(running) < 4: running[waiting.pop(0)] = 0
                for i in list(running):
                    m = made[i]; text = m.get("reasoning", ""); at = running[i]; step = rng.randint(3, 9)
                    if at < len(text): send("thought", {"index": i, "sample": 0, "text": text[at:at + step]}); running[i] += step; continue
                    del running[i]; done += 1; send("document", m)
                    for k in tok: tok[k] += m.get("tokens", {}).get(k, 0)
                    send("progress", {"documents_done": done, "documents": len(docs), "tokens": tok})
                time.sleep(0.03 * SLOW)
            send("result", final)
        except BrokenPipeError: pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8099), Handler).serve_forever()

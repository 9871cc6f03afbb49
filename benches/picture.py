"""Draws docs/performance.svg: throughputs of erank and other engines, and the machine's roofline limit.

    python3 benches/picture.py OURS.jsonl PEERS.jsonl > docs/performance.svg

OURS.jsonl holds the output of `forward` for the shape 0.6B, PEERS.jsonl that of the scripts in benches/peers.
"""

import json
import sys
from html import escape

# By the figure's name in PEERS.jsonl: its name in OURS.jsonl and its title.
FIGURES = {
    "prefill_512": ("prefill 512", "prefill, 512 tokens"),
    "decode_1": ("decode 1", "decode, 1 row"),
    "decode_8": ("decode 8", "decode, 8 rows"),
    "decode_32": ("decode 32", "decode, 32 rows"),
}
WIDTH, LABEL, BAR, GAP = 760, 150, 18, 34


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.startswith("{")]


def groups(ours, peers):
    """Yields each figure's title, its (engine, tokens/s) with the fastest last, and its limit."""
    for name, (our_name, title) in FIGURES.items():
        own = next(line for line in ours if line["name"] == our_name)
        best = {}
        for line in peers:
            if line["shape"] == "0.6B" and line["figure"] == name:
                best[line["engine"]] = max(line["value"], best.get(line["engine"], 0.0))
        bars = sorted([*best.items(), ("erank", own["value"])], key=lambda bar: bar[1])
        yield title, bars, own["limit"]


def main():
    ours, peers = (read(path) for path in sys.argv[1:3])
    body, y = [], 30
    for title, bars, limit in groups(ours, peers):
        scale = (WIDTH - LABEL - 90) / max(limit, bars[-1][1])
        body.append(f'<text x="10" y="{y}" font-weight="bold">{title}: tokens/s</text>')
        top = y + 8
        y = top
        for engine, value in bars:
            fill = "#1f4e79" if engine == "erank" else "#b0b7bf"
            length = value * scale
            body.append(f'<text x="{LABEL - 6}" y="{y + 13}" text-anchor="end">{escape(engine)}</text>')
            body.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{fill}"/>')
            body.append(f'<text x="{LABEL + length + 5:.1f}" y="{y + 13}">{value:.4g}</text>')
            y += BAR
        x = LABEL + limit * scale
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 3}" y2="{y}" stroke="#c00000" stroke-dasharray="4 3"/>')
        body.append(f'<text x="{x:.1f}" y="{y + 12}" text-anchor="middle" fill="#c00000">limit {limit:.4g}</text>')
        y += GAP + 12
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" fill="#fff"/>'
    )
    print("\n".join(body))
    print("</svg>")


main()

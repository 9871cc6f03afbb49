"""Draws throughputs of erank and other engines at the shape 0.6B.

    python3 benches/picture.py OURS.jsonl PEERS.jsonl > docs/performance.svg
    python3 benches/picture.py FORMATS.jsonl > docs/formats.svg

OURS.jsonl holds the output of `forward`, PEERS.jsonl that of the scripts in benches/peers, and FORMATS.jsonl that of
benches/formats.sh. The first picture shows the machine's roofline limit as well, the second each engine's formats of
weights.
"""

import json
import statistics
import sys
from html import escape

# By the figure's name in PEERS.jsonl: its name in OURS.jsonl and its title.
FIGURES = {
    "prefill_512": ("prefill 512", "prefill, 512 tokens"),
    "decode_1": ("decode 1", "decode, 1 row"),
    "decode_8": ("decode 8", "decode, 8 rows"),
    "decode_32": ("decode 32", "decode, 32 rows"),
}
# Names of weights as the engines write them, and as the picture shows them.
FORMATS = {"bf16": "BF16", "fp16": "16 bits", "q8_0": "Q8_0", "q4_k_m": "Q4_K_M"}
WIDTH, LABEL, BAR, GAP = 760, 190, 18, 34


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


def groups_of_formats(lines):
    """Yields each figure's title, its ("engine, format", tokens/s) by engine, and no limit."""
    names = {name: figure for figure, (name, _) in FIGURES.items()}
    values = {}
    for line in lines:
        figure = line.get("figure") or names.get(line["name"])
        if figure in FIGURES:
            # The files of benches/formats.sh are named gguf-FORMAT-SHAPE. OpenVINO's dtype also names its execution.
            format = line["file"].split("-")[1] if line.get("file") else (line.get("dtype") or line["weights"]).split()[0].lower()
            format = FORMATS.get(format, format)
            bar = f"{line.get('engine', 'erank')}, {format}"
            values.setdefault(figure, {}).setdefault(bar, []).append(line["value"])
    for figure, (_, title) in FIGURES.items():
        if figure in values:
            bars = [(bar, statistics.median(runs)) for bar, runs in values[figure].items()]
            yield title, sorted(bars, key=lambda bar: (bar[0].startswith("erank"), bar[0].split(",")[0])), None


def main():
    files = [read(path) for path in sys.argv[1:]]
    body, y = [], 30
    for title, bars, limit in groups(*files) if len(files) == 2 else groups_of_formats(*files):
        scale = (WIDTH - LABEL - 90) / max(limit or 0, *(value for _, value in bars))
        body.append(f'<text x="10" y="{y}" font-weight="bold">{title}: tokens/s</text>')
        top = y + 8
        y = top
        for engine, value in bars:
            fill = "#1f4e79" if engine.startswith("erank") else "#b0b7bf"
            length = value * scale
            body.append(f'<text x="{LABEL - 6}" y="{y + 13}" text-anchor="end">{escape(engine)}</text>')
            body.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{fill}"/>')
            body.append(f'<text x="{LABEL + length + 5:.1f}" y="{y + 13}">{value:.4g}</text>')
            y += BAR
        if limit:
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

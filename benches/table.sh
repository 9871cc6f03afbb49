#!/usr/bin/env bash
# Measures the figures of docs/performance.md and prints a line of JSON for each: prefill and decoding, the
# same with AVX2 forced, and the job. Measures the named shapes, or 0.6B and 4B without arguments.
#
# usage: benches/table.sh [0.6B] [4B] > FIGURES.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
bench() { cargo run --release --quiet --locked -p erank-benches --bin "$@"; }

[ $# -gt 0 ] || set -- 0.6B 4B
for shape in "$@"; do
    bench forward -- "$shape"
    if grep -qw avx2 /proc/cpuinfo; then
        ERANK_INSTRUCTION_SET=avx2 bench forward -- "$shape"
    else
        echo "skipped: this processor has no AVX2" >&2
    fi
    bench engine -- "$shape" job
done

#!/usr/bin/env bash
# The table of docs/performance.md, a line of JSON per figure: prefill and decoding, the same forced to
# AVX2, and the job, for both shapes or those that are named.
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
        echo "left out: this processor has no AVX2" >&2
    fi
    bench engine -- "$shape" job
done

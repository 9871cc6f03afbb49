#!/usr/bin/env bash
# Fuzzes targets, and prints the executions and the coverage of each:
#
#   fuzz/campaign.sh SECONDS [TARGET...]
#
# SECONDS is the time of each target; the default are all targets. It needs a nightly toolchain and cargo-fuzz
# (cargo install --locked cargo-fuzz). The corpus grows in fuzz/corpus, and an input that fails is in fuzz/artifacts.
# Copy such an input to fuzz/failures/TARGET once it is mended; a test runs it from then on.
set -euo pipefail
cd "$(dirname "$0")"

seconds="${1:?the seconds of each target}"
shift
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | grep -v erank-fuzz)
fi

# AddressSanitizer checks each access to memory. Stacks of allocations and the checks for uses of a stack after return
# and for leaks (-detect_leaks) are off: server_reply then runs 1.5 times as often.
export ASAN_OPTIONS="${ASAN_OPTIONS:-malloc_context_size=0:detect_stack_use_after_return=0}"

cargo +nightly fuzz build --fuzz-dir .
failed=()
printf '%-16s %12s %9s %9s %7s\n' target executions edges features inputs
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target" logs
    # A step of a model takes as long as its threads, so the limit of a run is generous.
    if ! cargo +nightly fuzz run --fuzz-dir . "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=16384 \
        -dict="dictionaries/$target.dict" -detect_leaks=0 -print_final_stats=1 >"logs/$target.txt" 2>&1; then
        failed+=("$target")
    fi
    executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "logs/$target.txt")"
    last="$(grep -E '^#[0-9]+.* cov: ' "logs/$target.txt" | tail -1 || true)"
    field() { sed -n "s/.* $1: \([0-9]*\).*/\1/p" <<<"$last"; }
    printf '%-16s %12s %9s %9s %7s\n' "$target" "${executions:-?}" "$(field cov)" "$(field ft)" "$(field corp)"
done
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s (see logs and artifacts)\n' "${failed[*]}"
    exit 1
fi

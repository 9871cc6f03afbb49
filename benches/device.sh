#!/usr/bin/env bash
# Proves or disproves the GPU path on one NVIDIA GPU, and measures its speed:
#
#   benches/device.sh build      builds the program, which needs cargo, a network and no GPU; .ci/cuda says how
#   benches/device.sh [SHAPE…]   runs it, which needs a GPU, its driver and CUDA's libraries, and no cargo or network
#   benches/device.sh cpu [SHAPE…]   runs the same operations on the CPU
#
# Without a SHAPE (0.6B or 4B), both are measured on a GPU, and none on the CPU. `build` leaves the program in
# target/device. Copy the repository with this file to the machine that has the GPU. The random weights of the shapes take
# 1.2 and 8 GB below $TMPDIR. device.rs lists the checks and figures; each is a line of JSON, and the last line is the
# verdict. The exit status is 0 only if all checks passed.
set -euo pipefail
cd "$(dirname "$0")/.."
program=target/device

case "${1:-}" in
    build)
        .ci/cuda setup
        .ci/cuda cargo build --release --locked -p erank-benches --bin device --features cuda
        strip -o "$program" target/cuda/release/device
        ls -l "$program"
        exit
        ;;
    cpu)
        exec cargo run --release --quiet --locked -p erank-benches --bin device -- cpu-candle "${@:2}"
        ;;
esac

[ -x "$program" ] || { echo "$program is missing; run benches/device.sh build on a machine with cargo" >&2; exit 2; }
if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    echo "there is no NVIDIA driver: the system has no libcuda.so.1" >&2
    exit 2
fi
# The CUDA libraries of the system, and those of Python packages such as PyTorch's.
folders="$(find /usr/local/cuda*/lib64 /usr/local/lib /usr/lib/python3* /opt "$HOME" target/cuda/toolkit -maxdepth 8 \
    \( -name 'libcublas.so.1[23]' -o -name 'libcurand.so.10' -o -name 'libnvrtc.so.1[23]' \) 2>/dev/null |
    xargs -r -n 1 dirname | sort -u | paste -sd :)" || true
export LD_LIBRARY_PATH="$folders:${LD_LIBRARY_PATH:-}"
missing="$(ldd "$program" | grep 'not found' || true)"
[ -z "$missing" ] || { printf 'libraries of CUDA 13 are missing:\n%s\n' "$missing" >&2; exit 2; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
if [ $# -eq 0 ]; then
    set -- 0.6B 4B
fi
exec "$program" cuda "$@"

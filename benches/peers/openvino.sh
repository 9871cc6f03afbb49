#!/usr/bin/env bash
# usage: [PEERS_WEIGHTS=fp16|int8|int4] openvino.sh 0.6B|4B [FIGURE…]
source "$(dirname "$0")/common.sh"
environment openvino
ready
checkpoint
format=${PEERS_WEIGHTS:-fp16}
model=$made/openvino-$format-$shape
if [ ! -e "$model/openvino_model.bin" ]; then
    HF_HUB_OFFLINE=1 "$venv/bin/optimum-cli" export openvino --model "$weights" \
        --task text-generation-with-past --weight-format "$format" --disable-convert-tokenizer "$model" >&2
fi
exec "$venv/bin/python" "$here/openvino_cpu.py" "$model" "$@"

#!/usr/bin/env bash
# Measures formats of weights in turns: erank and llama.cpp on the same GGUF files, and OpenVINO with the format of
# about as many bits. Prints the lines of JSON of `forward` and of the engines' scripts (see peers/README.md).
#
# usage: benches/formats.sh 0.6B|4B [ROUNDS] > FIGURES.jsonl
#
# FORMATS selects some of `bf16 q8_0 q4_k_m`, FIGURES some of `prefill_512 decode_1 decode_8 decode_32`.
set -euo pipefail
cd "$(dirname "$0")/.."
shape=${1:?usage: $0 0.6B|4B [ROUNDS]}
rounds=${2:-3}
read -ra figures <<< "${FIGURES:-prefill_512 decode_1 decode_8}"
made=${PEERS_FOLDER:-benches/peers/made}
export PEERS_FOLDER=$made
declare -A openvino=([bf16]=fp16 [q8_0]=int8 [q4_k_m]=int4)
# The figures' names in `forward`.
ours=("${figures[@]/prefill_512/prefill}")
ours=("${ours[@]/_/-}")

for round in $(seq "$rounds"); do
    for format in ${FORMATS:-bf16 q8_0 q4_k_m}; do
        echo "round $round, $format" >&2
        PEERS_WEIGHTS=$format benches/peers/llama_cpp.sh "$shape" "${figures[@]}"
        cargo run --release --quiet --locked -p erank-benches --bin forward -- \
            "$shape" "file=$made/gguf-$format-$shape.gguf" "${ours[@]}"
        PEERS_WEIGHTS=${openvino[$format]} benches/peers/openvino.sh "$shape" "${figures[@]}"
    done
done

#!/usr/bin/env bash
# usage: candle.sh 0.6B|4B [FIGURE…]     PEERS_DTYPE=bf16 for BF16; F32, the default, is much faster
source "$(dirname "$0")/common.sh"
if [ ! -e "$weights/model.safetensors" ]; then
    environment transformers
    ready
    checkpoint
fi
export RAYON_NUM_THREADS=2 RUSTFLAGS="-C target-cpu=native" CARGO_TARGET_DIR=$made/target
cargo build --release --manifest-path "$here/candle/Cargo.toml" >&2
exec "$made/target/release/erank-peer-candle" "${PEERS_DTYPE:-f32}" "$weights" "$@"

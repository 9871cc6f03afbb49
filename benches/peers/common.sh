# Code that the engines' scripts share. Sourced with $1 = 0.6B or 4B and the figures after it; see README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
shape=${1:?usage: $0 0.6B|4B [FIGURE…]}
shift
made=${PEERS_FOLDER:-$here/made}
weights=$made/qwen3-$shape
python=${PYTHON:-python3.12}
# Older OpenBLAS builds need these on some processors, but they slow current ones.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
mkdir -p "$made"

# Creates the virtual environment `$1` with the requirements in $1.txt, unless it is ready.
environment() {
    venv=$made/venv-$1
    [ -e "$venv/ready" ] && return
    "$python" -m venv "$venv"
    "$venv/bin/pip" install -r "$here/$1.txt" >&2
}

ready() { touch "$venv/ready"; }

# Writes the checkpoint, unless it exists. Needs an environment that has numpy.
checkpoint() {
    [ -e "$weights/model.safetensors" ] || "$venv/bin/python" "$here/weights.py" "$shape" "$weights"
}

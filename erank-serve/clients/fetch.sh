#!/usr/bin/env bash
# Installs the published clients that run.sh checks the service with, each in pinned versions, into folders below
# tests/.cache/clients. Each Python client has a virtual environment of its own, because their requirements
# conflict. Does nothing for a client that is already installed.
#
#   erank-serve/clients/fetch.sh [NAME]...
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="$(cd "$here/../.." && pwd)/tests/.cache/clients"

packages() {
    case "$1" in
        cohere) echo "cohere==7.3.1" ;;
        langchain-cohere) echo "langchain-cohere==0.6.0" ;;
        langchain-jina) echo "langchain-community==0.4.2" ;;
        llamaindex-cohere) echo "llama-index-postprocessor-cohere-rerank==0.10.0" ;;
        llamaindex-jina)
            echo "llama-index-postprocessor-jinaai-rerank==0.6.0 llama-index-postprocessor-tei-rerank==0.6.0"
            ;;
        haystack) echo "cohere-haystack==11.0.0 jina-haystack==2.0.1" ;;
        litellm) echo "litellm==1.110.2" ;;
        huggingface) echo "huggingface_hub==2.4.0" ;;
        openwebui) echo "requests==2.34.2" ;;
        schemathesis) echo "schemathesis==4.32.5" ;;
        *) echo "unknown client $1" >&2; exit 2 ;;
    esac
}

install_python() {
    local folder="$cache/$1" wanted
    wanted="$(packages "$1")"
    if [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python3 -m venv --clear "$folder"
    # shellcheck disable=SC2086
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: $wanted
    echo "$wanted" >"$folder/installed"
    echo "$1 is in $folder"
}

install_node() {
    local folder="$cache/node"
    local wanted="cohere-ai@8.1.0 @langchain/cohere@1.0.5"
    if [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    mkdir -p "$folder"
    # shellcheck disable=SC2086
    npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts $wanted
    echo "$wanted" >"$folder/installed"
    echo "node is in $folder"
}

if [ $# -eq 0 ]; then
    set -- cohere langchain-cohere langchain-jina llamaindex-cohere llamaindex-jina haystack litellm huggingface \
        openwebui schemathesis node
fi
for name; do
    case "$name" in
        node) install_node ;;
        *) install_python "$name" ;;
    esac
done

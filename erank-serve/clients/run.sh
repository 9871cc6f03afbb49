#!/usr/bin/env bash
# Runs the script of every client against a service with the bundled model, and prints a table. A client that fetch.sh
# has not installed is a failure.
#
#   erank-serve/clients/run.sh http://127.0.0.1:8080
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="$here/../../tests/.cache/clients"
if [ $# -ne 1 ]; then
    echo "usage: $0 URL" >&2
    exit 2
fi
failed=0
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT

run() {
    local name="$1" program="$2" script="$3" output
    if ! [ -x "$program" ] && ! command -v "$program" >/dev/null; then
        echo "| $name | MISSING: fetch.sh installs it |"
        failed=1
    elif output="$("$program" "$here/$script" "$url" 2>"$errors")"; then
        while read -r line; do echo "| $name | $line |"; done <<<"$output"
    else
        echo "| $name | FAILED |"
        tail -n 20 "$errors" >&2
        failed=1
    fi
}

url="$1"
echo "| script | outcome |"
echo "|---|---|"
for name in cohere langchain-cohere langchain-jina llamaindex-cohere llamaindex-jina haystack litellm huggingface openwebui; do
    script="${name//-/_}_client.py"
    run "$script" "$cache/$name/bin/python" "$script"
done
run cohere_client.mjs node cohere_client.mjs
exit $failed

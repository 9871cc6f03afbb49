#!/usr/bin/env bash
# Starts the service and tests its page in a browser:
#
#   erank-serve/page/test.sh ERANK [TEST]
#
# ERANK is a command `erank` with the feature `serve`. fetch_chromium.sh installs the browser and its driver.
set -euo pipefail
erank="${1:?a command erank with the feature serve}"
output="$(mktemp)"
"$erank" serve --listen 127.0.0.1:0 --log error >"$output" &
service=$!
trap 'kill "$service"; rm -f "$output"' EXIT

url=""
until [ -n "$url" ]; do
    kill -0 "$service"
    sleep 0.1
    url="$(sed -n 's/^erank listens on //p' "$output")"
done
node "$(dirname "$0")/test_page.mjs" "$url" "${@:2}"

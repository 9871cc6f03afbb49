#!/usr/bin/env bash
# Installs what test_page.mjs needs: Chromium from the distribution (unless a Chromium or Chrome is there), and
# playwright-core and axe-core in tests/.cache/page. Does nothing if all of it is already installed.
set -euo pipefail
folder="$(cd "$(dirname "$0")/../.." && pwd)/tests/.cache/page"

fail() {
    echo "the page's tests cannot run: $1" >&2
    exit 1
}

has_browser() {
    [ -n "${CHROMIUM:-}" ] || command -v chromium chromium-browser google-chrome >/dev/null
}

command -v node >/dev/null && command -v npm >/dev/null || fail "install node 20 or later, and npm"
if ! has_browser; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "install Chromium, or name it in CHROMIUM"
    (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium) >/dev/null \
        || fail "apt-get cannot install chromium"
    has_browser || fail "the package chromium has no program chromium"
fi
if ! [ -d "$folder/node_modules/playwright-core" ] || ! [ -d "$folder/node_modules/axe-core" ]; then
    mkdir -p "$folder"
    npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix "$folder" \
        playwright-core@1.65.1 axe-core@4.14.1 || fail "npm cannot install playwright-core and axe-core"
    echo "the tools of the page's tests are in $folder"
fi

#!/usr/bin/env bash
# Checks the service against its description with schemathesis: all checks, with valid and invalid requests.
#
#   erank serve --listen 127.0.0.1:8080 --timeout 1
#   erank-serve/clients/schemathesis.sh http://127.0.0.1:8080 [MAX_EXAMPLES]
#
# The short time limit of the service ends long thoughts. The run leaves out two values of fields, because JSON Schema
# cannot describe when they are errors: `unscored: "error"`, and several samples at the temperature 0.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
schemathesis="$here/../../tests/.cache/clients/schemathesis/bin/st"
if [ $# -lt 1 ]; then
    echo "usage: $0 URL [MAX_EXAMPLES]" >&2
    exit 2
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
curl -fsS "$1/openapi.json" | python3 -c '
import json, sys
description = json.load(sys.stdin)
for name in ("RerankRequest", "TeiRequest"):
    fields = description["components"]["schemas"][name]["properties"]
    fields["unscored"]["enum"].remove("error")
    del fields["samples"]
json.dump(description, sys.stdout)' >"$folder/openapi.json"
cd "$folder"
"$schemathesis" run openapi.json --url "$1" --checks all --phases coverage,fuzzing --mode all \
    --max-examples "${2:-1000}" --continue-on-failure --no-color

#!/usr/bin/env bash
# dvc 3.67.1: `dvc update` of a file that `dvc import-url` brought from an HTTP server which answers
# but has the file no more (404 for a while, as during a deployment).
# Expected: the update fails and leaves the file that is here alone.
# Seen: the update fails, and the file is gone from the workspace.
# Exits with 1 if that is no longer so.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    dvc==3.67.1 dvc-http==2.32.0 pyparsing==3.2.5
export DVC_NO_ANALYTICS=1 PATH="$folder/venv/bin:$PATH"
mkdir "$folder/source" "$folder/repository"
echo "text,label" >"$folder/source/table.csv"

python3 - "$folder/source" >"$folder/port" 2>/dev/null <<'PYTHON' &
import functools
import http.server
import sys

handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
PYTHON
server=$!
until [ -s "$folder/port" ]; do sleep 0.1; done

cd "$folder/repository"
git init -q
dvc init -q
dvc import-url -q "http://127.0.0.1:$(cat "$folder/port")/table.csv" table.csv
[ -f table.csv ] && echo "imported: $(cat table.csv)"
mv "$folder/source/table.csv" "$folder/source/elsewhere.csv"
if dvc update -q table.csv.dvc 2>"$folder/error"; then result="succeeds"; else result="fails"; fi
here=$([ -f table.csv ] && echo "here" || echo "gone")
echo "dvc $(dvc --version): the update $result, the file is $here"
if [ "$result $here" = "fails gone" ]; then echo "as found"; else echo "CHANGED"; exit 1; fi

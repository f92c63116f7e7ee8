#!/usr/bin/env bash
# Makes .venv with what constraints.txt locks. scripts/install.sh [EXTRA,...]; again: does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed, $python is $("$python" -V); set PYTHON=..." >&2
    exit 2
}
wanted=$(cat pyproject.toml constraints.txt - <<<"$extras" | sha256sum)
stamp=.venv/.installed
# a venv with more extras has all that fewer need
if [ -f "$stamp" ] && { [ "$(cat "$stamp")" = "$wanted" ] || [ -z "$extras" ]; }; then
    [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ] && exit 0
fi
echo "installing into .venv: some minutes, about 6 GB" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
printf '%s' "$wanted" >"$stamp"

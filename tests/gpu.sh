#!/usr/bin/env bash
# Everything that only a GPU can show, within nine minutes: tests/gpu.sh FOLDER (docs/gpu.md).
# Works from a checkout of any name that is not installed: a link named rawgrad stands in for that.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
ln -s "$root" "$links/rawgrad"
unset RAWGRAD_BACKEND RAWGRAD_DEBUG
export PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python3}" -m rawgrad.bench.gpu "$@"

#!/usr/bin/env bash
# Everything that must pass: lint, format, types, all tests, slow ones included.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev,postgres,slurm,ray,onnx,dashboard
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest -m "slow or not slow" "$@"

#!/usr/bin/env bash
# From a fresh clone to a finished study on drawn faces: install, draw, prepare, search, evaluate,
# compare, report. No download of data or weights, no GPU, no server. Run again, it continues.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh
study=.venv/bin/deepfake-study
config=configs/sample.yaml

[ -f data/sample/Train_poly.json ] || "$study" sample data/sample --photos 200
"$study" prepare "$config"
"$study" run "$config" --workers 2
"$study" evaluate "$config" --seeds 3 --workers 2
"$study" compare "$config"
report=$("$study" report "$config")

echo
echo "The report:     $report"
echo "The MLflow UI:  $study ui $config"

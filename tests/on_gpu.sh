#!/usr/bin/env bash
# Measures and checks the code on a GPU, in under eight minutes, the parts of most worth first.
# Writes figures/gpu.json, or $OUT/gpu.json. Needs no installation of the project, and no network.
# A rehearsal without a GPU: OUT=/tmp/gpu tests/on_gpu.sh --device cpu --tiny
set -euo pipefail
out=${OUT:-}
out=${out:+$(mkdir -p "$out" && cd "$out" && pwd)}
cd "$(dirname "$0")/.."
export PYTHONPATH=.:chapters HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" -m lab.tools.gpu --apart ${out:+--out "$out"} "$@"

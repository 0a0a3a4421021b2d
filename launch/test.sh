#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest: bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

install "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One thread per process: with more, small tensors spend their time in OpenMP's barriers.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest "$@"

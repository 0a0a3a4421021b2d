#!/usr/bin/env bash
# The main job on the bundled digits: teacher, search of both roles' schedules, students, evaluation.
# Arguments go to `rolekd run`: bash launch/quickstart.sh --name first --seed 1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

install
exec .venv/bin/rolekd run "$@"

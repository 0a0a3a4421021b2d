#!/usr/bin/env bash
# Goes on with a search that was stopped, lost its head, or shall run for longer; on the same cluster or another:
#
#   STORAGE=s3://bucket/runs bash launch/resume.sh NAME [--epochs 400]
#
# Options go to `rolekd resume`.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?"expected the name of a run: bash launch/resume.sh NAME [options of rolekd resume]"}
shift
source launch/cluster.sh
require_shared_storage

job "$name" rolekd resume "$STORAGE/$name" "$@"

#!/usr/bin/env bash
# Fetches the best schedule of a run, finished or not:
#
#   STORAGE=s3://bucket/runs bash launch/export_best.sh NAME best.yaml [--format torchvision]
#
# Options go to `rolekd export`.
set -euo pipefail
cd "$(dirname "$0")/.."
usage="bash launch/export_best.sh NAME FILE [options of rolekd export]"
name=${1:?"expected the name of a run: $usage"}
file=${2:?"expected the file to write: $usage"}
shift 2
source launch/cluster.sh
require_shared_storage

there="rolekd/exported-$name"
on_head "rolekd export $(quoted "$STORAGE/$name" "$@") --output $(quoted "$there")"
# shellcheck disable=SC2088 # the head's home, not the one here
ray rsync-down "$cluster" "~/$there" "$file"
echo "wrote $file" >&2

#!/usr/bin/env bash
# Starts a search on the cluster and follows it:
#
#   STORAGE=s3://bucket/runs bash launch/submit_search.sh NAME -c cifar10_reduced --seed 1
#
# Options go to `rolekd search`; those that name a file here take it along. Before the search, `rolekd doctor` waits until
# NODES nodes have joined (default: 1, the head) and checks them all; it stops here if something is wrong.
# Ctrl-C or a lost connection ends the following, not the search.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?"expected a name for the run: bash launch/submit_search.sh NAME [options of rolekd search]"}
shift
source launch/cluster.sh
require_shared_storage

options=()
for option in "$@"; do
    if [ -f "$option" ]; then
        # shellcheck disable=SC2088 # the head's home, not the one here
        ray rsync-up "$cluster" "$option" "~/rolekd/$(basename "$option")"
        option="rolekd/$(basename "$option")"
    fi
    options+=("$option")
done

job "doctor-$name" rolekd doctor --cluster --nodes "${NODES:-1}" --storage "$STORAGE"
job "$name" rolekd search --name "$name" --storage "$STORAGE" "${options[@]}"

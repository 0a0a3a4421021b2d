# shellcheck shell=bash
# Sourced by the scripts for clusters, in the repository. CLUSTER names the file that describes the cluster; the default
# is cluster.yaml (AWS), and launch/clusters/ holds more. STORAGE names the place of runs that all nodes share.
source launch/environment.sh
install "" # nothing but the project

export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token
cluster=${CLUSTER:-cluster.yaml}

on_head() { # a command: runs it on the head, shows what it prints
    ray exec "$cluster" "$1"
}

job() { # a name, then a command: runs it on the head as a Ray job, which lives on when this terminal closes
    local id
    id="$1-$(date +%Y%m%d-%H%M%S)"
    shift
    # Submitted on the head itself, for the dashboard listens there alone
    on_head "ray job submit --address http://127.0.0.1:8265 --submission-id $(quoted "$id") \
        -- bash -c $(quoted "cd && exec $(quoted "$@")")"
}

quoted() { printf '%q ' "$@"; }

require_shared_storage() {
    case ${STORAGE:-} in
        /* | *://*) ;;
        *)
            echo "error: STORAGE: got '${STORAGE:-}'; expected an absolute folder or s3://… that all nodes share" >&2
            exit 2
            ;;
    esac
}

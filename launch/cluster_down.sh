#!/usr/bin/env bash
# Ends a cluster and its costs. Runs stay where STORAGE is; a search under way can be resumed on another cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cluster.sh

ray down -y "$cluster"

# Machines of your own are not ended by `ray down`, and it leaves Ray running on the workers: stop it by way of the head,
# the one machine that surely reaches them, with the key that Ray left there.
.venv/bin/python - "$cluster" << 'END' | while read -r user key head workers; do
import sys, yaml
settings = yaml.safe_load(open(sys.argv[1]))
provider, auth = settings["provider"], settings["auth"]
if provider["type"] == "local":
    print(auth["ssh_user"], auth["ssh_private_key"], provider["head_ip"], *provider["worker_ips"])
END
    options="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10"
    stop="bash -ic 'ray stop --force' 2> /dev/null"
    for worker in $workers; do
        # shellcheck disable=SC2086,SC2029 # options are several words; the inner command is meant to be put in here
        ssh -n -i "${key/#\~/$HOME}" $options "$user@$head" \
            "ssh -n -i ~/ray_bootstrap_key.pem $options $user@$worker \"$stop\"" ||
            echo "warning: $worker cannot be reached; if it lives, run there: ray stop --force" >&2
    done
done

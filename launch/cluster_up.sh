#!/usr/bin/env bash
# Starts a cluster, or brings a running one up to date:
#
#   bash launch/cluster_up.sh                                        cluster.yaml, on AWS
#   CLUSTER=launch/clusters/onprem.yaml bash launch/cluster_up.sh    machines of your own
#   bash launch/cluster_up.sh --no-restart                           new code, but Ray and what runs on it live on
#
# Options go to `ray up`. Without --no-restart a running search is stopped; launch/resume.sh goes on with it.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cluster.sh

# Whoever has the token can run programs on the cluster. Made once; Ray ships the file and its mode to every node.
(umask 077 && ray get-auth-token --generate > /dev/null)
chmod 600 ~/.ray/auth_token

# What Ray talks to the provider with
case $(sed -n 's/^  type: *\([a-z]*\).*/\1/p' "$cluster") in
    aws) .venv/bin/python -m pip install --quiet boto3 ;;
    gcp) .venv/bin/python -m pip install --quiet google-api-python-client google-auth cryptography ;;
esac

# The cached answers of the provider outlive changes of account and network
ray up -y --no-config-cache "$cluster" "$@"
echo "up. Workers join within minutes; see: ray exec $cluster 'ray status'" >&2

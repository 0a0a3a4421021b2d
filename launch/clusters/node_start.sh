#!/usr/bin/env bash
# Starts Ray on a node, in place of what runs there. Options go to `ray start`. Tried three times: Ray gives a busy machine
# 30 seconds and no more, and its autoscaler never comes back to a machine of one's own on which that failed once.
set -uo pipefail

ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # every worker process holds a few dozen files and sockets
for _ in 1 2 3; do
    ray stop
    if ray start "$@"; then exit; fi
done
exit 1

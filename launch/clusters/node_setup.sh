#!/usr/bin/env bash
# Makes a node of a cluster ready: the project in ~/rolekd/.venv, with the versions of constraints.txt, so that all
# nodes have the same Ray and torch; Ray's token readable by its owner alone; token authentication on in every shell.
# Runs on the nodes, again whenever one is started, repaired or brought up to date: a second run changes nothing.
# PYTHON chooses the interpreter; its minor version must be the same on all nodes.
set -euo pipefail
cd "$(dirname "$0")/../.."

chmod 600 ~/.ray/auth_token

cat > environment <<END
export PATH="$PWD/.venv/bin:\$PATH"
export RAY_AUTH_MODE=token
END
line="source $PWD/environment"
touch ~/.bashrc
grep -qxF "$line" ~/.bashrc || echo "$line" >> ~/.bashrc # Ray runs every command in a shell that reads it

# A copy, not an editable install: code that is brought up to date during a search must not change under it.
wanted=$(find rolekd_ray searchspaces pyproject.toml constraints.txt -type f -not -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)
if [ "$(cat .venv/installed 2> /dev/null)" = "$wanted" ]; then exit; fi
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
echo "$wanted" > .venv/installed

# shellcheck shell=bash
# Sourced by the other scripts. Makes .venv in the repository and installs the project there, once per change of
# pyproject.toml. PYTHON chooses the interpreter; it must be 3.11 or later.

install() { # extras such as "[test]", or nothing
    local python=${PYTHON:-python3} stamp=".venv/installed${1:-}"
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: $python is $("$python" --version 2>&1); expected Python 3.11 or later, see PYTHON=…" >&2
            exit 2
        }
        "$python" -m venv .venv
    fi
    if [ "$stamp" -nt pyproject.toml ]; then return; fi
    echo "installing into .venv: torch alone is 5 GB, so this takes minutes the first time" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:-}"
    touch "$stamp"
}

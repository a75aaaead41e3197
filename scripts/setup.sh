#!/usr/bin/env bash
# Makes the virtual environment and installs the project with everything that its tests need.
# usage: scripts/setup.sh [VENV]      PYTHON=python3.12 scripts/setup.sh     to choose the interpreter
# An interrupted run can be started again: the stamp is written last.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
export PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$PYTHON" --version 2>&1) is too old; Python 3.11 or later is needed (PYTHON=python3.12 make setup)" >&2
    exit 1
fi
scripts/debian-packages.sh
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null || "$PYTHON" -m venv --clear "$venv"

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
echo "Python packages: installing into $venv (a few GB with PyTorch; some minutes the first time)"
"${pip[@]}" install --quiet --upgrade 'pip>=24'
"${pip[@]}" install --quiet --constraint constraints.txt --editable '.[dev]'
# The official evaluator is compared with ours in a test. Its package lists services that the evaluator never imports.
"${pip[@]}" install --quiet --no-deps --constraint constraints.txt SoccerNet
scripts/triton.sh "$venv"
date -u +%FT%TZ >"$venv/.installed"
echo "Python packages: ready"

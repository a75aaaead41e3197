#!/usr/bin/env bash
# Installs the Debian packages this project needs, and only those that are missing. Says what it does.
# Needed: python3-venv (Debian splits `venv` from Python). Video decoding needs none: PyAV's wheel carries FFmpeg.
set -euo pipefail

if "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "Debian packages: nothing to install"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "error: Python has no venv module and this is not Debian; install Python 3.11 or later with venv" >&2
    exit 1
fi
run() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
echo "Debian packages: installing python3-venv"
run apt-get update -q
run apt-get install -y -q --no-install-recommends python3-venv

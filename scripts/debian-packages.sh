#!/usr/bin/env bash
# Installs the Debian packages this project needs, and only those that are missing. Says what it does.
# Without python3-venv nothing works (Debian splits `venv` from Python); without the others some tests and demos cannot run,
# and they say so. Video decoding needs none: PyAV's wheel carries FFmpeg.
set -euo pipefail

# One line for each: package, then the command that shows that it is there.
PACKAGES=(
    "prometheus promtool"  # rules, their tests, and what scrapes in tests and in `make monitoring-demo`
    "chromium chromium"  # the pages as people see them
    "srt-tools srt-live-transmit"  # cameras over SRT, which the FFmpeg in PyAV's wheels lacks
    "chromium-driver chromedriver"  # and as tests press their buttons
)

packages=()
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
for line in "${PACKAGES[@]}"; do
    read -r package command <<<"$line"
    command -v "$command" >/dev/null || packages+=("$package")
done
# Triton's models load Python as a library, which Debian's interpreter comes without.
library=$("${PYTHON:-python3}" -c 'import sys; print(f"libpython3.{sys.version_info.minor}" if sys.base_prefix == "/usr" else "")')
[ -z "$library" ] || ldconfig -p | grep -q "$library.so" || packages+=("$library")
if [ ${#packages[@]} -eq 0 ]; then
    echo "Debian packages: nothing to install"
    exit 0
fi
run() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
if ! command -v apt-get >/dev/null; then
    echo "This is not Debian; missing here: ${packages[*]}" >&2
    [[ " ${packages[*]} " != *" python3-venv "* ]] && exit 0
    echo "error: Python has no venv module; install Python 3.11 or later with venv" >&2
    exit 1
fi
echo "Debian packages: installing ${packages[*]}"
if [[ " ${packages[*]} " == *" prometheus "* ]]; then
    # The package would start a server of its own, now and at each boot: a masked unit never starts.
    run mkdir -p /etc/systemd/system
    run ln -sf /dev/null /etc/systemd/system/prometheus.service
fi
if ! { run apt-get update -q && run apt-get install -y -q --no-install-recommends "${packages[@]}"; }; then
    [[ " ${packages[*]} " == *" python3-venv "* ]] && exit 1
    echo "Debian packages: could not install ${packages[*]}; what needs them will say so" >&2
fi

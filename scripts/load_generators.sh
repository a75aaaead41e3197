#!/usr/bin/env bash
# Installs the load generators of benchmarks/load_generators.py, which nothing else needs; `make` never runs this.
# usage: scripts/load_generators.sh [VENV]      again: does nothing
#
#     h2load         Debian's nghttp2-client; asks for root (sudo)
#     perf_analyzer  from NVIDIA's wheel, into VENV/load_generators (21 MB). Linux x86-64
set -euo pipefail
cd "$(dirname "$0")/.."

tritonclient=2.51.0  # holds perf_analyzer (2.73 does not), and is of the Triton that scripts/triton.sh installs
cuda_runtime=12.3.101  # perf_analyzer is linked against it; no GPU is needed

venv=${1:-.venv}
target=$venv/load_generators

packages=()
command -v h2load >/dev/null || packages+=(nghttp2-client)
ldconfig -p | grep -q 'libb64\.so\.0d' || packages+=(libb64-0d)  # for perf_analyzer
if [ ${#packages[@]} -gt 0 ]; then
    run() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
    echo "Debian packages: installing ${packages[*]}"
    run apt-get update -q
    run apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

pins="tritonclient==$tritonclient nvidia-cuda-runtime-cu12==$cuda_runtime"
if [ "$(cat "$target/installed" 2>/dev/null)" != "$pins" ]; then
    echo "perf_analyzer: installing into $target"
    rm -rf "$target".tmp.*
    work=$target.tmp.$$
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086  # two packages
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile \
        --platform manylinux1_x86_64 --only-binary :all: --target "$work/wheels" $pins
    mkdir -p "$work/bin" "$work/lib"
    mv "$work/wheels/bin/perf_analyzer" "$work/bin/"
    mv "$work"/wheels/nvidia/cuda_runtime/lib/libcudart.so.* "$work/lib/"
    for licence in "$work"/wheels/*.dist-info; do mv "$licence" "$work/"; done
    rm -rf "$work/wheels"
    LD_LIBRARY_PATH=$work/lib "$work/bin/perf_analyzer" --version >/dev/null
    echo "$pins" >"$work/installed"
    rm -rf "$target"
    mv "$work" "$target"
fi
h2load --version
LD_LIBRARY_PATH=$target/lib "$target/bin/perf_analyzer" --version

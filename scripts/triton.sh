#!/usr/bin/env bash
# Installs the genuine Triton server for machines without containers: the tests and `python -m serving.local_triton` use it.
# usage: scripts/triton.sh [VENV]      installs into VENV/triton (280 MB); again: does nothing
#
#     server/  tritonserver with the python backend and ensembles, from NVIDIA's wheel; no TensorRT, no ONNX Runtime backend
#     env/     the interpreter of the models: numpy 1 and ONNX Runtime. With numpy 2 this version's outputs are garbage
#
# Where it cannot run or cannot be had, it says why and leaves nothing: the tests that need it are skipped, everything
# else works.
set -euo pipefail
cd "$(dirname "$0")/.."

pytriton=0.7.0   # holds Triton 2.51 (24.10)
numpy=1.26.4     # the last 1.x
# The embedded server's versions, so that answers can be compared.
mapfile -t others < <(grep -E '^(flatbuffers|onnxruntime|packaging|protobuf)==' constraints.txt)

venv=${1:-.venv}
target=$venv/triton
python=$venv/bin/python
skip() { echo "Triton: not installed ($1); its tests are skipped"; exit 0; }

read -r version machine libc library < <("$python" - <<'EOF'
import ctypes, os, platform, sys, sysconfig
name = sysconfig.get_config_var("INSTSONAME") or ""
if not name.endswith(".so.1.0"):  # Debian's interpreter does not say
    name = f"libpython3.{sys.version_info.minor}.so.1.0"
folders = [sysconfig.get_config_var("LIBDIR"), f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64"]
found = [folder for folder in folders if folder and os.path.exists(os.path.join(folder, name))]
print(f"{sys.version_info.major}.{sys.version_info.minor}", f"{sys.platform}-{platform.machine()}",
      platform.libc_ver()[1] or "0", found[0] if found else "-")
EOF
)
case $version in 3.11 | 3.12) ;; *) skip "its models need Python 3.11 or 3.12 with numpy 1, this is $version" ;; esac
[ "$machine" = linux-x86_64 ] || skip "the wheel is for linux-x86_64, this is $machine"
[ "$(printf '%s\n' 2.35 "$libc" | sort -V | head -n 1)" = 2.35 ] || skip "the wheel needs glibc 2.35, this is $libc"
[ "$library" != - ] || skip "libpython$version.so.1.0 is missing; Debian: apt-get install libpython$version"

pins="pytriton==$pytriton numpy==$numpy ${others[*]} Python $version in $library"
if [ "$(cat "$target/installed" 2>/dev/null)" = "$pins" ]; then
    echo "Triton: ready"
    exit 0
fi

echo "Triton: installing into $target"
rm -rf "$target".tmp.*
work=$target.tmp.$$
trap 'rm -rf "$work"' EXIT
trap 'skip "pip failed, see above"' ERR
pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --no-deps --no-compile --target "$work/server" "nvidia-pytriton==$pytriton"
"$python" -m venv --without-pip "$work/env"
"${pip[@]}" --python "$work/env/bin/python" install --quiet --no-deps --no-compile "numpy==$numpy" "${others[@]}"

triton=$work/server/pytriton/tritonserver
mv "$triton/python_backend_stubs/$version/triton_python_backend_stub" "$triton/backends/python/"
rm -rf "$triton/python_backend_stubs"
# What is left of pytriton is a Python package of its own that nobody here imports.
find "$work/server" -mindepth 1 -maxdepth 1 ! -name pytriton ! -name nvidia_pytriton.libs -exec rm -rf {} +
find "$work/server/pytriton" -mindepth 1 -maxdepth 1 ! -name tritonserver -exec rm -rf {} +
echo "$library" >"$work/libpython"
echo "$pins" >"$work/installed"
rm -rf "$target"
mv "$work" "$target"
echo "Triton: ready"

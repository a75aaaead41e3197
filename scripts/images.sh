#!/usr/bin/env bash
# Builds the images, and lists what is in each (CycloneDX) under build/images/.
# usage: scripts/images.sh [training] [export] [serving]      all three where none is named
#   ENGINE=podman|docker|buildah   the first of them that works where left out
#   TAG=0.1.0                      the version of pyproject.toml where left out
#   PYTHON_BASE= TENSORRT_BASE=    other bases than those of k8s/versions.env, such as a mirror's
#   LOCAL_BASE=1                   without a registry: on a Debian made here (scripts/local_base.sh), tagged TAG-local,
#                                  `export` without TensorRT
#   PIP_CERT= PIP_INDEX_URL=       for pip, as everywhere; neither gets into an image
#   BUILD_FLAGS="--network host"   further flags of `ENGINE build`
set -euo pipefail
cd "$(dirname "$0")/.."

engine_works() { command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1; }
[ -d /run/systemd/system ] || export CONTAINERS_CONF=${CONTAINERS_CONF:-$PWD/scripts/containers.conf}
if [ -z "${ENGINE:-}" ]; then
    for ENGINE in podman docker buildah ""; do engine_works "$ENGINE" && break; done
fi
if [ -z "$ENGINE" ]; then
    echo "error: neither podman nor docker nor buildah works here: apt-get install podman runc, or start Docker" >&2
    exit 1
fi

# What the caller sets is stronger than the file.
given_python=${PYTHON_BASE:-} given_tensorrt=${TENSORRT_BASE:-}
# shellcheck source=k8s/versions.env
. k8s/versions.env
PYTHON_BASE=${given_python:-$PYTHON_BASE} TENSORRT_BASE=${given_tensorrt:-$TENSORRT_BASE}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
tag=${TAG:-$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision+=-modified
if [ -n "${LOCAL_BASE:-}" ]; then
    PYTHON_BASE=localhost/vars-base:bookworm
    [ -n "$("$ENGINE" images --quiet "$PYTHON_BASE" 2>/dev/null)" ] || scripts/local_base.sh "$PYTHON_BASE" "$ENGINE"
    TENSORRT_BASE=$PYTHON_BASE TENSORRT_VERSION='' tag+=-local
fi
for base in "$PYTHON_BASE" "$TENSORRT_BASE"; do
    [[ $base == *@sha256:* || $base == localhost/* ]] || echo "warning: $base has no digest: it can change" >&2
done

flags=(--build-arg "PYTHON_BASE=$PYTHON_BASE" --build-arg "TENSORRT_BASE=$TENSORRT_BASE")
flags+=(--build-arg "TENSORRT_VERSION=$TENSORRT_VERSION")
flags+=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
[ "$ENGINE" = docker ] || flags+=(--format docker)  # OCI's own format has no health check
if [ -n "${PIP_CERT:-}${PIP_INDEX_URL:-}" ]; then
    pip_conf=$(mktemp)
    trap 'rm -f "$pip_conf"' EXIT
    printf '%s\n' '[global]' ${PIP_CERT:+'cert = /run/secrets/ca.crt'} ${PIP_INDEX_URL:+"index-url = $PIP_INDEX_URL"} >"$pip_conf"
    flags+=(--secret "id=pip.conf,src=$pip_conf")
    [ -z "${PIP_CERT:-}" ] || flags+=(--secret "id=ca.crt,src=$PIP_CERT")
fi
read -ra more <<<"${BUILD_FLAGS:-}"

mkdir -p build/images
[ $# -gt 0 ] || set -- training export serving
for target in "$@"; do
    image=vars-$target:$tag
    "$ENGINE" build "${flags[@]}" ${more[@]+"${more[@]}"} --target "$target" --tag "$image" .
    ENGINE=$ENGINE scripts/sbom.sh "$image" "build/images/vars-$target.cdx.json"
    echo "$image: $("$ENGINE" images --format '{{.Size}}' "$image"), revision $revision"
done

#!/usr/bin/env bash
# Makes an image to build on where no registry is within reach: Debian 12 with its Python 3.11, by debootstrap.
# usage: scripts/local_base.sh NAME [podman|docker]      as root; DEBIAN_MIRROR=http://... for a mirror
# It stands in for the pinned bases so that the Dockerfile can be tried; what is shipped is built on those.
set -euo pipefail

name=$1 engine=${2:-podman}
if ! command -v debootstrap >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "error: a local base needs root and debootstrap: apt-get install --no-install-recommends debootstrap" >&2
    exit 1
fi
root=$(mktemp -d -p /var/tmp vars-base.XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT

echo "local base: installing Debian into $name (about a minute)"
debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$root" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$root.log" || { tail -5 "$root.log" >&2; exit 1; }
rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
chmod 755 "$root"
tar -C "$root" -c . | "$engine" import - "$name" >/dev/null

#!/usr/bin/env bash
# Lists what an image contains, Debian and Python packages, as CycloneDX JSON.
# usage: scripts/sbom.sh IMAGE FILE      ENGINE=podman|docker|buildah; the tools are those of the extra `sbom`
# debsbom reads the package database, cyclonedx-py the metadata of the Python packages. Nothing of the image is run.
# Not listed: what neither of them installed, as the interpreter that the python images compile themselves.
set -euo pipefail

image=$1 file=$2 engine=${ENGINE:-podman}
repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$repository/.venv/bin
for tool in debsbom cyclonedx-py; do
    [ -x "$bin/$tool" ] || { echo "error: $tool is missing: make setup, or pip install 'vars-platform[sbom]'" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

files_of() {
    if [ "$engine" = buildah ]; then
        container=$(buildah from "$1")
        tar -C "$(buildah mount "$container")" -c .
    else
        container=$("$engine" create --no-healthcheck "$1")
        "$engine" export "$container"
    fi
    "$engine" rm "$container" >/dev/null
}
mkdir "$work/root"
files_of "$image" | tar -C "$work/root" -x --no-same-owner --wildcards --no-anchored \
    '*.dist-info/METADATA' '*.dist-info/RECORD' 'var/lib/dpkg/*' 'etc/os-release' 'usr/lib/os-release' 'usr/share/doc/*/copyright'

release() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" "$work/root/usr/lib/os-release"; }
"$bin/debsbom" generate --root "$work/root" --sbom-type cdx --with-licenses --distro-name "$(release NAME)" \
    --base-distro-vendor "$(release ID)" --out "$work/system.cdx.json"
# cyclonedx-py reads an environment: an empty one gets the image's metadata.
python3 -m venv --without-pip "$work/venv"
packages=$(echo "$work"/venv/lib/python3*/site-packages)
find "$work/root" -name '*.dist-info' -exec cp -r -t "$packages" {} +
"$bin/cyclonedx-py" environment "$work/venv" --pyproject "$repository/pyproject.toml" --output-file "$work/python.cdx.json"
name=${image##*/}
"$bin/debsbom" merge "$work/system.cdx.json" "$work/python.cdx.json" --sbom-type cdx --omit-roots \
    --distro-name "${name%%:*}" --distro-version "${name#*:}" --out "$work/merged.cdx.json"
mv "$work/merged.cdx.json" "$file"
echo "$file: $(grep -c '"purl": "pkg:deb/' "$file") Debian and $(grep -c '"purl": "pkg:pypi/' "$file") Python packages"

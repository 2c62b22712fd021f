#!/usr/bin/env bash
# Renew MapLibre GL from its npm package: bash kiln/explorer/web/page/vendor/renew.sh 6.12.0 (needs npm and the network).
# Taken are the module, its worker, what both share, the style sheet and the licence; the lines that name source maps,
# which are not taken, go. Every file must be below 1 MB; 6.12.0 is the last release found whose module is in parts.
set -euo pipefail
version=${1:?want a version of maplibre-gl, such as 6.12.0}
home=$(cd "$(dirname "$0")" && pwd)/maplibre
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "maplibre-gl@$version" >/dev/null && tar xzf maplibre-gl-*.tgz)
for name in maplibre-gl.mjs maplibre-gl-shared.mjs maplibre-gl-worker.mjs maplibre-gl.css; do
  sed '/^\/\/# sourceMappingURL=/d' "$work/package/dist/$name" >"$work/$name"
done
cp "$work/package/LICENSE.txt" "$work/LICENSE.txt"
for name in maplibre-gl.mjs maplibre-gl-shared.mjs maplibre-gl-worker.mjs maplibre-gl.css LICENSE.txt; do
  size=$(wc -c <"$work/$name")
  if [ "$size" -eq 0 ] || [ "$size" -ge 1000000 ]; then
    echo "maplibre-gl $version: $name has $size bytes; want a release whose files are below 1 MB" >&2
    exit 1
  fi
done
mkdir -p "$home"
for name in maplibre-gl.mjs maplibre-gl-shared.mjs maplibre-gl-worker.mjs maplibre-gl.css LICENSE.txt; do
  cp "$work/$name" "$home/$name"
done
echo "maplibre-gl $version is in $home"

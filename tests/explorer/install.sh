#!/usr/bin/env bash
# Install a browser and MapServer for the explorer's tests, as root on Debian. Otherwise report which one is missing.
set -euo pipefail
missing=()
[ -n "${KILN_BROWSER:-}" ] || command -v chromium chromium-browser google-chrome-stable google-chrome >/dev/null || missing+=(chromium)
[ -n "${KILN_MAPSERV:-}" ] || [ -x /usr/lib/cgi-bin/mapserv ] || missing+=(cgi-mapserver)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quiet=(-qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    apt-get "${quiet[@]}" update
    apt-get "${quiet[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
    exit 0
fi
cat >&2 <<END
The explorer's tests need ${missing[*]}. Only root can install packages. On Debian and Ubuntu, run:
    sudo apt-get install --no-install-recommends ${missing[*]}
Or set the paths of existing programs: KILN_BROWSER=/path/of/chromium, KILN_MAPSERV=/path/of/mapserv.
END
exit 1

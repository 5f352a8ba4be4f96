#!/usr/bin/env bash
# MuJoCo draws without a screen through EGL or OSMesa. If neither library is here: install one, or say how.
set -euo pipefail

packages=(libosmesa6 libegl1 libgl1-mesa-dri)

have() { ldconfig -p | grep -q "$1"; }

if [ "$(uname)" != Linux ] || have libOSMesa.so || { have libEGL.so.1 && have "libEGL_\(mesa\|nvidia\).so"; }; then
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    run=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    run=(sudo -n)
else
    run=(false)
fi
if command -v apt-get >/dev/null && [ "${run[*]}" != false ]; then
    echo "installing ${packages[*]} (to render the simulated cells)"
    "${run[@]}" apt-get update -qq && "${run[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null && exit 0
fi
echo "lineside: nothing to render with was found. To simulate frames, install EGL or OSMesa, on Debian and Ubuntu:" >&2
echo "    sudo apt-get install ${packages[*]}" >&2

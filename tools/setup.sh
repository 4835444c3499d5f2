#!/bin/bash
# Installs what is missing, and nothing that is there: Debian's packages by name, uv, the locked Python packages.
# Works with and without systemd; a package that would start its service while it is installed is kept from it.
set -euo pipefail
cd "$(dirname "$0")/.."

missing_packages() {
  while read -r package _; do
    case $package in '' | '#'*) continue ;; esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done <packages.apt
}

install_packages() {
  [ "$(id -u)" = 0 ] || { echo "These Debian packages are missing: $*. Install them, or run this as root." >&2; exit 1; }
  local guard=/usr/sbin/policy-rc.d made=no
  if [ ! -e $guard ]; then
    printf '#!/bin/sh\nexit 101\n' >$guard && chmod 755 $guard && made=yes
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  echo "installing $# Debian packages (a minute or less)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=900 -qq update
  apt-get -o DPkg::Lock::Timeout=900 -qq -y --no-install-recommends install "$@" >.cache/apt.log 2>&1 \
    || { tail -n 20 .cache/apt.log >&2; exit 1; }
  if [ $made = yes ]; then rm -f $guard; trap - EXIT; fi
}

mkdir -p .cache
mapfile -t packages < <(missing_packages)
[ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"

# Debian's own Python has the binding to its own libvirt; another python3 that stands first in PATH has not.
python=/usr/bin/python3
uv=.cache/uv/bin/uv
if [ ! -x $uv ]; then
  $python -m venv .cache/uv
  .cache/uv/bin/pip --quiet --disable-pip-version-check install --require-hashes -r requirements/uv.lock 2>.cache/pip.log \
    || { cat .cache/pip.log >&2; exit 1; }
fi
[ -x .venv/bin/python ] || $uv venv --quiet --python $python --system-site-packages .venv

wanted=$(cat requirements/dev.lock pyproject.toml | sha256sum)
if [ "$wanted" != "$(cat .venv/locked 2>/dev/null)" ]; then
  echo "installing the locked Python packages"
  $uv pip sync --quiet --python .venv/bin/python --require-hashes requirements/dev.lock
  $uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
  echo "$wanted" >.venv/locked
fi

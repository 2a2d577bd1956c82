# Shared by the scripts in ops/: where things are kept, how a step is told. Source it, do not run it.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${HYPERAGENT_CACHE:-$HOME/.cache/hyperagent}
say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_debian() { [ -r /etc/debian_version ] && have apt-get; }
is_root() { [ "$(id -u)" = 0 ]; }

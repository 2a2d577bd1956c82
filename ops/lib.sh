# Shared by the scripts in ops/: where things are kept, how a step is told. Source it, do not run it.
# shellcheck shell=bash disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hyperagent
say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_debian() { [ -r /etc/debian_version ] && have apt-get; }
is_root() { [ "$(id -u)" = 0 ]; }

packages() { # Debian packages: installs those that are missing
  local name missing=()
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} != 0 ] || return 0
  is_debian || die "Missing here: ${missing[*]} (Debian's names). Install what carries them and run this again."
  is_root || die "Missing here: run 'sudo apt-get install ${missing[*]}' and this again."
  say "apt-get install ${missing[*]}"
  # 9 is the lock of ops/parts: a service that a package starts must not hold it
  {
    apt-get update -qq
    DEBCONF_NOWARNINGS=yes DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
  } >/dev/null 9>&-
}

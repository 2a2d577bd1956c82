# Sourced by the scripts beside it: an environment in which only our own settings count, and the way bundles are unpacked.
# Every `git` here runs inside a sandbox on what an agent wrote. Nothing it prints or exits with is believed by the host.
set -eu
for name in $(env | sed -n 's/^\(GIT_[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$name"; done
LC_ALL=C TZ=UTC
GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0 GIT_ALLOW_PROTOCOL='' GIT_OPTIONAL_LOCKS=0
export LC_ALL TZ GIT_CONFIG_GLOBAL GIT_CONFIG_NOSYSTEM GIT_ATTR_NOSYSTEM GIT_TERMINAL_PROMPT GIT_ALLOW_PROTOCOL GIT_OPTIONAL_LOCKS

# 3 says that the workspace itself cannot be sealed: trying again with the same files will not help.
UNSEALABLE=3

say() { printf '%s: %s\n' "${0##*/}" "$1" >&2; }

scratch() { # a private directory, removed at the end
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/hyperagent.XXXXXX")
    trap 'rm -rf "$SCRATCH"' EXIT
    trap 'exit 143' TERM INT HUP
    export XDG_CONFIG_HOME="$SCRATCH" # no ~/.config/git
}

unbundle() { # $1 git directory, $2 bundle, $3 ref in it: unpacks it, sets $oid
    oid=$(git --git-dir="$1" -c core.fsync=none -c pack.threads=2 bundle unbundle "$2" "$3") || {
        say "the bundle $2 cannot be unpacked"
        exit 1
    }
    oid=${oid%% *}
    [ -n "$oid" ] || {
        say "the bundle $2 holds no $3"
        exit 1
    }
}

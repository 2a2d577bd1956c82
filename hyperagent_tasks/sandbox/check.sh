#!/bin/sh
# Run the project's check commands (the arguments), in order, in one fresh checkout of the sealed commit. What they print is streamed;
# $OUT/checks.json gets one JSON line a command. Exit code: 0 where all passed, 1 where one failed, 2 where the checkout failed.
# Environment: IN (/in), SEALED ($IN/out.bundle; none there: the base itself is checked), OUT (/out), TMPDIR.
. "$(dirname "$0")/lib.sh"
IN=${IN:-/in} OUT=${OUT:-/out}
SEALED=${SEALED:-$IN/out.bundle}
TAIL=4000

scratch
tree=$SCRATCH/checkout
(
    set -e
    git init -q -b work --template= "$tree"
    unbundle "$tree/.git" "$IN/base.bundle" refs/heads/base
    [ ! -f "$SEALED" ] || unbundle "$tree/.git" "$SEALED" refs/heads/out
    git -C "$tree" -c core.fsync=none reset -q --hard "$oid"
) || exit 2

now() { # milliseconds where `date` knows them
    case $(date +%N) in
        *N*) printf '%s000' "$(date +%s)" ;;
        *) date +%s%3N ;;
    esac
}

quoted() { # stdin as the inside of a JSON string
    tr -d '\000-\010\013\014\016-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' -e 's/\r/\\r/g' | awk '{printf "%s%s", sep, $0; sep = "\\n"}'
}

drained() { # the copier ends with the command, unless the command left something behind that holds its output open
    tries=0
    while kill -0 "$1" 2>/dev/null && [ $tries -lt 20 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    kill "$1" 2>/dev/null || :
    wait "$1" 2>/dev/null || :
}

failed=0 position=0
: >"$OUT/checks.json"
for command in "$@"; do
    printf '$ %s\n' "$command"
    log=$SCRATCH/log.$position pipe=$SCRATCH/pipe.$position
    mkfifo "$pipe"
    tee "$log" <"$pipe" &
    copier=$!
    start=$(now)
    code=0
    (
        unset GIT_CONFIG_GLOBAL GIT_CONFIG_NOSYSTEM GIT_ATTR_NOSYSTEM GIT_ALLOW_PROTOCOL GIT_OPTIONAL_LOCKS XDG_CONFIG_HOME LC_ALL TZ
        cd "$tree"
        exec sh -c "$command"
    ) </dev/null >"$pipe" 2>&1 || code=$?
    took=$(($(now) - start))
    drained "$copier"
    [ "$code" = 0 ] || failed=1
    printf '{"position": %d, "command": "%s", "exit_code": %d, "seconds": %d.%03d, "output": "%s"}\n' "$position" \
        "$(printf %s "$command" | quoted)" "$code" $((took / 1000)) $((took % 1000)) "$(tail -c $TAIL "$log" | quoted)" >>"$OUT/checks.json"
    position=$((position + 1))
done
exit $failed

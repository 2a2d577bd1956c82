#!/bin/sh
# Fill $WORKSPACE (empty) with a checkout of refs/heads/base from $IN/base.bundle, on a branch `work`: no remote, no hook,
# a user name, so that the agent may use git as it likes. Where $IN/work.bundle holds a commit on it, its changes are in the files.
# Environment: WORKSPACE (/workspace), IN (/in), TMPDIR.
. "$(dirname "$0")/lib.sh"
WORKSPACE=${WORKSPACE:-/workspace} IN=${IN:-/in}

if [ -n "$(ls -A "$WORKSPACE")" ]; then
    say "the workspace $WORKSPACE is not empty"
    exit 1
fi
scratch
git init -q -b work --template= "$WORKSPACE"
unbundle "$WORKSPACE/.git" "$IN/base.bundle" refs/heads/base
cat >>"$WORKSPACE/.git/config" <<CONFIG
[user]
	name = HyperAgent agent
	email = agent@hyperagent.invalid
[gc]
	auto = 0
CONFIG
mkdir -p "$WORKSPACE/.git/info"
echo /.hyperagent/ >"$WORKSPACE/.git/info/exclude"
git -C "$WORKSPACE" -c core.fsync=none reset -q --hard "$oid"
if [ -f "$IN/work.bundle" ]; then
    unbundle "$WORKSPACE/.git" "$IN/work.bundle" refs/heads/base
    git -C "$WORKSPACE" -c core.fsync=none read-tree -u --reset "$oid"
    git -C "$WORKSPACE" -c core.fsync=none reset -q
fi

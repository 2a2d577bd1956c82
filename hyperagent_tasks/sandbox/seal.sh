#!/bin/sh
# Turn the files of $WORKSPACE into one commit on refs/heads/base of $IN/base.bundle: $OUT/out.bundle with refs/heads/out, and
# $OUT/seal.json. Where nothing changed there is no bundle. The workspace is only read, and its own .git is not looked at.
# Environment: WORKSPACE (/workspace), IN (/in), OUT (/out), TMPDIR. Exit code 3: these files cannot be sealed, stderr says why.
. "$(dirname "$0")/lib.sh"
WORKSPACE=${WORKSPACE:-/workspace} IN=${IN:-/in} OUT=${OUT:-/out}

scratch
gitdir=$SCRATCH/g
git init -q --bare --template= "$gitdir"
cat >>"$gitdir/config" <<'CONFIG'
[core]
	bare = false
	fsmonitor = false
	untrackedCache = false
	hooksPath = /dev/null
	attributesFile = /dev/null
	excludesFile = /dev/null
	protectHFS = true
	protectNTFS = true
	fsync = none
	looseCompression = 1
	autocrlf = false
	safecrlf = false
	bigFileThreshold = 64m
[pack]
	threads = 2
[gc]
	auto = 0
[advice]
	addEmbeddedRepo = false
[index]
	threads = 2
CONFIG
unbundle "$gitdir" "$IN/base.bundle" refs/heads/base
base=$oid

GIT_DIR=$gitdir GIT_WORK_TREE=$WORKSPACE
export GIT_DIR GIT_WORK_TREE
cd "$WORKSPACE"
git read-tree "$base"

# A submodule the base already has stays as it is: otherwise git would look into its directory, under its own settings.
git ls-files -z -s | tr '\n\0' '\001\n' | sed -n 's/^160000 [^	]*	//p' | tr '\n\001' '\0\n' >"$SCRATCH/submodules"
[ ! -s "$SCRATCH/submodules" ] || git update-index -z --skip-worktree --stdin <"$SCRATCH/submodules"

add() { git add -A -- . ':(exclude,top).hyperagent' 2>"$SCRATCH/said" && ! grep -q '^error\|^fatal\|could not open' "$SCRATCH/said"; }

embedded() { # a repository without a commit stops `add`; as an entry of its own the host can name and refuse it
    find . -mindepth 2 -name .git -prune -print0 | tr '\n\0' '\001\n' | while IFS= read -r found; do
        path=$(printf %s "${found%/.git}" | tr '\001' '\n')
        printf '160000 %s\t%s\0' "$base" "${path#./}"
    done | git update-index -z --index-info
}

if ! add; then
    case $(cat "$SCRATCH/said") in
        *'not have a commit checked out'*) git read-tree "$base" && embedded ;;
        *) false ;;
    esac && add || {
        say "git cannot read every file of the workspace: $(head -c 2000 "$SCRATCH/said")"
        exit $UNSEALABLE
    }
fi

files=$(git diff-index --cached --no-renames --ignore-submodules=none "$base" | grep -c '' || :)
tree=$(git write-tree)
if [ "$files" = 0 ]; then
    printf '{"changed": false, "tree": "%s", "files": 0}\n' "$tree" >"$OUT/seal.json"
    exit 0
fi
GIT_AUTHOR_NAME=sealer GIT_AUTHOR_EMAIL=sealer@hyperagent.invalid GIT_AUTHOR_DATE='1000000000 +0000'
GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_AUTHOR_DATE GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL GIT_COMMITTER_DATE
commit=$(git commit-tree -p "$base" -m seal "$tree")
{
    printf '# v2 git bundle\n-%s base\n%s refs/heads/out\n\n' "$base" "$commit"
    printf '%s\n^%s\n' "$commit" "$base" | git pack-objects -q --revs --thin --stdout --delta-base-offset
} >"$OUT/out.bundle.part"
mv "$OUT/out.bundle.part" "$OUT/out.bundle"
printf '{"changed": true, "tree": "%s", "files": %s}\n' "$tree" "$files" >"$OUT/seal.json"

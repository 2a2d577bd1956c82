#!/usr/bin/env bash
# The main job by hand with a null agent: the floor HyperAgent is measured against. Everything around the agent is here
# (clone, agent, seal, import, check, commit, push, patch), nothing that makes it a product is. One JSON line a step.
# Needs a Docker engine, images of runner and Radicle. usage: floor.sh WORKDIR STEPS
set -euo pipefail
work=$1 steps=$2 runner=${HYPERAGENT_RUNNER_IMAGE:-hyperagent/runner:dev} radicle=${HYPERAGENT_RADICLE_IMAGE:-hyperagent/radicle:dev}
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=host GIT_AUTHOR_EMAIL=host@localhost \
  GIT_COMMITTER_NAME=host GIT_COMMITTER_EMAIL=host@localhost
node=ha-floor-$$
trap 'docker rm -f "$node" >/dev/null 2>&1 || true' EXIT
scripts=/usr/local/lib/hyperagent
jail=(--rm --network none --user 10001:10001 --cap-drop ALL --security-opt no-new-privileges --read-only --init
  --pids-limit 512 -m 2g --cpus 2 --tmpfs /tmp:rw,exec,size=512m,mode=1777
  --tmpfs /home/agent:rw,exec,size=512m,uid=10001,gid=10001 -e HOME=/home/agent)

# --- a node, an identity, a repository: once, not measured ------------------------------------------------------------
mkdir -p "$work/rad" "$work/src" "$work/t"
docker run -d --name "$node" --network none --user "$(id -u):$(id -g)" --tmpfs /tmp -e HOME=/tmp -e RAD_PASSPHRASE= \
  -e RAD_HOME=/rad -v "$work/rad:/rad" -v "$work:/w" "$radicle" sleep 3600 >/dev/null
in_node() { docker exec -i -e GIT_AUTHOR_NAME=h -e GIT_AUTHOR_EMAIL=h@h -e GIT_COMMITTER_NAME=h -e GIT_COMMITTER_EMAIL=h@h "$@"; }
in_node "$node" rad auth --alias floor --stdin </dev/null >/dev/null
git -C "$work/src" init -q -b main
printf 'def add(a, b):\n    return a - b\n' >"$work/src/calc.py"
printf 'from calc import add\nassert add(2, 2) == 4\n' >"$work/src/check.py"
git -C "$work/src" add . && git -C "$work/src" commit -qm "A calculator with a fault"
in_node -w /w/src "$node" rad init --name floor --description floor --default-branch main --public --scope all \
  --no-confirm --no-seed </dev/null >/dev/null 2>&1
rid=$(in_node -w /w/src "$node" rad inspect --rid)
nid=$(in_node "$node" rad self --did); nid=${nid#did:key:}
git clone -q --bare "$work/src" "$work/t/repo.git"
git -C "$work/t/repo.git" remote add rad "rad://${rid#rad:}"
git -C "$work/t/repo.git" remote set-url --push rad "rad://${rid#rad:}/$nid"
patch='' published=$(date +%s)

for i in $(seq "$steps"); do
  start=$(date +%s%N) d=$work/s$i repo=$work/t/repo.git
  mkdir -p "$d/ws" "$d/in" "$d/out" "$d/checked"; chown 10001:10001 "$d/ws" "$d/out" "$d/checked"
  base=$(git -C "$repo" rev-parse --verify -q refs/heads/wf || git -C "$repo" rev-parse refs/heads/main)
  git -C "$repo" update-ref refs/heads/base "$base"
  git -C "$repo" bundle create -q "$d/in/base.bundle" refs/heads/base
  docker run "${jail[@]}" -v "$d/ws:/workspace" -v "$d/in:/in:ro" -e WORKSPACE=/workspace -e IN=/in "$runner" \
    $scripts/materialise.sh
  docker run "${jail[@]}" -w /workspace -v "$d/ws:/workspace" "$runner" \
    sh -c "printf 'def add(a, b):\n    return a + b\n# %s\n' $start >calc.py"
  docker run "${jail[@]}" -v "$d/ws:/workspace:ro" -v "$d/in:/in:ro" -v "$d/out:/out" -e WORKSPACE=/workspace \
    -e IN=/in -e OUT=/out "$runner" $scripts/seal.sh
  git init -q --bare "$d/q.git"
  git -C "$d/q.git" fetch -q "$d/in/base.bundle" refs/heads/base:refs/heads/base
  git -C "$d/q.git" -c fetch.fsckObjects=true fetch -q "$d/out/out.bundle" refs/heads/out:refs/heads/out
  git -C "$d/q.git" fsck --strict --no-dangling >/dev/null 2>&1
  git -C "$repo" -c fetch.fsckObjects=true fetch -q "file://$d/q.git" "refs/heads/out:refs/quarantine/s$i"
  docker run "${jail[@]}" -v "$d/in:/in:ro" -v "$d/out/out.bundle:/sealed/out.bundle:ro" -v "$d/checked:/out" -e IN=/in \
    -e SEALED=/sealed/out.bundle -e OUT=/out "$runner" $scripts/check.sh "python3 check.py" >/dev/null
  commit=$(git -C "$repo" commit-tree -p "$base" -m "Step $i" "$(git -C "$repo" rev-parse "refs/quarantine/s$i^{tree}")")
  git -C "$repo" update-ref refs/heads/wf "$commit"; git -C "$repo" symbolic-ref HEAD refs/heads/wf
  if [ -z "$patch" ]; then
    in_node -w /w/t/repo.git -e GIT_COMMITTER_DATE="$published" "$node" \
      git push -o no-sync -o patch.message=floor rad wf:refs/patches </dev/null >"$d/push" 2>&1
    patch=$(sed -nE 's/.*Patch ([0-9a-f]{40}) opened.*/\1/p' "$d/push"); [ -n "$patch" ]
  else
    in_node -w /w/t/repo.git "$node" git push -o no-sync -f rad "wf:patches/$patch" </dev/null >"$d/push" 2>&1
  fi
  printf '{"step": %d, "ms": %d}\n' "$i" $((($(date +%s%N) - start) / 1000000))
done

#!/bin/sh
# From one version of a tree to the next by a patch: bytes against the other ways, time, memory.
#
#   bench/patch.sh OLD NEW [OLD NEW]…
#
# Packs both trees with the defaults, publishes them, makes the patch, and pulls it over loopback HTTP with the old image in the
# cache. "pull" is fetching and applying; times in seconds, memory in MB at its peak. `zstd --patch-from` is on the raw contents, as one
# window, at level 3. Needs casync, zstd, python3.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}/release
for tool in casync zstd python3; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install $tool" >&2; exit 1; }
done
(cd "$here" && cargo build --quiet --release -p mica-cli -p mica-fetcher --example transfer --bins)
(cd "$here" && cargo build --quiet --release -p mica-squashfs --example rebuild)
out=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" || :; rm -rf "$out"' EXIT INT TERM

size() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }
mb() { awk -v bytes="$1" 'BEGIN { printf "%.2f", bytes / 1e6 }'; }

cat >"$out/measure.py" <<'PY'
import resource, subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print("%.2f %d" % (time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
PY
measure() { python3 "$out/measure.py" "$@"; }

printf '%-26s %8s %8s %8s %8s %8s | %7s %5s %7s %5s %7s\n' 'MB' patch chunks whole casync zstd make MB pull MB pack
while [ $# -ge 2 ]; do
    old=$1 new=$2
    shift 2
    mkdir -p "$out/old" "$out/new"
    "$target/mica" image pack "$old" -o "$out/old/tree.xar" >/dev/null 2>&1
    pack=$(measure "$target/mica" image pack "$new" -o "$out/new/tree.xar" 2>/dev/null)
    "$target/examples/transfer" push "$out/registry" tree@old "$out/old/tree.xar" >/dev/null
    "$target/examples/transfer" push "$out/registry" tree@new "$out/new/tree.xar" >/dev/null
    "$target/examples/transfer" pull "$out/registry" tree@old "$out/cache" >/dev/null
    "$target/examples/transfer" pull "$out/registry" tree@new "$out/publisher" >/dev/null
    "$target/examples/transfer" pull "$out/registry" tree@old "$out/publisher" >/dev/null
    make=$(measure "$target/examples/transfer" patch "$out/registry" tree@new tree@old "$out/publisher")
    ways=$(python3 - "$out" <<'PY'
import glob, json, sys
print(max((p["patch"]["size"] for f in glob.glob(sys.argv[1] + "/registry/patches/*.json") for p in json.load(open(f))["patches"]), default=0))
PY
)
    chunks=$("$target/mica" image delta --json "$out/old/tree.xar" "$out/new/tree.xar" | python3 -c 'import json, sys; print(json.load(sys.stdin)["in_chunks"])')
    "$target/examples/transfer" serve "$out/registry" 127.0.0.1:0 >"$out/address" &
    server=$!
    while ! test -s "$out/address"; do sleep 0.05; done
    pull=$(measure "$target/examples/transfer" pull "$(cat "$out/address")" tree@new "$out/cache")
    kill "$server"
    server=
    for tree in "$old" "$new"; do
        casync make --store="$out/store" "$out/index.caidx" "$tree" >/dev/null
        [ "$tree" = "$new" ] || before=$(size "$out/store")
    done
    casync=$(($(size "$out/store") - before + $(stat -c %s "$out/index.caidx")))
    for version in old new; do
        "$target/examples/rebuild" "$out/$version/tree.xar" "$out/recipe" "$out/$version.raw" >/dev/null
    done
    zstd -q -3 --patch-from="$out/old.raw" "$out/new.raw" -o "$out/zstd" --long=31
    set -- "$pack" "$make" "$pull" "$@"
    printf '%-26s %8s %8s %8s %8s %8s | %7s %5s %7s %5s %7s\n' "$(basename "$new")" \
        "$(mb "$ways")" "$(mb "$chunks")" "$(mb "$(stat -c %s "$out/new/tree.xar")")" "$(mb "$casync")" "$(mb "$(stat -c %s "$out/zstd")")" \
        $2 $3 "${1% *}"
    shift 3
    rm -rf "$out/old" "$out/new" "$out/registry" "$out/cache" "$out/publisher" "$out/store" "$out"/*.raw "$out/zstd" "$out/address"
done

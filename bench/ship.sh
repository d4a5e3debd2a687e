#!/bin/sh
# Bytes to ship from one version of a tree to the next: mica's chunks against casync's.
#
#   bench/ship.sh OLD NEW [OLD NEW]…
#
# For mica: new chunks and the chunk table. For casync: new chunks as they are stored (zstd) and the index.
# Needs casync and python3. MICA names the binary (default: target/release/mica, built if missing).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-${CARGO_TARGET_DIR:-$here/target}/release/mica}
[ -x "$mica" ] || (cd "$here" && cargo build --release)
command -v casync >/dev/null || { echo "casync is missing: apt-get install casync" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT INT TERM

size() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }

printf '%-28s %12s %12s %12s %8s\n' '' 'whole image' 'mica' 'casync' 'ratio'
while [ $# -ge 2 ]; do
    rm -rf "$out"/*
    "$mica" image pack "$1" -o "$out/old.xar" >/dev/null 2>&1
    "$mica" image pack "$2" -o "$out/new.xar" --previous "$out/old.xar" >/dev/null 2>&1
    "$mica" image delta --json "$out/old.xar" "$out/new.xar" >"$out/delta"
    ship=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["in_chunks"])' "$out/delta")
    # Owners and times are not content.
    for tree in "$1" "$2"; do
        casync make --without=all --with=symlinks --with=permissions --store="$out/store" "$out/index.caidx" "$tree" >/dev/null
        [ "$tree" = "$2" ] || before=$(size "$out/store")
    done
    awk -v n="$(basename "$2")" -v w="$(stat -c %s "$out/new.xar")" -v m="$ship" \
        -v c=$(($(size "$out/store") - before)) -v i="$(stat -c %s "$out/index.caidx")" \
        'BEGIN { printf "%-28s %12d %12d %12d %8.3f\n", n, w, m, c + i, m / (c + i) }'
    shift 2
done

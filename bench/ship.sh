#!/bin/sh
# Bytes to ship from one version of a tree to the next: mica's chunks against casync's.
#
#   bench/ship.sh OLD NEW [OLD NEW]…
#
# For mica: new chunks and the chunk table. For casync: new chunks as they are stored (zstd) and the index, with its
# defaults and without owners and times, which mica leaves out.
# Needs casync and python3. MICA names the binary (default: target/release/mica, built if missing).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-${CARGO_TARGET_DIR:-$here/target}/release/mica}
[ -x "$mica" ] || (cd "$here" && cargo build --release)
command -v casync >/dev/null || { echo "casync is missing: apt-get install casync" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT INT TERM

size() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }

# casync FLAGS…: bytes of the index and of the chunks that only the new tree has.
casync_ships() {
    rm -rf "$out/store"
    for tree in "$old" "$new"; do
        casync make "$@" --store="$out/store" "$out/index.caidx" "$tree" >/dev/null
        [ "$tree" = "$new" ] || before=$(size "$out/store")
    done
    echo $(($(size "$out/store") - before + $(stat -c %s "$out/index.caidx")))
}

printf '%-28s %12s %12s %12s %16s\n' '' 'whole image' 'mica' 'casync' 'without times'
while [ $# -ge 2 ]; do
    old=$1 new=$2
    shift 2
    rm -f "$out"/*.xar*
    "$mica" image pack "$old" -o "$out/old.xar" >/dev/null 2>&1
    "$mica" image pack "$new" -o "$out/new.xar" --previous "$out/old.xar" >/dev/null 2>&1
    "$mica" image delta --json "$out/old.xar" "$out/new.xar" >"$out/delta"
    ship=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["in_chunks"])' "$out/delta")
    casync=$(casync_ships)
    # As mica packs: owners and times are not content.
    bare=$(casync_ships --without=all --with=symlinks --with=permissions)
    printf '%-28s %12d %12d %12d %16d\n' "$(basename "$new")" "$(stat -c %s "$out/new.xar")" "$ship" "$casync" "$bare"
done

#!/bin/sh
# Packs trees with mica, mksquashfs and gensquashfs in turn, and prints a table of ratios.
#
#   bench/pack.sh [-l LEVEL] [-r ROUNDS] [DIR…]      (default: zstd level 3, 3 rounds, 100,000 generated files)
#
# Per tree: a full pack by all three; then mica's again after a line was added to one file, and with nothing changed.
# mica makes its image durable (fsync) before it counts, the others leave that to the kernel; "no sync" is mica that
# does so too.
# Needs /usr/bin/time (Debian: time), squashfs-tools, squashfs-tools-ng, python3. MICA names the binary (default:
# target/release/mica, built if missing), TMPDIR the place for images and for copies of the trees by hard links.
set -eu

level=3 rounds=3
while getopts l:r: flag; do
    case $flag in l) level=$OPTARG ;; r) rounds=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
here=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-${CARGO_TARGET_DIR:-$here/target}/release/mica}
[ -x "$mica" ] || (cd "$here" && cargo build --release)
for tool in mksquashfs gensquashfs python3; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install squashfs-tools squashfs-tools-ng" >&2; exit 1; }
done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT INT TERM

# 100,000 files of about 1.6 KB in 400 folders.
small_files() {
    python3 - "$1" <<'PYTHON'
import os, random, sys
random.seed(7)
letters = b'abcdefghijklmnopqrstuvwxyz_(). =\n'
words = [bytes(random.choices(letters, k=random.randint(2, 12))) for _ in range(4000)]
for d in range(400):
    path = f'{sys.argv[1]}/d{d:03}'
    os.makedirs(path)
    for f in range(250):
        length = int(min(random.lognormvariate(6.8, 1.1), 60000))
        with open(f'{path}/f{f:03}.txt', 'wb') as file:
            file.write(b' '.join(random.choices(words, k=max(1, length // 8))))
PYTHON
}

# NAME IMAGE COMMAND…: a line of name, wall, cpu (user + system), peak memory in MB, size.
measure() {
    name=$1 image=$2
    shift 2
    sync # what the one before left to the kernel is not this one's
    /usr/bin/time -o "$out/time" -f '%e %U %S %M' "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
    awk -v n="$name" -v s="$(stat -c %s "$image")" '{ print n, $1, $2 + $3, $4 * 1024 / 1e6, s }' "$out/time" >>"$out/all"
}

median() { # NAME FIELD
    awk -v n="$1" -v f="$2" '$1 == n { print $f }' "$out/all" | sort -n |
        awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

pack() { # NAME IMAGE FLAGS…
    name=$1 image=$2
    shift 2
    measure "$name" "$image" "$mica" image pack "$tree" -o "$image" --level "$level" --jobs 2 "$@"
}

# A line more in the middle of an ordinary source file, in a file of its own: the others share theirs with the original.
edit() {
    file=$(find "$tree" -type f \( -name '*.py' -o -name '*.c' -o -name '*.txt' \) -size -40k -size +2k | sort | sed -n '100p')
    awk -v at="$1" '{ print } NR == at { print "# one line more: " at }' "$file" >"$out/edited"
    rm "$file"
    cp "$out/edited" "$file"
}

one_tree() {
    tree=$out/tree cache=$out/scan
    rm -rf "$tree" "$out/all"
    cp -al "$1" "$tree" 2>/dev/null || { rm -rf "$tree"; cp -a "$1" "$tree"; }
    find "$tree" -type f -exec cat {} + >/dev/null # the first one shall not pay for a cold cache
    round=0
    while [ "$round" -lt "$rounds" ]; do
        round=$((round + 1))
        rm -f "$out"/*.xar* "$out/mk" "$out/gen" "$cache"
        pack full "$out/full.xar"
        measure mksquashfs "$out/mk" mksquashfs "$tree" "$out/mk" \
            -comp zstd -Xcompression-level "$level" -processors 2 -all-root -no-progress -quiet
        measure gensquashfs "$out/gen" gensquashfs -D "$tree" -j 2 -c zstd -X "level=$level" -q "$out/gen"
        pack first "$out/first.xar" --scan-cache "$cache"
        edit "$round"
        sleep 1
        pack changed "$out/changed.xar" --scan-cache "$cache" --previous "$out/first.xar"
        pack unchanged "$out/changed.xar" --scan-cache "$cache"
        rm "$out/changed.xar"
        pack changed-nosync "$out/changed.xar" --scan-cache "$cache" --previous "$out/first.xar" --no-sync
    done
    "$mica" image delta --json "$out/first.xar" "$out/changed.xar" >"$out/delta"
    ship=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["in_chunks"] / 1e3)' "$out/delta")
    low() { awk -v a="$1" -v b="$2" 'BEGIN { print a < b ? a : b }'; }
    row() { awk -v n="$1" -v a="$2" -v b="$3" -v bar="$4" 'BEGIN { printf "  %-52s %9.3f   %s\n", n, a / b, bar }'; }
    echo "$1: $(find "$1" -type f | wc -l) files, zstd $level, medians of $rounds"
    for name in full mksquashfs gensquashfs changed changed-nosync unchanged; do
        awk -v n="$name" -v w="$(median $name 2)" -v c="$(median $name 3)" -v m="$(median $name 4)" -v s="$(median $name 5)" \
            'BEGIN { printf "  %-14s wall %7.2f s   cpu %7.2f s   memory %6.1f MB   size %7.1f MB\n", n, w, c, m, s / 1e6 }'
    done
    row 'wall, full pack / the faster of the others' "$(median full 2)" "$(low "$(median mksquashfs 2)" "$(median gensquashfs 2)")" '<= 0.95'
    row 'cpu, full pack / mksquashfs' "$(median full 3)" "$(median mksquashfs 3)" '<= 1.0'
    row 'cpu, full pack / gensquashfs' "$(median full 3)" "$(median gensquashfs 3)" '<= 1.0'
    row 'peak memory, MB' "$(median full 4)" 1 '<= 100'
    row 'size / mksquashfs' "$(median full 5)" "$(median mksquashfs 5)" '<= 1.02'
    row 'wall, one file changed / full pack' "$(median changed 2)" "$(median full 2)" '<= 0.25'
    row 'wall, one file changed, no sync / full pack' "$(median changed-nosync 2)" "$(median full 2)" '<= 0.25'
    row 'wall, nothing changed / full pack' "$(median unchanged 2)" "$(median full 2)" '<= 0.03'
    row 'bytes to ship for the changed file, kB' "$ship" 1 '<= 400 (1.3 GB layer)'
}

if [ $# -eq 0 ]; then
    small_files "$out/small"
    set -- "$out/small"
fi
for dir; do
    one_tree "$dir"
done

#!/bin/sh
# Packs a directory with mica, mksquashfs and gensquashfs in turn, and prints the ratios.
#
#   bench/pack.sh DIR [LEVEL] [ROUNDS]
#
# Needs /usr/bin/time (Debian: time), squashfs-tools, squashfs-tools-ng. MICA names the binary
# (default: target/release/mica, built if missing), TMPDIR the place for images. mica makes its
# image durable (fsync) before it counts, the others leave that to the kernel.
set -eu

dir=${1:?usage: bench/pack.sh DIR [LEVEL] [ROUNDS]}
level=${2:-3}
rounds=${3:-5}
here=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-$here/target/release/mica}
[ -x "$mica" ] || (cd "$here" && cargo build --release)
for tool in mksquashfs gensquashfs; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install squashfs-tools squashfs-tools-ng" >&2; exit 1; }
done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# NAME IMAGE COMMAND…: one line of wall, cpu (user + system), peak memory, size.
measure() {
    name=$1 image=$2
    shift 2
    rm -f "$image"
    /usr/bin/time -o "$out/time" -f '%e %U %S %M' "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
    size=$(stat -c %s "$image")
    awk -v n="$name" -v s="$size" '{ print n, $1, $2 + $3, $4 / 1024, s / 1e6 }' "$out/time" >>"$out/all"
}

mica_pack() {
    name=$1 image=$2
    shift 2
    measure "$name" "$image" "$mica" image pack "$dir" -o "$image" --level "$level" --jobs 2 "$@"
}

find "$dir" -type f -exec cat {} + >/dev/null # the first one shall not pay for a cold cache
round=0
while [ "$round" -lt "$rounds" ]; do
    mica_pack mica "$out/mica.xar"
    measure mksquashfs "$out/mksquashfs" mksquashfs "$dir" "$out/mksquashfs" \
        -comp zstd -Xcompression-level "$level" -processors 2 -all-root -no-progress -quiet
    measure gensquashfs "$out/gensquashfs" gensquashfs -D "$dir" -j 2 -c zstd -X "level=$level" -q "$out/gensquashfs"
    round=$((round + 1))
done

median() { # NAME FIELD
    awk -v n="$1" -v f="$2" '$1 == n { print $f }' "$out/all" | sort -n |
        awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

echo "medians of $rounds alternating rounds, zstd level $level, 128 KiB blocks, 2 threads: $dir"
printf '%-14s %10s %10s %12s %12s\n' '' 'wall s' 'cpu s' 'peak MiB' 'size MB'
for name in mica mksquashfs gensquashfs; do
    printf '%-14s %10.2f %10.2f %12.1f %12.1f\n' "$name" \
        "$(median $name 2)" "$(median $name 3)" "$(median $name 4)" "$(median $name 5)"
done
for other in mksquashfs gensquashfs; do
    printf 'mica / %-11s' "$other"
    for field in 2 3 4 5; do
        awk -v a="$(median mica $field)" -v b="$(median $other $field)" 'BEGIN { printf " %8.3f", a / b }'
    done
    echo '  (wall, cpu, memory, size)'
done

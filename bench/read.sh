#!/bin/sh
# Reads images with mica and with squashfs-tools in turn, and prints the ratios.
#
#   bench/read.sh [DIR] [ROUNDS]
#
# Unpacks an image of DIR (default: /usr/share), by mksquashfs with zstd, and prints single files of an image with
# 100,000 files in one directory, process start included. Needs /usr/bin/time (Debian: time), squashfs-tools,
# squashfs-tools-ng, python3. MICA names the binary (default: target/release/mica, built if missing), TMPDIR the place
# for images: a memory file system measures the programs, a disk the disk.
set -eu

dir=${1:-/usr/share}
rounds=${2:-5}
here=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-$here/target/release/mica}
[ -x "$mica" ] || (cd "$here" && cargo build --release)
for tool in mksquashfs unsquashfs sqfscat /usr/bin/time python3; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install squashfs-tools squashfs-tools-ng time python3" >&2; exit 1; }
done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# NAME COMMAND…: one line of wall seconds, cpu seconds (user + system), peak MiB.
measure() {
    name=$1
    shift
    /usr/bin/time -o "$out/time" -f '%e %U %S %M' "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
    awk -v n="$name" '{ print n, $1, $2 + $3, $4 / 1024 }' "$out/time" >>"$out/all"
}

median() { # NAME FIELD
    awk -v n="$1" -v f="$2" '$1 == n { print $f }' "$out/all" | sort -n |
        awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# What is measured, then mica, then the others.
table() {
    echo
    echo "$1, medians of $rounds alternating rounds"
    shift
    printf '%-14s %10s %10s %12s\n' '' 'wall s' 'cpu s' 'peak MiB'
    for name in "$@"; do
        printf '%-14s %10.2f %10.2f %12.1f\n' "$name" "$(median "$name" 2)" "$(median "$name" 3)" "$(median "$name" 4)"
    done
    first=$1
    shift
    for other in "$@"; do
        printf 'mica / %-11s' "$other"
        for field in 2 3 4; do
            awk -v a="$(median "$first" $field)" -v b="$(median "$other" $field)" 'BEGIN { printf " %8.3f", a / b }'
        done
        echo '  (wall, cpu, memory)'
    done
}

mksquashfs "$dir" "$out/tree" -comp zstd -Xcompression-level 3 -quiet -no-progress >/dev/null
round=0
while [ "$round" -lt "$rounds" ]; do
    measure mica "$mica" image unpack --jobs 2 "$out/tree" "$out/unpacked"
    rm -rf "$out/unpacked"
    measure unsquashfs unsquashfs -q -n -p 2 -d "$out/unpacked" "$out/tree"
    rm -rf "$out/unpacked"
    round=$((round + 1))
done
table "unpacking $dir with 2 threads" mica unsquashfs

mkdir "$out/many"
python3 - "$out/many" <<'END'
import sys
for i in range(100_000):
    with open(f"{sys.argv[1]}/some-file-{i}", "w") as file:
        file.write(f"the content of file {i}\n" * (i % 50))
END
mksquashfs "$out/many" "$out/image" -comp zstd -Xcompression-level 3 -quiet -no-progress >/dev/null
rm -rf "$out/many"
: >"$out/all"
cats='i=1; while [ $i -le 100 ]; do "$@" "some-file-$((i * 7919 % 100000))"; i=$((i + 1)); done'
round=0
while [ "$round" -lt "$rounds" ]; do
    measure mica sh -ec "$cats" sh "$mica" image cat "$out/image"
    measure unsquashfs sh -ec "$cats" sh unsquashfs -cat "$out/image"
    measure sqfscat sh -ec "$cats" sh sqfscat "$out/image"
    round=$((round + 1))
done
table "printing 100 files of 100,000, one process each" mica unsquashfs sqfscat

#!/bin/sh
# Makes a corpus of small images with every writer at hand.
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/image corpus/xar corpus/codec corpus/recipe
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tree=$scratch/tree

mkdir -p "$tree/dir/sub/subsub"
yes 'some text' | head -n 500 > "$tree/dir/text"
head -c 700 /dev/urandom > "$tree/dir/noise"
head -c 20000 /dev/zero > "$tree/dir/zeros"
: > "$tree/empty"
ln "$tree/empty" "$tree/linked"
ln -s dir/text "$tree/link"
mkfifo "$tree/fifo"
for i in 1 2 3 4 5 6 7 8 9; do echo "$i" > "$tree/dir/sub/subsub/file-$i"; done

n=0
for options in '-noI -noX' '-noI -noD -noF -noX' '-always-use-fragments' '-no-fragments -noI' '-tailends'; do
    for comp in gzip lz4 lzo xz zstd lzma; do
        n=$((n + 1))
        # shellcheck disable=SC2086 # the options are several words
        mksquashfs "$tree" "corpus/image/mksquashfs-$n" -comp $comp -b 4K $options \
            -nopad -noappend -quiet -no-progress > /dev/null
    done
done
for comp in gzip lz4 xz zstd; do
    gensquashfs -q -D "$tree" -c $comp -b 4K -e -f "corpus/image/gensquashfs-$comp"
    tar -C "$tree" -cf - . | tar2sqfs -q -c $comp -b 4K -f "corpus/image/tar2sqfs-$comp"
done

mica=${MICA:-../../target/release/mica}
if [ -x "$mica" ]; then # cargo build --release, for images and recipes of our own
    for comp in gzip lz4 xz zstd none; do
        "$mica" image pack "$tree" -o "corpus/image/mica-$comp" --comp $comp --block-size 4k \
            --no-header --no-sidecars 2> /dev/null > /dev/null
        cargo run --quiet --release --manifest-path ../Cargo.toml --example rebuild -- \
            "corpus/image/mica-$comp" "corpus/recipe/$comp" > /dev/null
    done
fi

printf '#!/usr/bin/env xarexec_fuse\nOFFSET="4096"\nUUID="e7c1"\nVERSION="1"\n#xar_stop\n' > corpus/xar/plain
{ cat corpus/xar/plain; yes '' | head -c $((4096 - $(wc -c < corpus/xar/plain))); cat corpus/image/mksquashfs-1; } \
    > corpus/image/xar
# A block of each compressor: one file, whose only block lies between the superblock (and options) and the inodes.
mkdir "$scratch/one"
head -c 3000 "$tree/dir/text" > "$scratch/one/file"
for comp in gzip lzma lzo xz lz4 zstd; do
    mksquashfs "$scratch/one" "$scratch/image" -comp $comp -no-fragments -noI -noX -nopad -noappend -quiet -no-progress > /dev/null
    python3 - "$scratch/image" corpus/codec/$comp << 'END'
import struct, sys
image = open(sys.argv[1], "rb").read()
flags, inodes = struct.unpack_from("<H", image, 24)[0], struct.unpack_from("<Q", image, 64)[0]
start = 96 + (2 + (struct.unpack_from("<H", image, 96)[0] & 0x7fff) if flags & 0x400 else 0)
open(sys.argv[2], "wb").write(image[20:21] + image[start:inodes])
END
done
echo "$(find corpus -type f | wc -l) files in $(pwd)/corpus"

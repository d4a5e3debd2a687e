#!/usr/bin/env bash
# mount-small.sh DIR [ROUNDS]: what a mount costs besides its data. Needs root; squashfs-tools and squashfs-tools-ng.
#
#   ready     `mica mount` until the mount can be used, process start included: 1 and 64 layers, 10 and 1,000,000 files
#   missing   stat of names that are nowhere, each for the first time: 1, 16 and 64 layers, mica and kernel overlayfs
#   requests  what the kernel asks the server for when something is done again
#   idle      64 mounts of one stack: memory of each server
#   memory    of a server after everything was read, with DIR/img/*.xar of mount.sh if they are there
#
# WORKS chooses a part. DIR keeps the images it makes. Medians; milliseconds, microseconds and MB as each line says.
set -euo pipefail
dir=$(realpath -m "${1:?usage: mount-small.sh DIR [ROUNDS]}"); rounds=${2:-11}
repo=$(cd "$(dirname "$0")/.." && pwd)
mica=${MICA:-${CARGO_TARGET_DIR:-$repo/target}/release/mica}
[ -x "$mica" ] || (cd "$repo" && cargo build --release -q)
read -ra works <<< "${WORKS:-ready missing requests idle memory}"
mkdir -p "$dir/small" && cd "$dir/small"
export MICA_STATE=$dir/small/state MICA_RUNTIME=$dir/small/runtime MICA_CACHE=$dir/small/cache

cleanup() {
  local m
  for m in "$dir"/small/{tree,kernel,idle/*,lower/*}; do ! mountpoint -q "$m" || umount -l "$m"; done
}
trap cleanup EXIT; cleanup; mkdir -p tree kernel

image() { mksquashfs "$1" "$2" -comp zstd -noappend -quiet -no-progress > /dev/null; }

# 64 layers that share a folder, each with names of its own; the last one is the base, with a file to read and a link.
prepare() {
  local i j
  for i in $(seq 64); do
    [ -e layer$i.sqfs ] && continue
    mkdir -p src/shared; for j in $(seq 20); do echo "$i" > src/shared/file$i.$j; done
    [ $i != 64 ] || { head -c 1M /dev/urandom > src/file; ln -s file src/link; }
    image src layer$i.sqfs; rm -r src
  done
  [ -e ten.sqfs ] || { mkdir src; touch src/{1..10}; image src ten.sqfs; rm -r src; }
  [ -e million.sqfs ] || python3 - <<'PY' | tar2sqfs -q -c zstd million.sqfs
import io, sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    for i in range(1_000_000):
        entry = tarfile.TarInfo(f"{i // 1000}/{i}"); entry.size = 0
        tar.addfile(entry, io.BytesIO())
PY
}

images() { local i; for i in $(seq $((65 - $1)) 64); do printf -- '--image layer%s.sqfs ' "$i"; done; }
mount_mica() { "$mica" mount "$@" tree > /dev/null; }
unmount() { "$mica" umount tree; }

ready() {
  local what flags
  for what in ten million 1 64; do
    case $what in ten | million) flags="--image $what.sqfs" ;; *) flags=$(images $what) ;; esac
    for _ in $(seq "$rounds"); do
      # shellcheck disable=SC2086
      python3 - "$mica" $flags <<'PY'
import subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.argv[1], "mount", *sys.argv[2:], "tree"], check=True, stdout=subprocess.DEVNULL)
print((time.perf_counter() - start) * 1000)
PY
      unmount
    done | median "mount to ready, $(echo $what | sed 's/^\([0-9]*\)$/\1 layers/; s/ten/1 image of 10 files/; s/million/1 image of 1,000,000 files/'), ms"
  done
}

median() { sort -n | awk -v what="$1" '{x[NR] = $1} END {printf "%s: %.2f (best %.2f)\n", what, x[int((NR + 1) / 2)], x[1]}'; }

absent() { # microseconds for each name, the first pass over a folder included
  python3 - "$1" <<'PY'
import os, sys, time
names = [f"{sys.argv[1]}/shared/absent{i}" for i in range(5000)]
start = time.perf_counter()
for name in names:
    try: os.stat(name)
    except FileNotFoundError: pass
print((time.perf_counter() - start) / len(names) * 1e6)
PY
}

missing() {
  local n i lower
  for n in 1 16 64; do
    for _ in $(seq "$rounds"); do
      # shellcheck disable=SC2046
      mount_mica $(images $n); absent tree; unmount
    done | median "missing name, first time, $n layers, mica, us"
    lower=
    for i in $(seq $((65 - n)) 64); do
      mkdir -p lower/$i; mount -t squashfs -o loop,ro layer$i.sqfs lower/$i; lower=$lower${lower:+:}lower/$i
    done
    mkdir -p empty
    for _ in $(seq "$rounds"); do
      mount -t overlay overlay -o "lowerdir=$lower:empty" kernel; absent kernel; umount kernel
    done | median "missing name, first time, $n layers, kernel overlayfs, us"
    for i in lower/*; do umount "$i"; done
  done
}

requests() {
  local flags=$1 name=$2
  # shellcheck disable=SC2086,SC2046
  mount_mica $flags $(images 64)
  python3 - "$mica" "$name" <<'PY'
import json, os, subprocess, sys
def asked():
    out = subprocess.run([sys.argv[1], "stats", "--json", "--mount", "tree"], capture_output=True, check=True)
    return json.loads(out.stdout)["requests"]
def total(counts): # what asking costs is not counted
    return sum(n for name, n in counts.items() if name not in ("ioctl", "forget"))
def quiet(f, *args):
    try: f(*args)
    except FileNotFoundError: pass
fd = os.open("tree/file", os.O_RDONLY)
works = {
    "stat": lambda: os.stat("tree/shared/file7.3"), "missing stat": lambda: quiet(os.stat, "tree/shared/absent"),
    "readlink": lambda: os.readlink("tree/link"), "read of a cached page": lambda: os.pread(fd, 4096, 8192),
    "open, read, close": lambda: open("tree/file", "rb").read(),
}
for what, work in works.items():
    work(); a = total(asked()); idle = total(asked()) - a
    before = total(asked())
    for _ in range(1000): work()
    print(f"requests per repeated {what}, {sys.argv[2]}: {(total(asked()) - before - idle) / 1000:g}")
PY
  unmount
}

server_of() { # the process that serves the only mount there is
  grep -la "serve-mount" /proc/[0-9]*/cmdline 2> /dev/null | while read -r f; do
    if tr '\0' ' ' 2> /dev/null < "$f" | grep -q "$MICA_STATE\|$dir/small"; then basename "$(dirname "$f")"; fi
  done
}

idle() {
  local i
  for i in $(seq 64); do
    mkdir -p idle/$i
    # shellcheck disable=SC2046
    "$mica" mount $(images 5) idle/$i > /dev/null
  done
  for i in $(server_of); do awk '/^Pss:/{print $2 / 1024}' /proc/$i/smaps_rollup; done | median "64 mounts, memory of each (its share of common pages), MB"
  for i in $(server_of); do awk '/^VmRSS:/{print $2 / 1024}' /proc/$i/status; done | median "64 mounts, memory of each (common pages in full), MB"
  "$mica" umount idle/*
}

memory() {
  local flags i pid
  if ls ../img/*.xar > /dev/null 2>&1; then flags=$(ls -r ../img/*.xar | sed 's/^/--image /'); else flags=$(images 64); fi
  # shellcheck disable=SC2086
  mount_mica $flags; tar cf - -C tree . | cat > /dev/null
  pid=$(server_of)
  awk '/^VmHWM/{print "memory of the server after everything was read, at most, MB: " $2 / 1024}' "/proc/$pid/status"
  unmount
}

prepare
for w in "${works[@]}"; do
  case $w in requests) requests "" "read-only"; requests "--upper $dir/small/upper" "with an upper"; rm -rf upper upper.work ;; *) "$w" ;; esac
done

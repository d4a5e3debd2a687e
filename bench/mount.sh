#!/usr/bin/env bash
# mount.sh DIR [ROUNDS]: our mount against what a user would run today, and a plain directory, on real trees.
#
#   plain    the layers copied into one directory
#   kernel   kernel squashfs per layer + kernel overlayfs
#   fuse     squashfuse_ll per layer + fuse-overlayfs
#   mica     one server, read-only; mica-rw: with an upper
#
# Builds the trees in DIR on first use: the machine's CPython, numpy + scipy + pandas, a small app. Needs root (it
# drops the page cache), pip, and from Debian squashfs-tools, squashfuse, fuse-overlayfs, fuse3.
# Systems alternate within a round; the table shows the median of each and its ratio to the kernel stack.
set -euo pipefail
dir=$(realpath -m "${1:?usage: mount.sh DIR [ROUNDS]}"); rounds=${2:-3}
repo=$(cd "$(dirname "$0")/.." && pwd)
read -ra systems <<< "${SYSTEMS:-plain kernel fuse mica mica-rw}" # a part of them, to save time
mica=${MICA_MOUNT:-${CARGO_TARGET_DIR:-$repo/target}/release/examples/mount}
[ -x "$mica" ] || (cd "$repo" && cargo build --release -q -p mica-mounter --example mount)
mkdir -p "$dir" && cd "$dir"

prepare() {
  local py; py=$(python3 -c 'import sys; print(sys.prefix)')
  mkdir -p layers/{L1,L2/site-packages,L3/app} img
  [ -e layers/L1/python ] || cp -a "$py" layers/L1/python
  [ -e layers/L2/site-packages/pandas ] ||
    pip install -q --no-warn-conflicts --target layers/L2/site-packages numpy scipy pandas
  echo 'import numpy, scipy.stats, pandas; print(pandas.DataFrame({"x": numpy.arange(3)}).x.sum())' > layers/L3/app/a.py
  for l in L1 L2 L3; do
    [ -e img/$l.sqfs ] || mksquashfs layers/$l img/$l.sqfs -comp zstd -Xcompression-level 3 -noappend -no-progress -quiet
  done
  [ -e plain/.done ] || { mkdir -p plain; for l in L1 L2 L3; do cp -a layers/$l/. plain/; done; touch plain/.done; }
}

mount_all() {
  local l fuse= kern=
  mkdir -p kernel fuse mica mica-rw up/{kern,fuse} wk/{kern,fuse}
  for l in L3 L2 L1; do
    mkdir -p mnt/{kern,fuse}/$l
    mount -t squashfs -o loop,ro img/$l.sqfs mnt/kern/$l
    squashfuse_ll img/$l.sqfs mnt/fuse/$l
    kern=${kern:+$kern:}mnt/kern/$l; fuse=${fuse:+$fuse:}mnt/fuse/$l
  done
  mount -t overlay overlay -o "lowerdir=$kern,upperdir=up/kern,workdir=wk/kern" kernel
  fuse-overlayfs -o "lowerdir=$fuse,upperdir=up/fuse,workdir=wk/fuse" fuse
  "$mica" mica img/L3.sqfs img/L2.sqfs img/L1.sqfs 2> mica.log &
  "$mica" --upper up/mica mica-rw img/L3.sqfs img/L2.sqfs img/L1.sqfs 2> mica-rw.log &
  until grep -q ready mica.log && grep -q ready mica-rw.log; do sleep 0.05; done
}

unmount_all() {
  local m
  # Absolute paths, and only mount points: umount(8) takes a bare word for a device's name too.
  for m in "$dir"/{mica,mica-rw,fuse,kernel} "$dir"/mnt/*/*; do ! mountpoint -q "$m" || umount -l "$m"; done
}

drop() { sync; echo 3 > /proc/sys/vm/drop_caches; }

# One figure: system, workload, seconds.
t() {
  local start end
  start=$(date +%s.%N); "${@:3}" > /dev/null 2> err || { echo "$1: $2 failed: $(tail -1 err)" >&2; return; }
  end=$(date +%s.%N)
  echo "$1|$2|$(awk "BEGIN{print $end-$start}")" >> results
}

walk() { find "$1/python" "$1/site-packages" "$1/app" -printf '%s\n'; }
import() {
  PYTHONDONTWRITEBYTECODE=1 PYTHONHOME=$1/python PYTHONPATH=$1/site-packages LD_LIBRARY_PATH=$1/python/lib \
    "$1/python/bin/python3" "$1/app/a.py"
}
read_all() { tar cf - -C "$1" python site-packages app | cat; }
random() {
  local big; big=$(find "$1/site-packages" "$1/python" -type f -size +8M -printf '%s %p\n' | sort -rn | head -1 | cut -d' ' -f2-)
  python3 - "$big" <<'PY'
import os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY); size = os.fstat(fd).st_size; random.seed(1)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
for _ in range(4000): os.pread(fd, 4096, random.randrange(size - 4096))
PY
}

writes() { # files made, written and removed
  python3 - "$1" <<'PY'
import os, sys
d = sys.argv[1] + "/bench-files"; os.mkdir(d)
for i in range(5000):
    with open(f"{d}/{i}", "w") as f: f.write("x" * 1000)
for i in range(5000): os.unlink(f"{d}/{i}")
os.rmdir(d)
PY
}
stream() { dd if=/dev/zero of="$1/bench-stream" bs=1M count=512 status=none; dd if="$1/bench-stream" of=/dev/null bs=1M status=none; rm "$1/bench-stream"; }

prepare; trap unmount_all EXIT; unmount_all; mount_all; rm -f results
for _ in $(seq "$rounds"); do
  for s in "${systems[@]}"; do
    for w in walk import read_all random; do
      drop; t $s "$w cold" $w $s; t $s "$w warm" $w $s
    done
    [ $s = mica ] || { t $s "5000 files made+removed" writes $s; t $s "512 MiB written+read" stream $s; }
  done
done
for s in mica mica-rw; do
  pid=$(pgrep -f -x "$mica.* $s img/L3.sqfs.*" | head -1)
  [ -z "$pid" ] || echo "memory of $s: $(awk '/VmHWM/{print $2/1024 " MB at most"}' "/proc/$pid/status")"
done
python3 - <<'PY'
import collections, statistics
figures, order = collections.defaultdict(list), []
for line in open("results"):
    system, work, seconds = line.split("|")
    figures[work, system].append(float(seconds))
    if work not in order: order.append(work)
systems = [s for s in ["plain", "kernel", "fuse", "mica", "mica-rw"] if any(s == k[1] for k in figures)]
print("| seconds (x kernel stack) | " + " | ".join(systems) + " |"); print("|---" * (len(systems) + 1) + "|")
for work in order:
    base = statistics.median(figures[work, "kernel"]) if figures[work, "kernel"] else None
    cells = []
    for s in systems:
        f = figures.get((work, s))
        cells.append(f"{statistics.median(f):.2f} ({statistics.median(f)/base:.2f})" if f and base else "-")
    print(f"| {work} | " + " | ".join(cells) + " |")
PY

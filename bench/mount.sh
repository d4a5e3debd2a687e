#!/usr/bin/env bash
# mount.sh DIR [ROUNDS]: our mount against what a user would run today, and a plain directory, on real trees.
#
#   plain     the layers copied into one directory
#   kernel    kernel squashfs per layer + kernel overlayfs
#   fuse      squashfuse_ll per layer + fuse-overlayfs
#   mica      one server, read-only, every chunk verified when it is first read; never: not verified
#   mica-rw   with an upper, as root: the kernel writes it by itself; served: through the server, as without root
#
# The layers are the folders DIR/layers/*, the last one topmost; without any they are made: the machine's CPython,
# numpy + scipy + pandas, a small app. Needs root (it drops the page cache), pip, and from Debian squashfs-tools,
# squashfuse, fuse-overlayfs, fuse3. Systems alternate within a round; the table shows the median of each and its
# ratio to the kernel stack. SYSTEMS and WORKS choose a part, to save time.
set -euo pipefail
dir=$(realpath -m "${1:?usage: mount.sh DIR [ROUNDS]}"); rounds=${2:-3}
repo=$(cd "$(dirname "$0")/.." && pwd)
read -ra systems <<< "${SYSTEMS:-plain kernel fuse mica never mica-rw served}"
read -ra works <<< "${WORKS:-walk import read_all random files stream}"
target=${CARGO_TARGET_DIR:-$repo/target}/release
server=${MICA_MOUNT:-$target/examples/mount} mica=${MICA:-$target/mica}
[ -x "$server" ] || (cd "$repo" && cargo build --release -q -p mica-mounter --example mount)
[ -x "$mica" ] || (cd "$repo" && cargo build --release -q)
mkdir -p "$dir" && cd "$dir"

make_layers() {
  mkdir -p layers/{L1,L2/site-packages,L3/app}
  cp -a "$(python3 -c 'import sys; print(sys.prefix)')" layers/L1/python
  pip install -q --no-warn-conflicts --target layers/L2/site-packages numpy scipy pandas
  echo 'import numpy, scipy.stats, pandas; print(pandas.DataFrame({"x": numpy.arange(3)}).x.sum())' > layers/L3/app/A.py
}

prepare() {
  local l
  [ -d layers ] || make_layers
  mkdir -p img plain
  for l in $(ls layers); do
    [ -e img/$l.sqfs ] || mksquashfs layers/$l/ img/$l.sqfs -comp zstd -Xcompression-level 3 -noappend -no-progress -quiet
    # With times clamped, CPython would take its compiled files for stale, and compile at every import.
    [ -e img/$l.xar ] || SOURCE_DATE_EPOCH=$(date +%s) "$mica" image pack layers/$l -o img/$l.xar --comp zstd --level 3 > pack.log 2>&1
  done
  [ -e plain/.done ] || { for l in $(ls layers); do cp -a layers/$l/. plain/; done; touch plain/.done; }
}

serve() { # system, flags…
  mkdir -p "$1"
  # shellcheck disable=SC2046
  "$server" "${@:2}" "$1" $(ls -r img/*.xar) 2> "$1.log" &
  until grep -q ready "$1.log"; do sleep 0.01; done
}

mount_all() {
  local l fuse= kern=
  mkdir -p kernel fuse up/{kern,fuse} wk/{kern,fuse}
  for l in $(ls -r layers); do
    mkdir -p mnt/{kern,fuse}/$l
    mount -t squashfs -o loop,ro img/$l.sqfs mnt/kern/$l
    squashfuse_ll img/$l.sqfs mnt/fuse/$l
    kern=${kern:+$kern:}mnt/kern/$l; fuse=${fuse:+$fuse:}mnt/fuse/$l
  done
  mount -t overlay overlay -o "lowerdir=$kern,upperdir=up/kern,workdir=wk/kern" kernel
  fuse-overlayfs -o "lowerdir=$fuse,upperdir=up/fuse,workdir=wk/fuse" fuse
  serve mica; serve never --verify never
  serve mica-rw --upper up/mica; serve served --passthrough false --upper up/served
}

unmount_all() {
  local m
  # Absolute paths, and only mount points: umount(8) takes a bare word for a device's name too.
  for m in "$dir"/{mica,never,mica-rw,served,fuse,kernel} "$dir"/mnt/*/*; do ! mountpoint -q "$m" || umount -l "$m"; done
}

# With the inodes the kernel forgets what servers told it, and tells them so: that is over after a moment.
drop() { sync; echo 3 > /proc/sys/vm/drop_caches; sleep 1; }

# One figure: system, workload, seconds.
t() {
  local start end
  start=$(date +%s.%N); "${@:3}" > /dev/null 2> err || { echo "$1: $2 failed: $(tail -1 err)" >&2; return; }
  end=$(date +%s.%N)
  echo "$1|$2|$(awk "BEGIN{print $end-$start}")" >> results
}

walk() { find "$1/python" "$1/site-packages" "$1/app" -printf '%s\n'; }
import() {
  local python=("$1/python/bin/python3" "$1/app/A.py")
  [ ! -e "$1/site-packages/tensorflow" ] || python=("$1/python/bin/python3" -c 'import tensorflow')
  PYTHONDONTWRITEBYTECODE=1 PYTHONHOME=$1/python PYTHONPATH=$1/app:$1/site-packages TF_CPP_MIN_LOG_LEVEL=3 \
    LD_LIBRARY_PATH=$1/python/lib "${python[@]}"
}
read_all() { tar cf - -C "$1" python site-packages app | cat; }
random() {
  python3 - "$1/$big" <<'PY'
import os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY); size = os.fstat(fd).st_size; random.seed(1)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
for _ in range(4000): os.pread(fd, 4096, random.randrange(size - 4096))
PY
}

files() { # made, written and removed
  python3 - "$1" <<'PY'
import os, sys
d = sys.argv[1] + "/bench-files"; os.mkdir(d)
for i in range(10000):
    with open(f"{d}/{i}", "w") as f: f.write("x" * 1000)
for i in range(10000): os.unlink(f"{d}/{i}")
os.rmdir(d)
PY
}
stream() { dd if=/dev/zero of="$1/bench-stream" bs=1M count=1024 status=none; dd if="$1/bench-stream" of=/dev/null bs=1M status=none; rm "$1/bench-stream"; }

prepare; trap unmount_all EXIT; unmount_all; mount_all; rm -f results
big=$(cd plain && find . -type f -size +8M -printf '%s %p\n' | sort -rn | head -1 | cut -d' ' -f2-)
for _ in $(seq "$rounds"); do
  for w in "${works[@]}"; do
    for s in "${systems[@]}"; do
      case $w-$s in
        files-mica | files-never | stream-mica | stream-never) ;;
        files-* | stream-*) drop ;;&
        files-*) t $s "10,000 files made, written, removed" files $s ;;
        stream-*) t $s "1 GiB written and read back" stream $s ;;
        *) drop; t $s "$w cold" $w $s; t $s "$w warm" $w $s ;;
      esac
    done
  done
done
for s in mica mica-rw; do
  pid=$(pgrep -f -x "$server.* $s img/.*" | head -1)
  [ -z "$pid" ] || echo "memory of $s: $(awk '/VmHWM/{print $2/1024 " MB at most"}' "/proc/$pid/status")"
done
python3 - "${systems[@]}" <<'PY'
import collections, statistics, sys
figures, order = collections.defaultdict(list), []
for line in open("results"):
    system, work, seconds = line.split("|")
    figures[work, system].append(float(seconds))
    if work not in order: order.append(work)
systems = sys.argv[1:]
print("| seconds (x kernel stack) | " + " | ".join(systems) + " |"); print("|---" * (len(systems) + 1) + "|")
for work in order:
    base = statistics.median(figures[work, "kernel"]) if figures[work, "kernel"] else None
    cells = []
    for s in systems:
        f = figures.get((work, s))
        cells.append(f"{statistics.median(f):.2f} ({statistics.median(f)/base:.2f})" if f and base else "-")
    print(f"| {work} | " + " | ".join(cells) + " |")
PY

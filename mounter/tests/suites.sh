#!/usr/bin/env bash
# suites.sh SUITE [DIR]: long judges of a mount with an upper, as root, in a scratch folder that is removed.
#
#   pjdfstest DIR    all checks of a built checkout of pjdfstest in DIR; needs prove (perl)
#   unionmount DIR   the --ov cases of a checkout of unionmount-testsuite in DIR, by a mount helper put into /sbin meanwhile,
#                    then again with uppers that become layers (--ov=3)
#   work             what people do: git, make, tar, rsync, rm -rf of a lower tree, sqlite in WAL mode, fio with verify
#                    (buffered, direct, mmap), pip; needs those programs
#   crash            the server killed in the middle of writing, ten times; the upper is intact
#
# FLAGS are passed to the server: FLAGS="--passthrough false" judges what users other than root get.
# Of unionmount-testsuite's list (58 cases, 359 tests) all apply but `rename-exdev`, which wants renames of directories to be
# refused. Its other ways to run are about the kernel's overlayfs: --ovov (an overlay as layer of another), --meta, --xino
# and --verify (marks and numbers by its mount options), --xdev (no redirects), --maxfs, --squashfs and --erofs (where
# its layers lie: ours are images always).
set -euo pipefail
suite=${1:?usage: suites.sh pjdfstest|unionmount|work|crash [DIR]}; given=$(realpath -m "${2:-/nowhere}")
repo=$(cd "$(dirname "$0")/../.." && pwd)
server=${MICA_MOUNT:-${CARGO_TARGET_DIR:-$repo/target}/release/examples/mount}
[ -x "$server" ] || (cd "$repo" && cargo build --release -q -p mica-mounter --example mount)
scratch=$(mktemp -d) pid=
cd "$scratch"; chmod 755 .; mkdir tree
cleanup() {
  cd /
  for mount in "$scratch/tree" "$scratch/base/m"; do ! mountpoint -q "$mount" || umount -l "$mount"; done
  [ "$suite" != unionmount ] || rm -f /sbin/mount.fuse.mica
  rm -rf "$scratch"
}
trap cleanup EXIT

start() { # images…
  : > log
  # shellcheck disable=SC2086
  "$server" ${FLAGS:-} --upper "$scratch/upper" tree "$@" 2> log & pid=$!
  until grep -q ready log; do kill -0 $pid || { cat log >&2; exit 1; }; sleep 0.01; done
}
stop() { umount tree; wait $pid; }
image() { mksquashfs "$1" "$1.sqfs" -comp zstd -noappend -quiet -no-progress > /dev/null; }

pjdfstest() {
  mkdir base; chmod 755 base; image base; start base.sqfs
  mkdir tree/w; cd tree/w; prove -q -r "$given/tests"
}

unionmount() {
  # What mount(8) runs for `-t fuse.mica SOURCE DIR -o lowerdir=A:B,upperdir=U,workdir=W`: each lower folder as an image.
  cat > /sbin/mount.fuse.mica <<HELPER
#!/bin/bash
set -e
for word; do case \$word in -o) ;; *lowerdir=*) options=\$word ;; esac; done
value() { tr , '\n' <<< "\${options#-o}" | sed -n "s/^\$1=//p"; }
images=()
for lower in \$(value lowerdir | tr : ' '); do
  image=\$(mktemp "$scratch/XXXXXX.sqfs"); mksquashfs "\$lower" "\$image" -noappend -quiet -no-progress > /dev/null
  images+=("\$image")
done
log=\$(mktemp "$scratch/XXXXXX.log")
setsid "$server" --upper "\$(value upperdir)" "\$2" "\${images[@]}" 2> "\$log" < /dev/null > /dev/null &
until grep -q ready "\$log"; do sleep 0.01; done
HELPER
  chmod 755 /sbin/mount.fuse.mica
  mkdir base
  cd "$given"; export UNIONMOUNT_BASEDIR=$scratch/base
  for how in --ov --ov=3; do ./run $how --fuse=mica --samefs; done
}

work() {
  mkdir -p base/{src,old/deep}; seq 200000 > base/src/numbers; cp -a /usr/share/doc base/old/deep/; head -c 40M /dev/urandom > base/big
  printf '%s\n' 'all: $(addsuffix .o,$(basename $(wildcard *.c)))' > base/src/Makefile
  for i in $(seq 40); do echo "int f$i(int x) { return x * $i; }" > base/src/f$i.c; done
  image base; start base.sqfs
  (cd tree/src && git init -q && git add -A && git -c user.name=x -c user.email=x@x commit -qm first && git clone -q . ../clone &&
    echo more >> ../clone/numbers && [ "$(git -C ../clone status --porcelain)" = " M numbers" ] && git fsck --strict)
  make -s -j4 -C tree/src && [ "$(ls tree/src/*.o | wc -l)" = 40 ]
  tar c -C /usr/include . | tar x -C tree/old && diff -r /usr/include tree/old -x deep
  rsync -a /usr/include/ tree/rsync/ && diff -r /usr/include tree/rsync
  rm -rf tree/old && [ ! -e tree/old ]
  sqlite3 tree/db 'pragma journal_mode=wal; create table t(a, b);' > /dev/null
  for i in 1 2 3 4; do
    for n in $(seq 25); do echo "pragma busy_timeout=20000; insert into t values($i, $n);"; done | sqlite3 tree/db > /dev/null & jobs[$i]=$!
  done
  wait "${jobs[@]}"
  [ "$(sqlite3 tree/db 'select count(*) from t; pragma integrity_check;' | tr '\n' ' ')" = "100 ok " ]
  for how in "--ioengine=psync" "--ioengine=psync --direct=1" "--ioengine=mmap"; do
    for file in new big; do # big is copied up in part
      # shellcheck disable=SC2086
      fio --name=x --filename=tree/$file --size=32M --rw=randrw --bs=4k-64k --verify=crc32c --verify_fatal=1 $how > fio.log || { cat fio.log; exit 1; }
    done
  done
  python3 -m pip install -q --target tree/pip --no-deps packaging && PYTHONPATH=tree/pip python3 -c 'import packaging.version'
  (cd tree && find . -type f -not -path './pip/*' -print0 | sort -z | xargs -0 sha256sum) > before
  stop; start base.sqfs
  (cd tree && sha256sum --quiet -c ../before)
}

crash() {
  mkdir base; head -c 8M /dev/urandom > base/big; image base
  for round in $(seq 10); do
    [ $round != 6 ] || FLAGS="${FLAGS:-} --complete-after 0" # killed while it completes files
    start base.sqfs
    python3 - tree "$round" <<'PY' &
import os, sys
tree, round = sys.argv[1:]
done = open("done." + round, "w")
for i in range(100000):
    with open(f"{tree}/f{round}.{i}", "w") as f: f.write("x" * 5000)
    os.rename(f"{tree}/f{round}.{i}", f"{tree}/g{round}.{i}")
    with open(f"{tree}/big", "r+b") as f: f.seek(i * 7001 % 8000000); f.write(b"%08d" % i)
    done.write(f"{i}\n"); done.flush()
PY
    until [ -s done.$round ]; do sleep 0.01; done; sleep 0.$((RANDOM % 5 + 1))
    kill -9 $pid; wait %?python3 2> /dev/null || true; wait $pid 2> /dev/null || true; umount -l tree
    start base.sqfs # what was answered is there
    python3 - tree "$round" base/big <<'PY'
import os, sys
tree, round, base = sys.argv[1:]
want = bytearray(open(base, "rb").read()); last = -1
for r in range(1, int(round) + 1):
    last = -1
    for line in open(f"done.{r}"):
        last = int(line); at = last * 7001 % 8000000; want[at:at + 8] = b"%08d" % last
        assert os.stat(f"{tree}/g{r}.{last}").st_size == 5000
    at = (last + 1) * 7001 % 8000000 # the one that was under way may be there or not
    with open(f"{tree}/big", "rb") as f: f.seek(at); want[at:at + 8] = f.read(8)
assert open(f"{tree}/big", "rb").read() == want, "the large file"
PY
    stop; [ -s upper/big ] && ! getfattr -m overlay.metacopy upper/big | grep -q metacopy
  done
}

"$suite"
echo "$suite: passed"

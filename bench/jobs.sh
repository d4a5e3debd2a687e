#!/bin/sh
# The command `mica` from start to end of a job, against bwrap and runc, in turn in one sitting: median and 99th percentile
# in milliseconds. `mica run` mounts a stack of six images each time; the others get a folder that is there.
# Then: memory of a supervisor with its mount, time from a job's output to `mica logs -f`, and 100 jobs at once: the
# processor time of everything they start, against bwrap alone, and against bwrap on such a mount of its own, made by
# `mica mount`, or by squashfuse_ll for each image and fuse-overlayfs.
#
# usage: bench/jobs.sh [RUNS]     (default 200; as root; needs perl, cc, bwrap, runc, squashfuse_ll and fuse-overlayfs)
set -eu

runs=${1:-200}
here=$(cd "$(dirname "$0")/.." && pwd)
cargo build --quiet --release --manifest-path "$here/Cargo.toml"
target=${CARGO_TARGET_DIR:-$here/target}
[ "$(id -u)" = 0 ] || { echo "bench/jobs.sh: needs root, for runc" >&2; exit 1; }

work=$(mktemp -d)
trap 'cleanup' EXIT INT TERM
cleanup() { mica rm -f idle idle2 idle3 idle4 idle5 idle6 idle7 idle8 idle9 idle10 talker >/dev/null 2>&1 || true; runc delete --force bench-exec 2>/dev/null || true; rm -rf "$work"; }
chmod 755 "$work"
cp "$target/release/mica" "$work/"
PATH=$work:$PATH
export MICA_CACHE="$work/root/cache" MICA_STATE="$work/root/state" MICA_RUNTIME="$work/root/run"

mkdir -p "$work/tree/proc" "$work/tree/sys" "$work/tree/dev" "$work/tree/tmp" "$work/tree/etc"
echo 'int main(void) { return 0; }' >"$work/true.c"
cc -static -O2 "$work/true.c" -o "$work/tree/true"
echo '#include <unistd.h>
int main(void) { for (;;) pause(); }' >"$work/wait.c"
cc -static -O2 "$work/wait.c" -o "$work/tree/wait"
stack=
for layer in 1 2 3 4 5; do
    mkdir -p "$work/layer/lib$layer" && echo "$layer" >"$work/layer/lib$layer/f"
    mica image pack "$work/layer" -o "$work/$layer.xar" >/dev/null 2>&1
    rm -r "$work/layer" && stack="$stack --image $work/$layer.xar"
done
mica image pack "$work/tree" -o "$work/base.xar" >/dev/null 2>&1
stack="$stack --image $work/base.xar --rootfs"

script() { printf '#!/bin/sh\n%s\n' "$2" >"$work/$1"; chmod 755 "$work/$1"; }
script mica-run "exec mica run --rm $stack -- /true"
script mica-limits "exec mica run --rm --memory 256m --pids-limit 100 $stack -- /true"
script mica-exec "exec mica exec idle /true"
bwrap() {
    echo "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup --die-with-parent --new-session \\
    --bind $1 / --proc /proc --dev /dev --ro-bind /sys /sys --tmpfs /tmp /true"
}
script bwrap-run "exec $(bwrap "$work/tree")"
script runc-run "cd $work/bundle && exec runc run bench-\$\$"
script runc-exec "exec runc exec bench-exec /true"
mkdir -p "$work/65534" && chown 65534:65534 "$work/65534"

# An ordinary user may not see the checkout.
cp "$here/bench/starts.pl" "$work/measure.pl"
mkdir "$work/bundle"
(cd "$work/bundle" && runc spec)
perl -0pi -e 's#"terminal": true#"terminal": false#; s#"sh"#"/true"#; s#"path": "rootfs"#"path": "'"$work"'/tree"#;
    s#"resources": \{#"resources": {"memory": {"limit": 268435456}, "pids": {"limit": 100},#' "$work/bundle/config.json"

echo "as an ordinary user:"
env HOME="$work/65534" MICA_CACHE="$work/65534/cache" MICA_STATE="$work/65534/state" MICA_RUNTIME="$work/65534/run" \
    setpriv --reuid 65534 --regid 65534 --clear-groups perl "$work/measure.pl" "$runs" "$work/mica-run" "$work/bwrap-run"
echo "as root, with limits on memory and processes:"
perl "$work/measure.pl" "$runs" "$work/mica-limits" "$work/runc-run"

echo "a further program in a running job:"
# shellcheck disable=SC2086
mica run -d --name idle $stack -- /wait >/dev/null
for number in 2 3 4 5 6 7 8 9 10; do
    # shellcheck disable=SC2086
    mica run -d --name "idle$number" $stack -- /wait >/dev/null
done
sed 's#"/true"#"/wait"#' "$work/bundle/config.json" >"$work/config" && mv "$work/config" "$work/bundle/config.json"
(cd "$work/bundle" && runc run --detach bench-exec >/dev/null 2>&1 </dev/null)
perl "$work/measure.pl" "$runs" "$work/mica-exec" "$work/runc-exec"

pss() {
    for number in "$@"; do
        pid=$(mica inspect "idle$number" | sed -n 's/.*"supervisor": \([0-9]*\).*/\1/p')
        sed -n 's/^Pss: *//p' "/proc/$pid/smaps_rollup"
    done | awk '{ sum += $1 } END { printf "%.1f MB", sum / NR / 1024 }'
}
# Nothing happens for a while, as with an idle job.
sleep 2
echo "memory of a supervisor with its mount, proportional set, by each of ten: $(pss '' 2 3 4 5 6 7 8 9 10)"
for number in 2 3 4 5 6 7 8 9 10; do mica rm -f "idle$number" >/dev/null; done
sleep 2
echo "by the only one: $(pss '')"

mica image pack /etc/ssl -o "$work/any.xar" >/dev/null 2>&1
mica run -d --name talker --image "$work/any.xar" -- perl -MTime::HiRes=time,sleep -e \
    '$| = 1; sleep 1; for (1 .. 100) { print time, "\n"; sleep 0.02 }' >/dev/null
echo "from a job's output to \`mica logs -f\`:"
mica logs -f talker | perl -MTime::HiRes=time -ne 'push @t, (time - $_) * 1000;
    END { @t = sort { $a <=> $b } @t; printf "  median %.2f ms  p99 %.2f ms  of %d lines\n", @t[$#t * 0.5, $#t * 0.99], scalar @t }'

echo "100 at once, processor time:"
# Each in a folder of its own, made beforehand.
folders=$work/hundred
for number in $(seq 100); do
    mkdir -p "$folders/$number/tree" "$folders/$number/upper" "$folders/$number/work"
    for layer in 1 2 3 4 5 base; do mkdir "$folders/$number/$layer"; done
done
script bwrap-mica-mount "mica mount ${stack% --rootfs} --upper $folders/\$1/upper $folders/\$1/tree >/dev/null
$(bwrap "$folders/\$1/tree")
mica umount $folders/\$1/tree"
script bwrap-overlay "cd $folders/\$1
for layer in 1 2 3 4 5 base; do squashfuse_ll -o offset=4096 $work/\$layer.xar \$layer; done
fuse-overlayfs -o lowerdir=1:2:3:4:5:base,upperdir=upper,workdir=work tree 2>/dev/null
$(bwrap "$folders/\$1/tree")
umount -l tree 1 2 3 4 5 base"
# What is orphaned becomes this process's child (PR_SET_CHILD_SUBREAPER), so that nothing goes uncounted.
cat >"$work/hundred.pl" <<'PERL'
my $command = shift;
syscall(157, 36, 1, 0, 0, 0) == 0 or die "prctl: $!\n";
for my $number (1 .. 100) { if (!fork) { exec $command, $number } }
1 while wait != -1;
my ($user, $system, $children, $of_system) = times;
printf "  %-16s %.2f s\n", $command =~ m{([^/]*)$}, $children + $of_system;
PERL
for command in mica-run bwrap-run bwrap-mica-mount bwrap-overlay; do
    # A folder that was written to isn't the same.
    rm -rf "$folders"/*/upper/* "$folders"/*/work/*
    perl "$work/hundred.pl" "$work/$command"
done

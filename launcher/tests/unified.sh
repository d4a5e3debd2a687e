#!/bin/sh
# Runs the limits tests on a host with cgroup version 2 alone: Linux 6.1 in a virtual machine under software emulation.
# As root, as an ordinary user without delegation, and as an ordinary user with a delegated cgroup.
#
# usage: unified.sh TEST-BINARY      (the binary `jobs`, as built by `cargo test -p mica-launcher --no-run`)
# needs: apt-get install --no-install-recommends qemu-system-x86 linux-image-cloud-amd64 busybox-static
set -eu

die() { echo "unified.sh: $*" >&2; exit 1; }
[ $# -eq 1 ] || die "usage: unified.sh TEST-BINARY"
for tool in qemu-system-x86_64 cpio ldd; do
    command -v $tool >/dev/null || die "needs $tool"
done
kernel=$(ls /boot/vmlinuz-*cloud-amd64 2>/dev/null | tail -n 1)
[ -n "$kernel" ] || die "needs a kernel: linux-image-cloud-amd64"
busybox=$(command -v busybox) || die "needs busybox-static"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
root=$work/root
mkdir -p "$root/usr/bin" "$root/usr/lib64" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/etc" "$root/run" "$root/tests"
ln -s usr/bin "$root/bin"; ln -s usr/bin "$root/sbin"; ln -s usr/lib "$root/lib"; ln -s usr/lib64 "$root/lib64"
mkdir -p "$root/usr/lib"
cp "$busybox" "$root/usr/bin/busybox"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"

# The tests use the host's own tools, with their libraries.
install_program() {
    cp "$1" "$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root/usr$(dirname "${library#/usr}")"
        cp -n "$library" "$root/usr${library#/usr}"
    done
}
for tool in sh sleep dd date nproc grep mkdir touch cat setsid ps env hostname id; do
    install_program "$(readlink -f "$(command -v $tool)")" "$root/usr/bin/$tool"
done
install_program "$1" "$root/tests/jobs"

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
# The first root of a machine can't be pivoted away from: move into another one.
if [ ! -e /moved ]; then
    /bin/busybox mkdir /new
    /bin/busybox mount -t tmpfs -o mode=755 new /new
    for entry in bin sbin lib lib64 usr etc tests proc sys dev tmp run init; do
        /bin/busybox cp -a /$entry /new/
    done
    /bin/busybox touch /new/moved
    exec /bin/busybox switch_root /new /init
fi
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
$bb mkdir -p /dev/pts /dev/shm /dev/mqueue
$bb mount -t devpts pts /dev/pts
$bb mount -t mqueue mqueue /dev/mqueue
$bb mount -t cgroup2 -o nsdelegate cgroup /sys/fs/cgroup
$bb chmod 1777 /tmp
export PATH=/usr/bin RUST_BACKTRACE=0
$bb uname -r
/tests/jobs limits:: || failed=yes
# The same, by an ordinary user to whom a group was handed over.
group=/sys/fs/cgroup/delegated
echo "+cpu +memory +pids +cpuset +io" >/sys/fs/cgroup/cgroup.subtree_control
$bb mkdir $group
$bb chown -R nobody $group
(
    echo 0 >$group/cgroup.procs
    # In place of this shell: root may not leave a process of its own in the group.
    exec env MICA_TEST_DELEGATED=yes $bb su -s /bin/sh nobody -c "exec /tests/jobs limits::"
) || failed=yes
[ -n "${failed:-}" ] && echo "unified: FAILED" || echo "unified: ok"
$bb poweroff -f
INIT
chmod 755 "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$work/initrd"

timeout 300 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 2048 -smp 2 -nographic -no-reboot -nic none \
    -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" </dev/null | tee "$work/log"
grep -q '^unified: ok' "$work/log" || die "the tests failed"

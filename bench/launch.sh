#!/bin/sh
# Time from start to end of a confined static `true`, in turn by: this launcher, bwrap with the same namespaces, runc, and
# plain fork and exec. Median and 99th percentile in milliseconds, and the ratio of the medians.
#
# usage: bench/launch.sh [RUNS]     (default 200; needs perl, cc, bwrap and, as root, runc)
# As root it measures root and, by setpriv, an ordinary user.
set -eu

runs=${1:-200}
here=$(cd "$(dirname "$0")/.." && pwd)
cargo build --quiet --release --manifest-path "$here/Cargo.toml" -p mica-launcher --examples
target=${CARGO_TARGET_DIR:-$here/target}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
chmod 755 "$work"
mkdir -p "$work/tree/proc" "$work/tree/sys" "$work/tree/dev" "$work/tree/tmp"
echo 'int main(void) { return 0; }' >"$work/true.c"
cc -static -O2 "$work/true.c" -o "$work/tree/true"
echo '#include <unistd.h>
int main(void) { for (;;) pause(); }' >"$work/wait.c"
cc -static -O2 "$work/wait.c" -o "$work/tree/wait"
cp "$target/release/examples/launch" "$target/release/examples/exec" "$work/"

cat >"$work/bwrap" <<SH
#!/bin/sh
exec bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup --die-with-parent --new-session \\
    --bind $work/tree / --proc /proc --dev /dev --ro-bind /sys /sys --tmpfs /tmp /true
SH
cat >"$work/none" <<SH
#!/bin/sh
exec $work/tree/true
SH
cat >"$work/mica" <<SH
#!/bin/sh
exec $work/launch $work/tree /true
SH
cat >"$work/mica-limits" <<SH
#!/bin/sh
export MICA_MEMORY=268435456 MICA_PIDS=100
exec $work/launch $work/tree /true
SH
cat >"$work/runc" <<SH
#!/bin/sh
cd $work/bundle && exec runc run bench-\$\$
SH
chmod 755 "$work"/bwrap "$work"/none "$work"/mica "$work"/mica-limits "$work"/runc

# An ordinary user may not see the checkout.
cp "$here/bench/starts.pl" "$work/measure.pl"
if [ "$(id -u)" = 0 ]; then
    mkdir "$work/bundle"
    (cd "$work/bundle" && runc spec)
    perl -0pi -e 's#"terminal": true#"terminal": false#; s#"sh"#"/true"#; s#"path": "rootfs"#"path": "'"$work"'/tree"#;
        s#"resources": \{#"resources": {"memory": {"limit": 268435456}, "pids": {"limit": 100},#' "$work/bundle/config.json"
    echo "as root:"
    perl "$work/measure.pl" "$runs" "$work/mica" "$work/bwrap" "$work/none"
    echo "as root, with limits on memory and processes:"
    perl "$work/measure.pl" "$runs" "$work/mica-limits" "$work/runc"
    echo "a further program in a running job, as root:"
    "$work/exec" "$work/tree" /true /wait "$runs"
    sed 's#"/true"#"/wait"#' "$work/bundle/config.json" >"$work/config" && mv "$work/config" "$work/bundle/config.json"
    (cd "$work/bundle" && runc run --detach bench-exec >/dev/null 2>&1 </dev/null)
    printf '#!/bin/sh\nexec runc exec bench-exec /true\n' >"$work/runc-exec"
    chmod 755 "$work/runc-exec"
    perl "$work/measure.pl" "$runs" "$work/runc-exec" "$work/none"
    runc delete --force bench-exec
    echo "as an ordinary user:"
    setpriv --reuid 65534 --regid 65534 --clear-groups perl "$work/measure.pl" "$runs" "$work/mica" "$work/bwrap" "$work/none"
else
    echo "as an ordinary user:"
    perl "$work/measure.pl" "$runs" "$work/mica" "$work/bwrap" "$work/none"
fi

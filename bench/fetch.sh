#!/bin/sh
# Pull of five layers over loopback HTTP into an empty cache, against what bounds it (one TCP stream by curl, writing
# and syncing the same bytes by dd).
#
# usage: bench/fetch.sh [MEGABYTES] [RUNS]     (default 1000 in all, 3 runs; needs curl, python3)
# Median seconds; for the pull also the peak memory of the process.
set -eu

size=${1:-1000}
runs=${2:-3}
here=$(cd "$(dirname "$0")/.." && pwd)
cargo build --quiet --release --manifest-path "$here/Cargo.toml" -p mica-fetcher --example transfer
transfer=${CARGO_TARGET_DIR:-$here/target}/release/examples/transfer

work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" || :; rm -rf "$work"' EXIT INT TERM
cd "$work"

# Files as of a stack: half of it in one layer.
head -c "$((size * 500000))" /dev/urandom >base.img
head -c "$((size * 250000))" /dev/urandom >libs.img
head -c "$((size * 200000))" /dev/urandom >deps.img
head -c "$((size * 49000))" /dev/urandom >tool.img
head -c "$((size * 1000))" /dev/urandom >app.img
"$transfer" push "$work/registry" stack@v1 base.img libs.img deps.img tool.img app.img >/dev/null
"$transfer" serve "$work/registry" 127.0.0.1:0 >address &
server=$!
while ! test -s address; do sleep 0.05; done
url=$(cat address)

# Runs a command several times: median seconds, largest peak memory in MB.
cat >measure.py <<'PY'
import resource, statistics, subprocess, sys, time
runs, prepare, command = int(sys.argv[1]), sys.argv[2], sys.argv[3]
times = []
for _ in range(runs):
    subprocess.run(prepare, shell=True, check=True)
    start = time.monotonic()
    subprocess.run(["sh", "-c", "exec " + command], check=True, stdout=subprocess.DEVNULL)
    times.append(time.monotonic() - start)
print("%.3f %d" % (statistics.median(times), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
PY
row() {
    set -- "$1" $(python3 measure.py "$runs" "$2" "$3")
    awk -v name="$1" -v s="$2" -v mb="$3" -v total="$size" 'BEGIN { printf "%-44s %8.3f s %7.0f MB/s %5d MB\n", name, s, total / s, mb }'
}

hex=$(cd registry/blobs/blake3 && ls -S */* | head -1)
blob=$url/blobs/blake3/$hex
row "curl of the largest, twice: one TCP stream" true "curl -s --noproxy * -o /dev/null $blob --next -s --noproxy * -o /dev/null $blob"
row "dd of as many bytes, synced" "rm -f out" "dd if=/dev/zero of=out bs=1M count=$size conv=fsync status=none"
rm -f out
row "mica pull, empty cache" "rm -rf cache" "$transfer pull $url stack cache"
row "mica pull, all cached" true "$transfer pull $url stack cache"

#!/bin/sh
# Fetching a stack over loopback: against what bounds it, against others, after small changes, lazily.
#
#   bench/fetch.sh [-r RUNS] [-l] LAYER…
#
# Each LAYER is a tree and becomes an image with mica's defaults; the last one counts as the app, the largest image is the one that a
# line is changed in. Medians of RUNS (3). "CPU" is that of the client alone, "MB" its memory at the peak, "on the wire" what the loopback
# device of a network namespace of its own counted, headers included. Bounds: one TCP stream (curl), BLAKE3 on one thread, writing and
# syncing (dd). With -l also `import numpy` in a job, over 100 Mbit/s and 10 ms each way (bench/slow.py): LAYERs must then hold python/bin/python3 and
# site-packages/numpy. Needs root, curl, python3, casync, skopeo, docker-registry.
set -eu

runs=3 lazy=
while getopts r:l option; do
    case $option in
    r) runs=$OPTARG ;;
    l) lazy=1 ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n 's/^# \{0,1\}//;4p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}/release
if [ -z "${OWN_NETWORK:-}" ]; then
    for tool in curl python3 casync skopeo docker-registry ip unshare; do
        command -v $tool >/dev/null || { echo "$tool is missing" >&2; exit 1; }
    done
    cargo build --quiet --release --manifest-path "$here/Cargo.toml" -p mica-cli -p mica-fetcher --bins --example transfer
    [ -z "$lazy" ] || set -- -l "$@"
    OWN_NETWORK=1 exec unshare --net "$0" -r "$runs" "$@"
fi
ip link set lo up
mica=$target/mica transfer=$target/examples/transfer
work=$(mktemp -d)
servers=
trap 'for s in $servers; do kill $s || :; done; rm -rf "$work"' EXIT INT TERM
cd "$work"

# Runs a command several times: median seconds and seconds of CPU, peak memory in MB, bytes on the wire.
cat >measure.py <<'PY'
import resource, statistics, subprocess, sys, time

def wire():
    return int(next(l for l in open("/proc/net/dev") if "lo:" in l).split(":")[1].split()[0])

def cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

seconds, cpus, moved = [], [], 0
for _ in range(int(sys.argv[1])):
    subprocess.run(sys.argv[2], shell=True, check=True)
    usage, bytes, start = cpu(), wire(), time.monotonic()
    subprocess.run(["sh", "-c", sys.argv[3]], check=True, stdout=subprocess.DEVNULL)
    seconds.append(time.monotonic() - start)
    cpus.append(cpu() - usage)
    moved = wire() - bytes
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print("%.3f %.2f %d %d" % (statistics.median(seconds), statistics.median(cpus), peak, moved))
PY
row() {
    set -- "$1" $(python3 measure.py "$runs" "$2" "$3")
    printf '%-46s %8s s %7s CPU %5s MB %12s on the wire\n' "$@"
}

# Two further versions: a line more in the app, and in the largest layer.
mkdir v1 v2 v3
number=0
for tree in "$@"; do
    number=$((number + 1))
    "$mica" image pack "$tree" -o v1/L$number.xar >/dev/null 2>&1
done
largest=$(ls -S v1/*.xar | head -1)
largest=$(basename "$largest" .xar)
changed() { # TREE IMAGE FOLDER: the image again, after a line was added to one of the tree's files
    rm -rf tree && cp -al "$1" tree
    file=$(find tree -type f -name '*.py' | sort | head -1)
    cp "$file" file && echo '# one more' >>file && mv file "$file"
    cp v1/* "$3" && "$mica" image pack tree -o "$3/$2.xar" >/dev/null 2>&1
    rm -rf tree
}
eval "changed \"\${$#}\" L$# v2"
eval "changed \"\${${largest#L}}\" $largest v3"
for version in v1 v2 v3; do
    "$transfer" push "$work/registry" stack@$version $version/*.xar >/dev/null
done
sizes=$(cat v1/*.xar | wc -c)
echo "$# layers, $((sizes / 1000000)) MB"
"$transfer" serve "$work/registry" 127.0.0.1:0 >address &
servers="$servers $!"
while ! test -s address; do sleep 0.05; done
url=$(cat address)
blobs=$("$transfer" layers "$work/registry" stack@v1 | sed "s,^,$url/,")

row "one TCP stream" true "curl -s --noproxy '*' $(echo "$blobs" | sed 's/$/ -o \/dev\/null/' | tr '\n' ' ')"
row "BLAKE3" true "$transfer hash v1/*.xar"
row "writing and syncing" "rm -f out" "cat v1/*.xar | dd of=out bs=1M conv=fsync status=none"
rm -f out
row "mica pull" "rm -rf cache; sync" "$transfer pull $url stack@v1 cache"
row "mica pull, all there" true "$transfer pull $url stack@v1 cache"
# The copy of the cache has to be on the disk first: it is not what is measured.
row "mica pull, a line in the app" "rm -rf c2; cp -a cache c2; sync" "$transfer pull $url stack@v2 c2"
row "mica pull, a line in the largest layer" "rm -rf c2; cp -a cache c2; sync" "$transfer pull $url stack@v3 c2"
disk() { du -s --block-size=1 "$1" | cut -f 1; }
echo "disk bytes of that further version: $(($(disk c2) - $(disk cache)))"
rm -rf c2

printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:5055, secret: x}\n' "$work/oci" >oci.yml
docker-registry serve oci.yml >/dev/null 2>&1 &
servers="$servers $!"
while ! curl -s --noproxy '*' -o /dev/null http://127.0.0.1:5055/v2/; do sleep 0.05; done
"$transfer" push oci://127.0.0.1:5055/x stack@v1 v1/*.xar >/dev/null
row "docker-registry: mica pull" "rm -rf c2; sync" "$transfer pull oci://127.0.0.1:5055/x stack@v1 c2"
row "docker-registry: skopeo copy" "rm -rf copy; sync" "skopeo copy -q --src-tls-verify=false docker://127.0.0.1:5055/x/stack:v1 dir:copy && sync -f copy"
rm -rf c2 copy oci
for tree in "$@"; do
    number=$((number + 1))
    casync make --store=store $number.caidx "$tree" >/dev/null
done
row "casync extract, from a local store" "rm -rf trees; mkdir trees; sync" "for index in *.caidx; do casync extract --store=store \$index trees/\$index; done; sync -f trees"
rm -rf trees store

[ -n "$lazy" ] || exit 0
python3 "$here/bench/slow.py" "${url#http://127.0.0.1:}" >slow &
servers="$servers $!"
while ! test -s slow; do sleep 0.05; done
import="PYTHONPATH=\$(echo /packages/*/site-packages) exec /packages/*/python/bin/python3 -c \"import numpy\""
export MICA_CACHE="$work/lazy" MICA_STATE="$work/state" MICA_RUNTIME="$work/run"
MICA_REGISTRY=http://127.0.0.1:$(cat slow)
export MICA_REGISTRY
runs=1
# What passes the slow way is counted twice, before and behind it.
row "slowly: pull, then import numpy" "rm -rf lazy" "$mica run --rm --network host stack@v1 -- /bin/sh -c '$import'"
row "slowly: import numpy, lazily" "rm -rf lazy" "$mica run --rm --network host --lazy stack@v1 -- /bin/sh -c '$import'"
python3 - <<'PY'
import glob, json
pairs = [pair for f in glob.glob("lazy/touched/*") for pair in json.loads(open(f).read().split("\n", 1)[1])]
print("chunks that were touched: %d, %d bytes" % (len(pairs), sum(end - start for start, end in pairs)))
PY

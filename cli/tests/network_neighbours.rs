//! What a job on a network can do to its neighbours, to the host, and to whoever else uses the state directory: nothing.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::time::{Duration, Instant};

use common::net::Host;
use common::wait_for;

/// Tries to hold up whoever writes the file that it is told about, for ever, and says what came of it.
const LEASE: &str = r#"
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
taken = []
for path in sys.argv[1:]:
    try:
        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # The others are written once, before the job is there.
        if path == "/etc/hosts": taken.append(path)
    except OSError: pass
    try: open(path, "a").write("10.0.0.1 bank" * 1000000); taken.append("wrote " + path)
    except OSError: pass
    try: os.chmod(path, 0o666); taken.append("changed " + path)
    except OSError: pass
print("taken", taken, flush=True)
time.sleep(1000)
"#;

#[test]
fn a_job_holds_up_nobody_by_its_files_and_changes_none() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    let names = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
    for (name, flag) in [("one", "--cap-add=CHOWN"), ("two", "--privileged")] {
        let run =
            ["run", "-d", "--name", name, "--network", "back", "--add-host", "x:10.1.1.1", flag];

        let job = ["--image", "app.xar", "--", "python3", "-c", LEASE];
        host.ok(&[&run[..], &job, &names].concat());
        wait_for(|| host.ok(&["logs", name]).stdout.contains("taken"));
        assert_eq!(host.ok(&["logs", name]).stdout, "taken []\n", "{name}");
    }
    // A mount that the job's own capabilities can't change.
    let remount = "mount -o remount,bind,rw /etc/hosts || umount /etc/hosts; echo 10.0.0.1 bank >> /etc/hosts";
    host.fails(&["exec", "two", "sh", "-c", remount]);
    let begun = Instant::now();
    host.ok(&["run", "--rm", "--network", "back", "--image", "app.xar", "true"]);
    host.ok(&["rename", "one", "first"]);
    host.ok(&["ps", "-a"]);
    host.ok(&["network", "create", "other"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let hosts = host.ok(&["exec", "two", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("\tfirst ") && hosts.contains("10.1.1.1\tx\n"), "{hosts}");
    assert!(!hosts.contains("bank") && hosts.len() < 1000, "{hosts}");
    host.ok(&["rm", "-f", "first", "two"]);
    assert_eq!(host.traces(), "");
}

#[test]
fn names_that_are_none_reach_nobodys_files() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    let bad = "a\n10.0.0.1 bank";
    let (alias, line) = (format!("back:alias={bad}"), format!("{bad}:10.0.0.1"));
    for flags in [
        ["--network=back", "--hostname", bad],
        ["--network=back", "--network-alias", bad],
        ["--network", &alias, "-q"],
        ["--network=back", "--add-host", &line],
        ["--network=back", "--hostname", "a b"],
        ["--network=back", "--hostname", "a-"],
    ] {
        let run = [&["run", "--rm"][..], &flags, &["--image", "app.xar", "true"]].concat();
        let said = host.fails(&run);
        assert!(said.contains("cannot name a machine"), "{flags:?}: {said}");
    }
    // Nor by way of the files in the state directory.
    host.serve("web", &["--network", "back"]);
    let config = host.world.path("state").join("jobs");
    let config =
        std::fs::read_dir(config).unwrap().next().unwrap().unwrap().path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let named = text.replacen("\"aliases\": []", "\"aliases\": [\"b\\n10.0.0.1 bank\"]", 1);
    assert_ne!(named, text);
    std::fs::write(&config, named).unwrap();
    host.serve("other", &["--network", "back"]);
    let hosts = host.ok(&["exec", "other", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("\tweb ") && !hosts.contains("bank"), "{hosts}");
    host.ok(&["rm", "-f", "web", "other"]);
}

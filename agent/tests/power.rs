//! What a power failure leaves of a state directory: everything that a command was told is there.
//!
//! A process makes, changes and removes jobs on an ext4 file system in a file, and says what it has done. At random moments it
//! is stopped, and the file is copied: that is what the disk has then, without what only the kernel's memory had. The copy
//! is mounted, whereby its journal is replayed, and looked at. `scripts/power-cuts` does this 200 times.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mica_agent::{CreateError, JobConfig, StackConfig, StateDir, reconcile, remove};
use mica_launcher::{Root, Spec};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Set for the process that works: where.
const WORK: &str = "MICA_POWER_CUTS_WORK";
/// How often the power fails.
const COUNT: &str = "MICA_POWER_CUTS";

/// Makes jobs, renames them, removes them, for ever; says each thing when it is done.
fn work(root: &Path) {
    let state = StateDir::open(root).unwrap();
    let mut jobs = Vec::new();
    let mut serial = 0_u64;
    let say = |words: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{words}").and_then(|()| out.flush()).unwrap();
    };
    loop {
        serial += 1;
        let name = format!("name{serial}");
        let (job, lock) = state
            .create::<CreateError>(|job| {
                Ok(JobConfig {
                    name: Some(name.clone()),
                    stack: StackConfig { source: "A@1".into(), ..StackConfig::default() },
                    images: Vec::new(),
                    spec: Spec::new(job.id(), Root::Tree(job.tree()), ["app/A"]),
                    remove: false,
                    stop_signal: 15,
                    stop_timeout: 10,
                    labels: Default::default(),
                    created_ms: mica_agent::now_ms(),
                    terminal: false,
                    open_stdin: false,
                    restart: Default::default(),
                    health: None,
                    network: None,
                    log: Default::default(),
                })
            })
            .unwrap();
        // A job that has run and has written something.
        fs::create_dir(job.path().join("upper")).unwrap();
        fs::write(job.path().join("upper/file"), "x").unwrap();
        drop(lock);
        reconcile(&state).unwrap();
        // From the first status on: a job of before has not begun, and goes.
        say(format!("made {} {name}", job.id()));
        let name = format!("other{serial}");
        state.rename(&job, &name).unwrap();
        say(format!("made {} {name}", job.id()));
        jobs.push(job);
        if jobs.len() > 12 {
            let job = jobs.remove(serial as usize % 12);
            say(format!("removing {}", job.id()));
            remove(&job).unwrap();
        }
    }
}

/// An ext4 file system in a file, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

fn run(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {words:?}");
}

impl Disk {
    fn mount(image: PathBuf, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        // The journal is written each second, so that names come to the disk without what they name.
        run("mount", &["-o", "loop,commit=1", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { image, at }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.at).status().ok();
    }
}

struct Worker(Child);

impl Worker {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What the process has said so far.
#[derive(Default)]
struct Said {
    names: BTreeMap<String, String>,
    /// The beginning of a line.
    pending: Vec<u8>,
}

impl Said {
    /// All that has been said until now: the other side has stopped.
    fn hear_all(&mut self, pipe: &mut impl Read) {
        let mut buffer = [0; 4096];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => panic!("the process that works has ended"),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.hear(std::str::from_utf8(&line).unwrap().trim_end());
        }
    }

    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["made", id, name] => drop(self.names.insert(id.to_owned(), name.to_owned())),
            ["removing", id] => drop(self.names.remove(id)),
            // What the test harness prints.
            _ => {}
        }
    }

    /// Looks at what the disk has.
    fn check(&self, root: &Path) {
        let state = StateDir::open(root).unwrap();
        for _ in 0..2 {
            reconcile(&state).unwrap();
            for job in state.jobs().unwrap() {
                let read = job.config().and_then(|_| job.status());
                assert!(read.is_ok(), "{} is unreadable: {read:?}", job.id());
            }
            for (id, name) in &self.names {
                let job = state.find(id).unwrap_or_else(|error| panic!("{name} is lost: {error}"));
                // It may have got its next name, unheard.
                let now = job.name().unwrap();
                assert!(now == *name || now == name.replace("name", "other"), "{name}: {now}");
                assert!(job.status().unwrap().unwrap().is_final(), "{name}");
            }
        }
    }
}

/// What a disk has at one moment: the kernel goes on to write what it has in memory, and a disk that was read by halves before
/// and after that is none.
fn content(image: &Path) -> Vec<u8> {
    let mut before = fs::read(image).unwrap();
    loop {
        let now = fs::read(image).unwrap();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// A number below `end`, from the kernel.
fn random(end: u64) -> u64 {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % end
}

#[test]
fn a_power_failure_loses_nothing_that_was_said_to_be_done() {
    if let Some(root) = std::env::var_os(WORK) {
        work(Path::new(&root));
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts file systems; run it as root, or leave it out: --skip a_power_failure"
    );
    let count = std::env::var(COUNT).ok().and_then(|count| count.parse().ok()).unwrap_or(6);
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let disk = Disk::mount(image, dir.path().join("at"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["a_power_failure_loses_nothing_that_was_said_to_be_done", "--nocapture"])
        .env(WORK, disk.at.join("state"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut worker = Worker(child);
    let mut pipe = worker.0.stdout.take().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    let mut said = Said::default();
    for cut in 0..count {
        std::thread::sleep(Duration::from_micros(random(1_500_000)));
        while !disk.at.join("state/jobs").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        worker.signal(Signal::STOP);
        let pid = Pid::from_child(&worker.0);
        waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().expect("it has stopped");
        said.hear_all(&mut pipe);
        // Each time another file: a mount namespace that somebody makes meanwhile keeps the last one mounted, and what is
        // in memory of it would be seen again.
        let copy = dir.path().join(format!("copy{cut}"));
        fs::write(&copy, content(&disk.image)).unwrap();
        worker.signal(Signal::CONT);
        let copy = Disk::mount(copy, dir.path().join(format!("copied{cut}")));
        let root = copy.at.join("state");
        let mode = fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        eprintln!("power cut {cut}: {} jobs", said.names.len());
        said.check(&root);
        fs::remove_file(&copy.image).unwrap();
    }
}

//! What of the host a job sees: its programs, and of its data what was asked for, but never what is hidden.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::*;
use mica_launcher::{HostView, Mount, Root, Spec};

pub(crate) const TESTS: &[Test] = &[
    ("view::programs_and_no_data", By::Both, programs_and_no_data),
    ("view::other_paths", By::Both, other_paths),
    ("view::whole_root", By::Both, whole_root),
    ("view::hidden_folders", By::Both, hidden_folders),
    ("view::hidden_folders_by_other_mounts", By::Root, hidden_folders_by_other_mounts),
    ("view::volumes_from_hidden_folders", By::Both, volumes_from_hidden_folders),
    ("view::home", By::Both, home),
    ("view::covered_accounts", By::Both, covered_accounts),
];

fn beside(view: HostView, tree: &Path, line: &str) -> Spec {
    let root = Root::Host { tree: tree.to_owned(), at: "/packages/a-1".into(), view };
    Spec::new(id(), root, ["/bin/sh", "-c", line])
}

/// A folder with a secret, a FIFO, a lock file and a socket, not below /tmp, which every job gets afresh.
struct Data {
    dir: tempfile::TempDir,
    _listener: UnixListener,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let inner = dir.path().join("state");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("secret"), "secret\n").unwrap();
        let listener = UnixListener::bind(inner.join("control")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inner.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        Self { dir, _listener: listener }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

/// Says "reached" for every way to what is in this folder.
fn attempts(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "cat {folder}/secret && echo reached; flock -n {folder}/secret echo reached; test -e {folder}/fifo && echo reached; \
         perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); \
         print(qq(reached\\n)) if connect(S, pack_sockaddr_un(qq({folder}/control)))'; ls -A {folder} | sed s/^/reached:/; "
    )
}

fn programs_and_no_data() {
    let (tree, data) = (scratch(), Data::new());
    fs::write(tree.path().join("hello"), "from the tree\n").unwrap();
    let line = format!(
        "ls -d /home /root /var /run /srv /mnt /boot /media /work; cat /etc/shadow /etc/gshadow /etc/sudoers; \
         ls -A /etc/ssh /etc/ssl/private | sed s/^/reached:/; {} \
         getent passwd 0 | cut -d: -f1; getent hosts localhost | grep -c localhost; perl -e 'print(qq(perl\\n))'; \
         ls /packages; cat hello; touch /x /usr/x /etc/x /opt/x /etc/passwd && echo writable; echo end",
        attempts(&data.state())
    );
    let mut spec = beside(HostView::default(), tree.path(), &line);
    spec.cwd = "/packages/a-1".into();
    for privileged in [false, true] {
        spec.privileged = privileged;
        let (_, text) = output(&spec);
        for reached in ["reached", "root:*", "root:!", "root:x", "writable", "ALL="] {
            assert!(!text.contains(reached), "{reached} in {text}");
        }
        for gone in ["/home", "/root", "/var", "/run", "/srv", "/mnt", "/etc/shadow"] {
            let line = text.lines().find(|line| {
                line.contains(&format!("{gone}'")) || line.contains(&format!("{gone}:"))
            });
            assert!(line.is_some_and(|line| line.contains("No such file")), "{gone} in {text}");
        }
        for there in ["\nroot\n", "\n1\nperl\na-1\nfrom the tree\n", "end\n"] {
            assert!(text.contains(there), "{there:?} in {text}");
        }
    }
    // As on the host: links of a merged /usr are links.
    let kinds = |command: &str| {
        let (_, text) = output(&beside(HostView::default(), tree.path(), command));
        let host = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
        assert_eq!(text, String::from_utf8_lossy(&host.stdout), "{command}");
    };
    kinds(
        "for p in /bin /sbin /lib /lib64 /usr/bin; do readlink $p; done; ls /usr/bin /etc/alternatives | cksum; date +%Z",
    );
}

fn other_paths() {
    let (tree, data) = (scratch(), Data::new());
    let paths = ["/usr", "/bin", "/lib*", "/var/tmp/no-such-folder"].map(PathBuf::from);
    let shown = [paths.as_slice(), &[data.dir.path().to_owned()]].concat();
    let line = format!("cat {}/secret; ls -A /; ls -A /var/tmp | wc -l", data.state().display());
    let (_, text) = output(&beside(HostView::Paths(shown), tree.path(), &line));
    let names: Vec<_> = text.lines().collect();
    assert_eq!((names[0], names.last()), ("secret", Some(&"1")), "{text}");
    assert!(names.contains(&"var") && !names.contains(&"opt") && !names.contains(&"etc"), "{text}");
}

fn whole_root() {
    let (tree, data) = (scratch(), Data::new());
    let line = format!(
        "cat {0}/secret; touch {0}/new 2>&1 | grep -c 'Read-only'; ls -A /run | wc -l; ls -d /home",
        data.state().display()
    );
    let (_, text) = output(&beside(HostView::Whole, tree.path(), &line));
    assert_eq!(text, "secret\n1\n0\n/home\n");
}

fn volume(source: &Path, target: &str, recursive: bool) -> Mount {
    Mount::Bind {
        source: source.to_owned(),
        target: target.into(),
        read_only: false,
        recursive,
        follow: false,
        ids: None,
    }
}

fn hidden_folders() {
    let (tree, data) = (scratch(), Data::new());
    let state = data.state();
    let below = |from: &str| state.strip_prefix(from).unwrap().to_owned();
    let up = tempfile::tempdir_in("/var/tmp").unwrap();
    symlink(data.dir.path(), up.path().join("link")).unwrap();
    for recursive in [true, false] {
        let mounts = [
            (Path::new("/"), "/h", Path::new("/h").join(below("/"))),
            (Path::new("/var"), "/data", Path::new("/data").join(below("/var"))),
            (Path::new("/var/tmp"), "/data/../t", Path::new("/t").join(below("/var/tmp"))),
            (data.dir.path(), "/d", "/d/state".into()),
            (&up.path().join("link"), "/l", "/l/state".into()),
        ];
        let mut lines = attempts(&state);
        for (.., path) in &mounts {
            lines += &attempts(path);
            lines += &format!("umount {0}; mv {0} {0}2; rmdir {0}; ", path.display());
            lines += &attempts(path);
        }
        lines += "ls -d /h/usr /d; echo end";
        for view in [HostView::Whole, HostView::default()] {
            for (user, privileged) in [(None, false), (Some("0:0"), true)] {
                let mut spec = beside(view.clone(), tree.path(), &lines);
                spec.user = user.map(str::to_owned);
                spec.privileged = privileged;
                spec.hidden.folders = vec![state.clone(), "/no/such/folder".into()];
                for (source, target, _) in &mounts {
                    spec.mounts.push(volume(
                        source,
                        &target.replace("/data/../t", "/t"),
                        recursive,
                    ));
                }
                if !recursive {
                    // What mounts cover is not a user namespace's to uncover: only whole trees are bound.
                    let own = |mount: &Mount| {
                        ["/d", "/l"].iter().any(|own| mount.target() == Path::new(own))
                    };
                    spec.mounts.retain(own);
                }
                let (_, text) = output(&spec);
                assert!(!text.contains("reached") && text.ends_with("end\n"), "{text}");
                assert!(text.contains("/d\n"), "{text}");
            }
        }
    }
    // The attempts do work where nothing is hidden.
    let mut spec = beside(HostView::default(), tree.path(), &attempts(Path::new("/d/state")));
    spec.mounts.push(volume(data.dir.path(), "/d", true));
    assert_eq!(output(&spec).1.matches("reached").count(), 7);
}

/// The host shows the folder at several places.
fn hidden_folders_by_other_mounts() {
    let (tree, data) = (scratch(), Data::new());
    let state = data.state();
    let at = tempfile::tempdir_in("/var/tmp").unwrap();
    let points = ["parent", "itself", "below"].map(|name| at.path().join(name));
    fs::create_dir(state.join("jobs")).unwrap();
    fs::write(state.join("jobs/secret"), "secret\n").unwrap();
    let sources = [data.dir.path().to_owned(), state.clone(), state.join("jobs")];
    for (point, source) in points.iter().zip(&sources) {
        fs::create_dir(point).unwrap();
        rustix::mount::mount_bind(source, point).unwrap();
    }
    let lines: String = ["/h/parent/state", "/h/itself", "/h/below", "/one/state"]
        .iter()
        .map(|path| attempts(Path::new(path)))
        .collect();
    let mut spec = beside(HostView::default(), tree.path(), &format!("{lines} echo end"));
    spec.hidden.folders = vec![state];
    spec.mounts.push(volume(at.path(), "/h", true));
    spec.mounts.push(volume(&points[0], "/one", true));
    let result = std::panic::catch_unwind(|| output(&spec));
    spec.mounts = vec![volume(&points[1], "/x", true)];
    let itself = std::panic::catch_unwind(|| chain(&refusal(&spec)));
    for point in points {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let (_, text) = result.unwrap();
    assert!(!text.contains("reached") && text.ends_with("end\n"), "{text}");
    assert!(itself.unwrap().ends_with("is mica's own, and hidden from jobs"));
}

fn volumes_from_hidden_folders() {
    let (tree, data) = (scratch(), Data::new());
    let state = data.state();
    fs::create_dir_all(state.join("volumes/kept")).unwrap();
    let link = data.dir.path().join("link");
    symlink(state.join("control"), &link).unwrap();
    let mut spec = beside(HostView::default(), tree.path(), "ls -d /x");
    spec.hidden.folders = vec![state.clone()];
    spec.hidden.but = vec![state.join("volumes")];
    let up = PathBuf::from(format!("{}/../state/secret", state.display()));
    for source in [state.clone(), state.join("control"), state.join("secret"), link, up] {
        spec.mounts = vec![volume(&source, "/x", true)];
        let said = chain(&refusal(&spec));
        assert!(said.ends_with("is mica's own, and hidden from jobs"), "{said}");
    }
    spec.mounts = vec![volume(&state.join("volumes/kept"), "/x", true)];
    assert_eq!(output(&spec).1, "/x\n");
}

fn home() {
    let tree = tree();
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let line = "cd && touch made && echo kept > ~/made && test -O . && pwd";
    let whole = scratch();
    for user in [None, Some("0"), Some("33"), Some("1000:1000")] {
        let mut specs = vec![
            shell(tree.path(), line),
            beside(HostView::default(), whole.path(), line),
            beside(HostView::Whole, whole.path(), line),
        ];
        let mut read_only = shell(tree.path(), line);
        read_only.read_only = true;
        specs.push(read_only);
        for mut spec in specs {
            spec.user = user.map(str::to_owned);
            let (exit, text) = output(&spec);
            assert!(exit.code() == 0 && text.starts_with('/'), "{user:?} {:?} {text}", spec.root);
            spec.env.push(("HOME".into(), "/nowhere".into()));
            let said = output(&spec).1;
            assert!(said.contains("nowhere"), "what was told is left as it is: {said}");
        }
    }
    // Nobody's folder is taken for a home.
    let mut spec = shell(tree.path(), line);
    spec.user = Some("1000:1000".into());
    let trap = scratch();
    symlink("/etc", trap.path().join("home-1000")).unwrap();
    fs::set_permissions(trap.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    spec.mounts.push(volume(trap.path(), "/tmp", true));
    spec.argv[2] = "echo $HOME".into();
    assert_eq!(output(&spec).1, "/tmp\n");
}

/// Names of users are those that the job sees.
fn covered_accounts() {
    let tree = tree();
    let etc = scratch();
    fs::write(etc.path().join("passwd"), "over:x:0:0::/over:/bin/sh\n").unwrap();
    fs::write(etc.path().join("group"), "over:x:0:\n").unwrap();
    let cover = |name: &str| volume(&etc.path().join(name), &format!("/etc/{name}"), true);
    for mounts in [vec![volume(etc.path(), "/etc", true)], vec![cover("passwd"), cover("group")]] {
        let mut spec = shell(tree.path(), "echo $HOME; sleep 1000");
        spec.user = Some("over:over".into());
        spec.mounts.extend(mounts);
        spec.argv[2] = "id -u".into();
        assert_eq!(output(&spec).1, "0\n");
        spec.user = Some("web".into());
        assert!(chain(&refusal(&spec)).ends_with("has no user web"));
        // Further programs, too.
        spec.user = Some("over".into());
        spec.argv[2] = "sleep 1000".into();
        let job = start(&spec, mica_launcher::Stdio::null().unwrap());
        let exec = |user: &str| {
            let argv = ["id", "-u"].map(Into::into).to_vec();
            let user = Some(user.to_owned());
            let (stdio, file) = captured();
            let exec = mica_launcher::ExecSpec { argv, user, ..Default::default() };
            job.exec(&exec, stdio).map(|mut program| {
                program.wait().unwrap();
                printed(file)
            })
        };
        assert_eq!(exec("over").unwrap(), "0\n");
        assert!(chain(&exec("web").unwrap_err()).ends_with("has no user web"));
    }
}

//! A real CPython, numpy and pandas as layers: packed, fetched over HTTP, compared, and run.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{User, World, need_fuse};

fn python(script: &str) -> String {
    let output =
        Command::new("python3").args(["-c", script]).output().expect("this test needs python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs a preparation once and keeps what it made in the target folder.
fn prepared(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !dir.exists() {
        let half = dir.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        make(&half);
        fs::rename(half, &dir).unwrap();
    }
    dir
}

fn copy(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A CPython installation: the interpreter's own prefix or, where that is /usr, its parts of it.
fn cpython() -> PathBuf {
    let prefix = python("import sys; print(sys.base_prefix)");
    if prefix != "/usr" {
        return prefix.into();
    }
    prepared("cpython", |dir| {
        let name = python("import sys; print('python%d.%d' % sys.version_info[:2])");
        copy(
            &python("import os, sys; print(os.path.realpath(sys.executable))"),
            &dir.join("bin").join(&name),
        );
        copy(
            &python("import sysconfig; print(sysconfig.get_path('stdlib'))"),
            &dir.join("lib").join(&name),
        );
    })
}

fn site_packages() -> PathBuf {
    prepared("site-packages", |dir| {
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-warn-conflicts", "--target"])
            .arg(dir)
            .args(["numpy", "pandas"])
            .status()
            .unwrap();
        assert!(status.success(), "this test needs pip and its index");
    })
}

/// What `stat` says of every entry of a tree, hard links as the first path of their group. `links` says how many there
/// are, from what `stat` says and how many were found.
fn entries(root: &Path, links: fn(u64, usize) -> u64) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut groups: BTreeMap<u64, (u64, Vec<PathBuf>)> = BTreeMap::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        let mut names: Vec<PathBuf> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for path in names {
            let meta = fs::symlink_metadata(&path).unwrap();
            let below = path.strip_prefix(root).unwrap().to_owned();
            let mut text = format!("{:o}", meta.mode());
            if meta.is_symlink() {
                text += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else if meta.is_file() {
                text += &format!(" {} bytes", meta.size());
                let group = groups.entry(meta.ino()).or_insert((meta.nlink(), Vec::new()));
                group.1.push(below.clone());
            } else if meta.is_dir() {
                stack.push(path);
            }
            found.insert(below, text);
        }
    }
    for (said, paths) in groups.into_values() {
        let text = format!(", {} links, like {}", links(said, paths.len()), paths[0].display());
        for path in paths {
            found.get_mut(&path).unwrap().push_str(&text);
        }
    }
    found
}

#[test]
fn python_numpy_and_pandas_run_from_layers() {
    need_fuse();
    let (prefix, site) = (cpython(), site_packages());
    let world = World::new(User::Me);
    world.write(
        "app/main.py",
        "import numpy, pandas\nprint(pandas.DataFrame({'a': numpy.arange(4)}).a.sum())\n",
    );
    fs::hard_link(world.path("app/main.py"), world.path("app/linked.py")).unwrap();
    let json = |path: &Path| format!("{:?}", path.to_str().unwrap());
    world.write(
        "graph.json",
        &format!(
            r#"{{"modules": [
                {{"label": "//:demo", "outputs": [{{"path": "app", "source": "app"}}], "deps": ["//:site"],
                  "entrypoint": ["python/bin/python3", "app/main.py"], "env": {{
                    "PYTHONHOME": "/packages/demo-v1/python", "PYTHONPATH": "/packages/demo-v1/site-packages"}}}},
                {{"label": "//:site", "outputs": [{{"path": "site-packages", "source": {}}}], "deps": ["//:python"]}},
                {{"label": "//:python", "outputs": [{{"path": "python", "source": {}}}]}}]}}"#,
            json(&site),
            json(&prefix),
        ),
    );
    let interpreter = if prefix.join("bin/python3").exists() {
        "python3".to_owned()
    } else {
        python("import sys; print('python%d.%d' % sys.version_info[:2])")
    };
    let graph = fs::read_to_string(world.path("graph.json")).unwrap();
    world.write(
        "graph.json",
        &graph.replace("python/bin/python3", &format!("python/bin/{interpreter}")),
    );
    let packed =
        world.ok(&["pack", "--graph", "graph.json", "--target", "//:demo", "--version", "v1"]);
    assert_eq!(packed.stderr.matches("packed").count(), 3, "{packed:?}");

    let mut server = world
        .mica(&["serve", "--root", "registry", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let pulled = world.run(&["pull", "demo@v1", "--registry", url.trim()]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_eq!(world.ok(&["run", "--rm", "demo@v1"]).stdout, "6\n");

    let point = world.ok(&["mount", "demo@v1"]).stdout;
    let mounted = Path::new(point.trim());
    for (name, source) in
        [("python", &prefix), ("site-packages", &site), ("app", &world.path("app"))]
    {
        let there = mounted.join(name);
        let output = Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(source)
            .arg(&there)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{name}: {}",
            said.lines().take(20).collect::<Vec<_>>().join("\n")
        );
        // Of the source other links may lie outside of the tree, of the layer none.
        let expected = entries(source, |_, found| found as u64);
        let found = entries(&there, |said, _| said);
        let differing: Vec<_> = expected
            .iter()
            .filter(|(path, text)| found.get(*path) != Some(text))
            .take(10)
            .collect();
        assert!(differing.is_empty() && expected.len() == found.len(), "{name}: {differing:#?}");
    }
    world.ok(&["umount", point.trim()]);
}

//! A tree with everything squashfs can hold.

use super::*;

/// Makes the tree below `root`. Needs root.
pub fn make(root: &Path) {
    need_root();
    fs::create_dir(root).unwrap();
    contents(root);
    names(root);
    links(root);
    specials(root);
    owners_and_times(root);
    xattrs(root);
    deep(root);
    // mksquashfs takes names for hard links of one symlink only if their times of last access agree, and itself reads
    // the link in between: have that over with.
    fs::read_link(root.join("links/short")).unwrap();
}

/// Bytes without pattern.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| step()).collect()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| b"fn main() { println!(\"hello\") }\n"[i * (i / 977 + 1) % 32]).collect()
}

fn contents(root: &Path) {
    let dir = root.join("contents");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    for size in [1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 262_144, 1_048_576, 1_500_000] {
        fs::write(dir.join(format!("text-{size}")), text(size)).unwrap();
        fs::write(dir.join(format!("noise-{size}")), noise(size as u64, size)).unwrap();
    }
    fs::write(dir.join("zeros"), vec![0; 300_000]).unwrap();
    for i in 0..200_u64 {
        fs::write(dir.join(format!("small-{i}")), noise(i, (i * 37 % 3000) as usize)).unwrap();
        fs::write(dir.join(format!("same-{i}")), text(5000)).unwrap();
    }
    let mut sparse = File::create(dir.join("sparse")).unwrap();
    for at in [0, 1 << 20, (1 << 24) - 5, 5 << 22] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(&noise(at, 10_000)).unwrap();
    }
    File::create(dir.join("hole")).unwrap().set_len(1_000_000).unwrap();
}

fn names(root: &Path) {
    let dir = root.join("names");
    fs::create_dir(&dir).unwrap();
    for name in [
        &[b'n'; 255][..],
        b"\xff\xfe not utf-8 \x80",
        b"new\nline",
        b" ",
        b"-rf",
        "ß→🙂".as_bytes(),
    ] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(dir.join("empty-dir")).unwrap();
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for i in 0..3000 {
        fs::write(many.join(format!("entry-{i}-{}", "x".repeat(i % 90))), i.to_string()).unwrap();
    }
}

fn links(root: &Path) {
    let dir = root.join("links");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("one"), b"three names").unwrap();
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    fs::hard_link(dir.join("one"), root.join("three")).unwrap();
    symlink("one", dir.join("short")).unwrap();
    symlink("../no/such/file", dir.join("dangling")).unwrap();
    symlink("l".repeat(4095), dir.join("long")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\x80"), dir.join("not-utf8")).unwrap();
    let fifo = dir.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    fs::hard_link(&fifo, dir.join("fifo-again")).unwrap();
    fs::hard_link(dir.join("short"), dir.join("short-again")).unwrap();
}

fn specials(root: &Path) {
    let dir = root.join("specials");
    fs::create_dir(&dir).unwrap();
    let node = |name: &str, kind, device| {
        mknodat(CWD, dir.join(name), kind, Mode::from(0o640), device).unwrap();
    };
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("big", FileType::BlockDevice, makedev(0xabc, 0xf_1234));
    node("disk", FileType::BlockDevice, makedev(8, 0));
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
}

fn owners_and_times(root: &Path) {
    let dir = root.join("owners");
    fs::create_dir(&dir).unwrap();
    for (i, (uid, gid, mode)) in
        [(0, 0, 0o4755), (65_536, 70_000, 0o2750), (4_000_000_000, 1, 0o1777), (1000, 1000, 0)]
            .into_iter()
            .enumerate()
    {
        let path = dir.join(format!("file-{i}"));
        fs::write(&path, b"x").unwrap();
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        set_mode(&path, mode);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000 * i as u64);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    set_mode(&dir, 0o3775);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn xattrs(root: &Path) {
    let dir = root.join("xattrs");
    fs::create_dir(&dir).unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("cannot set {name} on {}: {e}", path.display()));
    };
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        path
    };
    let plain = file("user");
    set(&plain, "user.comment", b"hello");
    set(&plain, "user.empty", b"");
    set(&plain, "user.large", &noise(1, 3000));
    // The same large value again, which writers store once, out of line.
    set(&file("shared"), "user.large", &noise(1, 3000));
    set(&file("shared-2"), "user.other", &noise(1, 3000));
    set(&file("trusted"), "trusted.overlay.opaque", b"y");
    // cap_net_raw+ep, version 2.
    let caps = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&file("capability"), "security.capability", &caps);
    set(&dir, "user.on-a-directory", b"d");
    symlink("user", dir.join("link")).unwrap();
    set(&dir.join("link"), "trusted.on-a-link", b"l");
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    set(&dir.join("fifo"), "trusted.on-a-fifo", b"f");
}

fn deep(root: &Path) {
    let mut path = root.join("deep");
    for _ in 0..500 {
        fs::create_dir(&path).unwrap();
        path.push("d");
    }
    fs::write(&path, b"bottom").unwrap();
}

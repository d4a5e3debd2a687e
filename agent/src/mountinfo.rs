//! The table of mounts that a process sees (proc(5), `mountinfo`).

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What our mounts are in it.
const KIND: &str = "fuse.mica";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Tells file systems apart, in every namespace.
    pub(crate) device: (u32, u32),
    /// Which part of the file system it shows.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    /// It is one of mica's.
    pub(crate) ours: bool,
}

/// All mounts of a table, those that lie on top of others last.
pub(crate) fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

/// The mount that is seen at a path in this process.
pub(crate) fn topmost(point: &Path) -> Option<Entry> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    parse(&text).into_iter().rev().find(|entry| entry.point == point)
}

fn entry(line: &str) -> Option<Entry> {
    let (head, tail) = line.split_once(" - ")?;
    let fields: Vec<&str> = head.split(' ').collect();
    let (major, minor) = fields.get(2)?.split_once(':')?;
    Some(Entry {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(fields.get(3)?),
        point: unescape(fields.get(4)?),
        ours: tail.split(' ').next() == Some(KIND),
    })
}

/// Space, tab, line feed and backslash are written as octal.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value.filter(|_| byte == b'\\') {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table() {
        let line = r"36 35 0:57 / /mnt/a\040b rw,nosuid shared:1 - fuse.mica mica rw,user_id=0";
        let entry = &parse(line)[0];
        assert_eq!((entry.device, entry.ours), ((0, 57), true));
        assert_eq!(entry.point, Path::new("/mnt/a b"));
        assert!(parse("36 35 0:57 / /mnt rw\nx - y\n").is_empty());
        assert_eq!(unescape(r"a\134b\0"), Path::new(r"a\b\0"));
    }
}

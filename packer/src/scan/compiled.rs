//! Times of Python sources that were compiled before packing.
//!
//! CPython takes a file of `__pycache__` for stale, and compiles the source anew at each import, if the source's time is
//! not the one noted in the file ([PEP 552](https://peps.python.org/pep-0552/)). A source whose compiled file is good
//! therefore keeps its time, as in the images of XAR's own tools. The same content still gives the same image: that
//! time is part of the compiled file's content.

use std::collections::HashMap;

use mica_squashfs::write::{NodeId, NodeKind, Tree};

/// Magic number, flags, time and size of the source, 4 bytes each.
const HEADER: usize = 16;

/// A source whose time the image would change, as its compiled file should know it: the low 32 bits of its time in
/// seconds and of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) mtime: u32,
    pub(super) size: u32,
}

/// Gives those of `sources` that have been compiled since their last change their time back.
pub(super) fn keep_times(tree: &mut Tree, sources: &HashMap<NodeId, Source>) {
    let mut stack = if sources.is_empty() { Vec::new() } else { vec![tree.root()] };
    let mut good = Vec::new();
    while let Some(directory) = stack.pop() {
        let is_directory = |id| matches!(tree.node(id).kind, NodeKind::Directory);
        let below = tree.children(directory).filter(|&(_, child)| is_directory(child));
        stack.extend(below.map(|(_, child)| child));
        let Some(cache) = tree.child(directory, b"__pycache__").filter(|&id| is_directory(id))
        else {
            continue;
        };
        for (name, compiled) in tree.children(cache) {
            let node = source_name(name).and_then(|name| tree.child(directory, &name));
            let source = node.and_then(|node| Some((node, *sources.get(&node)?)));
            if let Some((node, source)) =
                source.filter(|&(_, source)| is_of(tree, compiled, source))
            {
                good.push((node, source.mtime));
            }
        }
    }
    good.into_iter().for_each(|(node, mtime)| tree.metadata_mut(node).mtime = mtime);
}

/// `module.py` for `module.cpython-313.pyc` and `module.cpython-313.opt-1.pyc`
/// ([PEP 488](https://peps.python.org/pep-0488/)).
fn source_name(compiled: &[u8]) -> Option<Vec<u8>> {
    let mut parts = compiled.strip_suffix(b".pyc")?.rsplitn(3, |&byte| byte == b'.');
    let (last, before) = (parts.next()?, parts.next()?);
    let module = match (last.starts_with(b"opt-"), parts.next()) {
        (true, Some(module)) => module.to_vec(),
        (_, Some(start)) => [start, before].join(&b'.'),
        (_, None) => before.to_vec(),
    };
    Some([&module, &b".py"[..]].concat())
}

/// Whether the compiled file says that it was made of this source, and is judged by that.
fn is_of(tree: &Tree, compiled: NodeId, source: Source) -> bool {
    let NodeKind::File(content) = &tree.node(compiled).kind else { return false };
    let mut header = [0; HEADER];
    // One that can't be read is named when the image is written.
    if content.open().and_then(|open| open.read_exact_at(&mut header, 0)).is_err() {
        return false;
    }
    let [flags, mtime, size] = [4, 8, 12]
        .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    flags == 0 && Source { mtime, size } == source
}

#[cfg(test)]
mod tests {
    use super::source_name;

    #[test]
    fn sources_are_named_after_their_compiled_files() {
        let cases: [(&str, Option<&str>); 8] = [
            ("a.cpython-313.pyc", Some("a.py")),
            ("a.cpython-313.opt-2.pyc", Some("a.py")),
            ("a.b.cpython-313.pyc", Some("a.b.py")),
            ("a.b.c.cpython-313.opt-1.pyc", Some("a.b.c.py")),
            ("a.pypy310.pyc", Some("a.py")),
            ("a.pyc", None),
            ("a.cpython-313.pyc.140", None),
            (".pyc", None),
        ];
        for (compiled, source) in cases {
            let found = source_name(compiled.as_bytes());
            assert_eq!(found.as_deref(), source.map(str::as_bytes), "{compiled}");
        }
    }
}

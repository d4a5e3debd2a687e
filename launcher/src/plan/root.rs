//! The job's root, and what of the host is in it.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::tmpfs;
use crate::facts::{EntryKind, HostFacts};
use crate::hidden::joined;
use crate::spec::{IdMapping, Mount, Namespace, Root, Spec};
use crate::step::{Flags, Step};
use crate::view::{HostView, Shown, ShownKind};

pub(super) fn root(spec: &Spec, facts: &HostFacts, steps: &mut Vec<Step>) {
    match &spec.root {
        Root::Tree(tree) if facts.root_entries.is_empty() => {
            let (tree, at) = (tree.clone(), staging(spec, tree));
            steps.push(Step::Root { tree, at, no_devices: !spec.privileged });
        }
        Root::Tree(tree) => {
            steps.push(Step::EmptyRoot { at: staging(spec, tree) });
            let flags = Flags { no_devices: !spec.privileged, ..Flags::default() };
            entries(facts, tree, flags, |name| KERNEL.iter().any(|own| name == *own), steps);
        }
        Root::Host { tree, at, view } => {
            steps.push(Step::EmptyRoot { at: staging(spec, tree) });
            match view {
                HostView::Paths(_) => shown(facts, at, steps),
                HostView::Whole => whole_root(facts, at, steps),
            }
            steps.push(Step::Bind {
                source: tree.clone(),
                target: at.clone(),
                flags: Flags::DATA.read_only(spec.read_only),
                recursive: true,
                follow: false,
                exact: false,
                ids: None,
            });
            if let (Some((target, content)), HostView::Whole) = (&facts.resolv_conf, view) {
                steps.push(Step::File {
                    target: target.clone(),
                    content: content.clone(),
                    mode: 0o644,
                });
            }
        }
    }
}

/// The host's programs, on a root that holds nothing else.
fn shown(facts: &HostFacts, at: &Path, steps: &mut Vec<Step>) {
    for Shown { target, kind } in facts.shown.iter().filter(|shown| !at.starts_with(&shown.target))
    {
        match kind {
            ShownKind::Symlink(to) => {
                steps.push(Step::Symlink { target: target.clone(), to: to.clone() })
            }
            ShownKind::Bind(source) => {
                host_bind(facts, source, target, Flags::DATA.read_only(true), true, steps)
            }
        }
    }
}

/// The host's root.
fn whole_root(facts: &HostFacts, at: &Path, steps: &mut Vec<Step>) {
    let covered = at.components().nth(1).map(Component::as_os_str);
    let fresh = |name: &OsStr| FRESH.iter().any(|fresh| name == *fresh) || Some(name) == covered;
    for entry in facts.root_entries.iter().filter(|entry| !fresh(&entry.name)) {
        let target = Path::new("/").join(&entry.name);
        match &entry.kind {
            EntryKind::Symlink(to) => steps.push(Step::Symlink { target, to: to.clone() }),
            EntryKind::Bind => {
                host_bind(facts, &target, &target, Flags::DATA.read_only(true), true, steps)
            }
        }
    }
    // What lives in /run talks to daemons of the host: a read-only bind doesn't stop a connect().
    steps.push(tmpfs("/run", Flags::STRICT, None, 0o755));
}

/// Something of the host's, but for what no job may see. What the host mounts in it on demand appears as the host mounts it:
/// the kernel can't be told to make it read-only, or to leave devices in it without effect.
fn host_bind(
    facts: &HostFacts,
    source: &Path,
    target: &Path,
    flags: Flags,
    exact: bool,
    steps: &mut Vec<Step>,
) {
    steps.push(Step::Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        flags,
        recursive: true,
        follow: facts.mounts_on_demand(source),
        exact,
        ids: None,
    });
    hide(facts, source, target, steps);
}

/// Hides what is hidden of a bind, before anything is mounted in it.
pub(super) fn hide(facts: &HostFacts, source: &Path, target: &Path, steps: &mut Vec<Step>) {
    if facts.not_hidden.iter().any(|but| source.starts_with(but)) {
        return;
    }
    let masks = facts.hidden.iter().filter_map(|path| path.strip_prefix(source).ok());
    steps.extend(masks.map(|below| Step::Mask(joined(target, below))));
}

/// Where the new root is attached until it becomes `/`: over the tree itself, unless it may be out of the init's reach.
fn staging(spec: &Spec, tree: &Path) -> PathBuf {
    match hands_over(spec) {
        true => "/tmp".into(),
        false => tree.to_owned(),
    }
}

/// Must the launcher itself open what is mounted? The init of a job with ids of its own is nobody outside.
pub(super) fn hands_over(spec: &Spec) -> bool {
    spec.namespaces.user == Namespace::New && matches!(spec.ids, IdMapping::Ranges { .. })
}

/// Entries of the host's root that a job gets afresh, or not at all.
const FRESH: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "lost+found"];

/// Directories of every root on which something is mounted in any case.
const KERNEL: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// The first components of all paths on which something is mounted.
pub(crate) fn mounted_names(spec: &Spec) -> Vec<&OsStr> {
    let own = KERNEL.iter().map(OsStr::new);
    own.chain(targets(spec).filter_map(|path| path.components().nth(1)).map(Component::as_os_str))
        .collect()
}

pub(super) fn targets(spec: &Spec) -> impl Iterator<Item = &PathBuf> {
    let mounts = spec.mounts.iter().map(Mount::target);
    mounts.chain(spec.files.iter().map(|f| &f.target)).chain(spec.devices.iter().map(|d| &d.target))
}

/// Shows the entries of a directory in the new root, but for those that the job gets otherwise.
fn entries(
    facts: &HostFacts,
    from: &Path,
    flags: Flags,
    but: impl Fn(&OsStr) -> bool,
    steps: &mut Vec<Step>,
) {
    for entry in facts.root_entries.iter().filter(|entry| !but(&entry.name)) {
        let target = Path::new("/").join(&entry.name);
        steps.push(match &entry.kind {
            EntryKind::Symlink(to) => Step::Symlink { target, to: to.clone() },
            EntryKind::Bind => Step::Bind {
                source: from.join(&entry.name),
                target,
                flags,
                recursive: true,
                follow: false,
                exact: false,
                ids: None,
            },
        });
    }
}

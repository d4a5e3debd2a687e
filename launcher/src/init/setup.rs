//! Carries the steps out. Everything of the host's is opened first, before the new root covers any of it; then each step
//! is one or two mount calls on descriptors.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree, unmount,
};
use rustix::net::RecvFlags;
use rustix::process::{fchdir, pivot_root};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::program::Terminal;
use super::targets::{Targets, is_directory};
use super::{Trouble, hooks, lock};
use crate::links::Links;
use crate::names::LONGEST_FILES;
use crate::programs;
use crate::step::{Flags, Step};
use crate::wire::{self, Streams};
use crate::{bridge, sys, volumes};

/// Carries all steps out. Returns the program's terminal, if it gets one.
pub(crate) fn carry_out(
    steps: &[Step],
    stdio: Streams,
    control: &OwnedFd,
    all_handed_over: bool,
) -> Result<Option<Terminal>, Trouble> {
    let mut work = Work { sources: HashMap::new(), targets: None, all_handed_over };
    for (index, step) in steps.iter().enumerate() {
        work.open_source(index, step, control).map_err(|e| Trouble::new(step, e))?;
    }
    work.write_files(steps)?;
    for (index, step) in steps.iter().enumerate() {
        if let Step::Hooks(programs) = step {
            let targets = work.targets().map_err(|e| Trouble::new(step, e))?;
            hooks::run(programs, staging(steps), targets)?;
        }
        work.carry_out(index, step).map_err(|e| Trouble::new(step, e))?;
    }
    match stdio {
        Streams::Given => Ok(None),
        Streams::Terminal { rows, columns } => {
            let terminal = terminal(rows, columns)?;
            console(&terminal).map_err(|e| Trouble::new("make /dev/console", e))?;
            Ok(Some(terminal))
        }
    }
}

/// A new terminal in the job's own `/dev/pts`.
pub(crate) fn terminal(rows: u16, columns: u16) -> Result<Terminal, Trouble> {
    let make = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        if rows > 0 && columns > 0 {
            tcsetwinsize(
                &master,
                Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 },
            )?;
        }
        Ok(Terminal { master, slave })
    };
    make().map_err(|e: Errno| Trouble::new("make a terminal", e))
}

/// Puts the terminal at `/dev/console`, as programs that log there expect.
fn console(terminal: &Terminal) -> io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&terminal.slave, "", clone)?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/console", flags, Mode::from_raw_mode(0o600))?;
    move_mount(&mount, "", CWD, "/dev/console", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn attributes(flags: Flags) -> u64 {
    let pairs = [
        (flags.read_only, sys::MOUNT_ATTR_RDONLY),
        (flags.no_suid, sys::MOUNT_ATTR_NOSUID),
        (flags.no_devices, sys::MOUNT_ATTR_NODEV),
        (flags.no_exec, sys::MOUNT_ATTR_NOEXEC),
    ];
    pairs.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit)
}

/// A detached copy of what is mounted at a path.
fn clone_mount(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags)
}

/// A new, detached file system.
fn new_filesystem(
    kind: &str,
    options: &[(String, String)],
    flags: Flags,
) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&fs, key.as_str())
        } else {
            fsconfig_set_string(&fs, key.as_str(), value.as_str())
        }?;
    }
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes(flags) as u32);
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// The directory over which the new root is put together.
fn staging(steps: &[Step]) -> &Path {
    let at = steps.iter().find_map(|step| match step {
        Step::Root { at, .. } | Step::EmptyRoot { at } => Some(at),
        _ => None,
    });
    at.map_or(Path::new("/"), |at| at)
}

/// How long `nft` may take.
const FILTER_HAS: Duration = Duration::from_secs(10);

/// Who may send echo requests, in the network of whoever opens it (icmp(7)).
const PING: &str = "/proc/sys/net/ipv4/ping_group_range";

const PRIVATE: u64 = 1 << 18;
const SLAVE: u64 = 1 << 19;

struct Work {
    /// What each step mounts, opened beforehand.
    sources: HashMap<usize, OwnedFd>,
    targets: Option<Targets>,
    /// The launcher has opened the sources.
    all_handed_over: bool,
}

impl Work {
    fn open_source(&mut self, index: usize, step: &Step, control: &OwnedFd) -> io::Result<()> {
        let mount = match step {
            Step::Root { tree, no_devices, .. } => {
                let mount = match self.all_handed_over {
                    true => handed_over(control)?,
                    false => clone_mount(CWD, tree, true)?,
                };
                let flags = Flags { no_devices: *no_devices, ..Flags::default() };
                sys::mount_setattr(mount.as_fd(), true, attributes(flags), PRIVATE)?;
                mount
            }
            Step::Bind { source, flags, recursive, follow, exact, ids, .. } => {
                let mount = match ids {
                    None if !self.all_handed_over => volumes::clone(source, *recursive, *exact)?,
                    _ => handed_over(control)?,
                };
                sys::mount_setattr(
                    mount.as_fd(),
                    *recursive,
                    attributes(*flags),
                    if *follow { SLAVE } else { PRIVATE },
                )?;
                mount
            }
            Step::Sysfs { fresh, writable } => sysfs(*fresh, *writable)?,
            _ => return Ok(()),
        };
        self.sources.insert(index, mount);
        Ok(())
    }

    /// Writes the small files on a memory file system that is attached only while that takes: a mount can be cloned
    /// only where it is attached.
    fn write_files(&mut self, steps: &[Step]) -> Result<(), Trouble> {
        let files: Vec<_> = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| matches!(step, Step::File { .. }))
            .collect();
        if files.is_empty() {
            return Ok(());
        }
        let at = staging(steps);
        let trouble = |e: io::Error| Trouble::new("prepare files for the job", e);
        // Not to be seen by the host: this comes before the step that makes all mounts private.
        private_mounts().map_err(|e| Trouble::new(Step::PrivateMounts, e))?;
        // Bounded by what the files take, to the page: a job that may remount them can't make them grow.
        let size = [("size".to_owned(), (LONGEST_FILES + (1 << 20)).to_string())];
        let scratch =
            new_filesystem("tmpfs", &size, Flags::STRICT).map_err(|e| trouble(e.into()))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&scratch, "", CWD, at, flags).map_err(|e| trouble(e.into()))?;
        for (index, step) in files {
            let Step::File { content, mode, .. } = step else { continue };
            let mount = write_file(&scratch, &index.to_string(), content, *mode)
                .map_err(|e| Trouble::new(step, e))?;
            self.sources.insert(index, mount);
        }
        unmount(at, UnmountFlags::DETACH).map_err(|e| trouble(e.into()))
    }

    fn targets(&self) -> io::Result<&Targets> {
        self.targets.as_ref().ok_or_else(|| Errno::NOENT.into())
    }

    fn carry_out(&mut self, index: usize, step: &Step) -> io::Result<()> {
        match step {
            Step::CgroupNamespace => sys::unshare(libc::CLONE_NEWCGROUP)?,
            Step::Hostname(name) => rustix::system::sethostname(name.as_bytes())?,
            Step::Loopback => sys::loopback_up()?,
            Step::Filter { program, rules } => {
                programs::run(program, &["-f", "-"], rules.as_bytes(), FILTER_HAS)?;
            }
            // A convenience: where /proc can't be written, as in some containers, there is no ping.
            Step::Ping { first, last } => {
                std::fs::write(PING, format!("{first} {last}")).ok();
            }
            Step::Addresses(addresses) => {
                // Any neighbour may say that it is a router: we know ours. Where there is no IPv6, none is made up.
                let six = addresses.iter().any(|(address, _)| address.addr().is_ipv6());
                let (setting, value) = if six { ("accept_ra", "0") } else { ("disable_ipv6", "1") };
                bridge::set_where_it_is(&bridge::version6(bridge::INNER, setting), value)?;
                Links::new()?.set_up(bridge::INNER, addresses)?;
            }
            Step::PrivateMounts => private_mounts()?,
            Step::Root { at, .. } => {
                let mount = self.source(index)?;
                move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                self.targets = Some(Targets { root: mount, fresh: false });
            }
            Step::EmptyRoot { at } => {
                let mode = [("mode".to_owned(), "755".to_owned())];
                let mount = new_filesystem("tmpfs", &mode, Flags::DATA)?;
                move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                self.targets = Some(Targets { root: mount, fresh: true });
            }
            Step::Symlink { target, to } => self.targets()?.symlink(target, to)?,
            Step::Bind { target, .. } | Step::File { target, .. } => {
                let mount = self.source(index)?;
                let point = self.targets()?.mount_point(target, is_directory(mount.as_fd())?)?;
                attach(mount.as_fd(), point.as_fd())?;
            }
            Step::Sysfs { .. } => attach(
                self.source(index)?.as_fd(),
                self.targets()?.directory(Path::new("/sys"))?.as_fd(),
            )?,
            Step::Filesystem { kind, target, flags, options } => {
                let mount = new_filesystem(kind, options, *flags)?;
                attach(mount.as_fd(), self.targets()?.directory(target)?.as_fd())?;
            }
            // Done by the caller, as its failure has more to say.
            Step::Hooks(_) => {}
            Step::Mask(path) => self.mask(path)?,
            Step::ReadOnly(path) => self.read_only(path)?,
            Step::ReadOnlyRoot => {
                sys::mount_setattr(self.targets()?.root(), false, sys::MOUNT_ATTR_RDONLY, 0)?
            }
            Step::Pivot => self.pivot()?,
            Step::Lock => lock::mounts()?,
        }
        Ok(())
    }

    fn source(&mut self, index: usize) -> io::Result<OwnedFd> {
        self.sources.remove(&index).ok_or_else(|| Errno::NOENT.into())
    }

    fn mask(&self, path: &Path) -> io::Result<()> {
        let Some(target) = existing(self.targets()?.open(path))? else { return Ok(()) };
        let cover = if is_directory(target.as_fd())? {
            new_filesystem("tmpfs", &[], Flags::STRICT.read_only(true))?
        } else {
            clone_mount(
                self.targets()?.open(Path::new("/dev/null"))?.as_fd(),
                Path::new(""),
                false,
            )?
        };
        Ok(attach(cover.as_fd(), target.as_fd())?)
    }

    fn read_only(&self, path: &Path) -> io::Result<()> {
        let Some(target) = existing(self.targets()?.open(path))? else { return Ok(()) };
        let mount = clone_mount(target.as_fd(), Path::new(""), true)?;
        sys::mount_setattr(mount.as_fd(), true, sys::MOUNT_ATTR_RDONLY, 0)?;
        Ok(attach(mount.as_fd(), target.as_fd())?)
    }

    fn pivot(&self) -> io::Result<()> {
        fchdir(self.targets()?.root())?;
        pivot_root(".", ".")?;
        // The old root now lies on top of the new one; taking it off leaves the new one alone.
        unmount(".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir("/")?)
    }
}

/// The next mount that the launcher has made.
fn handed_over(control: &OwnedFd) -> io::Result<OwnedFd> {
    let message = wire::receive(control, RecvFlags::empty())?;
    let descriptor = message.and_then(|message| message.descriptors.into_iter().next());
    descriptor.ok_or_else(|| Errno::BADF.into())
}

fn existing(opened: rustix::io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn private_mounts() -> io::Result<()> {
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The host's mounts may still arrive (volumes that follow the host need that); ours never travel back.
    sys::mount_setattr(root.as_fd(), true, 0, SLAVE)
}

fn sysfs(fresh: bool, writable: bool) -> io::Result<OwnedFd> {
    let flags = Flags::STRICT.read_only(!writable);
    if fresh {
        match new_filesystem("sysfs", &[], flags) {
            // Parts of the host's /sys are hidden from us, so the kernel won't show us all of it afresh.
            Err(Errno::PERM) => {}
            result => return Ok(result?),
        }
    }
    let mount = clone_mount(CWD, Path::new("/sys"), true)?;
    sys::mount_setattr(mount.as_fd(), true, attributes(flags), PRIVATE)?;
    Ok(mount)
}

fn write_file(scratch: &OwnedFd, name: &str, content: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(scratch, name, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    io::Write::write_all(&mut std::fs::File::from(file), content.as_bytes())?;
    let mount = clone_mount(scratch.as_fd(), Path::new(name), false)?;
    // The launcher's word, not the job's to change.
    sys::mount_setattr(mount.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0)?;
    Ok(mount)
}

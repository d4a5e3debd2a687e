//! Which user and group ids exist in the server's user namespace.
//!
//! A file whose owner has no name here can't be changed, removed or copied up by anybody, so the layers'
//! files whose owner isn't mapped are shown as the server's own. A server that may give files to nobody else
//! (an ordinary user outside of a namespace) shows all of them as its own.

use rustix::thread::CapabilitySet;

use crate::kind::Kind;
use crate::options::Owners;

/// The ids that are mapped, and the one shown in place of others.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    uids: Ranges,
    gids: Ranges,
}

#[derive(Debug, Clone)]
struct Ranges {
    /// First id in the layers, first id shown, how many.
    mapped: Vec<[u32; 3]>,
    fallback: u32,
}

impl Ranges {
    /// Parses the text of `/proc/self/uid_map`: lines of "first, first outside, count".
    fn parse(text: &str, fallback: u32) -> Ranges {
        let mapped = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
                let (Some(Ok(first)), _, Some(Ok(count))) =
                    (fields.next(), fields.next(), fields.next())
                else {
                    return None;
                };
                Some([first, first, count])
            })
            .collect();
        Ranges { mapped, fallback }
    }

    fn show(&self, id: u32) -> u32 {
        if self.mapped.is_empty() {
            return id;
        }
        let within = |&&[first, _, count]: &&[u32; 3]| id >= first && id - first < count;
        self.mapped
            .iter()
            .find(within)
            .map_or(self.fallback, |[first, shown, _]| shown + (id - first))
    }
}

impl Ids {
    pub(crate) fn new(uid_map: &str, gid_map: &str, uid: u32, gid: u32) -> Ids {
        Ids { uids: Ranges::parse(uid_map, uid), gids: Ranges::parse(gid_map, gid) }
    }

    /// As asked for, or else by the namespace this process is in.
    pub(crate) fn of(owners: Option<&Owners>) -> Ids {
        let Some(Owners { uids, gids }) = owners else { return Ids::of_this_process() };
        let ranges = |mapped: &[[u32; 3]]| {
            // The kernel refuses a map that runs over, so this one can't be anybody's.
            let mapped: Vec<_> = mapped
                .iter()
                .copied()
                .filter(|[_, shown, count]| shown.checked_add(*count).is_some())
                .collect();
            let fallback = mapped.first().map_or(0, |[_, shown, _]| *shown);
            Ranges { mapped, fallback }
        };
        Ids { uids: ranges(uids), gids: ranges(gids) }
    }

    /// The namespace this process is in.
    #[allow(clippy::disallowed_methods)]
    fn of_this_process() -> Ids {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        let may_chown = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
        if !may_chown {
            let own = |id| format!("{id} {id} 1\n");
            return Ids::new(&own(uid), &own(gid), uid, gid);
        }
        // Without /proc there is nothing to go by: all ids are taken to exist.
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Ids::new(&read("/proc/self/uid_map"), &read("/proc/self/gid_map"), uid, gid)
    }

    pub(crate) fn uid(&self, uid: u32) -> u32 {
        self.uids.show(uid)
    }

    pub(crate) fn gid(&self, gid: u32) -> u32 {
        self.gids.show(gid)
    }
}

/// Attributes as the mount shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky included.
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: (u32, u32),
    pub(crate) size: u64,
    /// In units of 512 bytes.
    pub(crate) blocks: u64,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

/// Seconds since 1970 and nanoseconds, as stat(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_of_the_map_are_shown_as_the_servers() {
        let ids = Ids::new("0 1000 1\n1 100000 65536\n", "0 1000 1\n", 0, 0);
        assert_eq!((ids.uid(0), ids.uid(33), ids.uid(70000)), (0, 33, 0));
        assert_eq!((ids.gid(0), ids.gid(33)), (0, 0));
        assert_eq!(Ids::new("", "", 5, 5).uid(33), 33);
    }

    #[test]
    fn owners_are_shifted_for_jobs_whose_root_is_another() {
        let uids = vec![[0, 100_000, 1000], [1000, 300_000, 10]];
        let ids = Ids::of(Some(&Owners { uids, gids: vec![[0, 5, 1]] }));
        assert_eq!([0, 33, 1001, 5000].map(|id| ids.uid(id)), [100_000, 100_033, 300_001, 100_000]);
        assert_eq!((ids.gid(0), ids.gid(7)), (5, 5));
    }
}

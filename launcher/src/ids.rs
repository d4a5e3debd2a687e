//! Users: maps between namespaces, and names to numbers by the tree's own passwd and group files.

use crate::plan::LAST_GROUP;
use crate::spec::{IdMapping, IdRange};

/// The id maps of a new user namespace, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
    /// `setgroups` must be given up before the groups can be mapped.
    pub deny_setgroups: bool,
}

impl IdMaps {
    /// A user of the job's, as the launcher knows it.
    pub(crate) fn outside(&self, uid: u32) -> Option<u32> {
        let range = self.uids.iter().find(|r| uid >= r.inside && uid - r.inside < r.count)?;
        range.outside.checked_add(uid - range.inside)
    }

    /// Can the job's processes have this further group?
    pub(crate) fn has_group(&self, gid: u32) -> bool {
        !self.deny_setgroups && contains(&self.gids, gid)
    }

    /// The groups of the job whose numbers outside are the lowest and the highest: a range of groups is one outside.
    pub(crate) fn all_groups(&self) -> (u32, u32) {
        let usable = || self.gids.iter().filter(|r| r.count > 0 && r.inside <= LAST_GROUP);
        let last = |r: &IdRange| r.inside.saturating_add(r.count - 1).min(LAST_GROUP);
        let lowest = usable().min_by_key(|r| r.outside);
        let highest = usable().max_by_key(|r| r.outside.saturating_add(last(r) - r.inside));
        (lowest.map_or(0, |r| r.inside), highest.map_or(0, last))
    }

    /// Can the job use this user and group?
    pub(crate) fn covers(&self, uid: u32, gid: u32) -> bool {
        contains(&self.uids, uid) && contains(&self.gids, gid)
    }
}

impl IdMaps {
    /// What is inside comes outside: the kernel looks up the owner of a file among the ids of a mapped mount's namespace.
    pub(crate) fn turned(self) -> Self {
        let turn = |ranges: Vec<IdRange>| {
            let turn =
                |r: IdRange| IdRange { inside: r.outside, outside: r.inside, count: r.count };
            ranges.into_iter().map(turn).collect()
        };
        Self { uids: turn(self.uids), gids: turn(self.gids), ..self }
    }
}

fn contains(ranges: &[IdRange], id: u32) -> bool {
    ranges.iter().any(|r| id >= r.inside && id - r.inside < r.count)
}

/// The text of a map, as `/proc/PID/uid_map` takes it.
pub(crate) fn map_text(ranges: &[IdRange]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
}

/// Parses `/proc/PID/uid_map` or `gid_map`. Lines of another form are left out.
pub fn parse_map(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
            Some(IdRange {
                inside: numbers.next()??,
                outside: numbers.next()??,
                count: numbers.next()??,
            })
        })
        .collect()
}

/// Who the launcher is, as far as ids are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// May it map any id of its own namespace (CAP_SETUID and CAP_SETGID)?
    pub maps_freely: bool,
    /// Users of its own namespace.
    pub uid_map: Vec<IdRange>,
    /// Groups of its own namespace.
    pub gid_map: Vec<IdRange>,
}

impl Caller {
    /// Has its namespace more ids than the caller's own?
    fn has_ranges(&self) -> bool {
        let many = |map: &[IdRange]| map.iter().map(|r| u64::from(r.count)).sum::<u64>() > 1;
        self.maps_freely && many(&self.uid_map) && many(&self.gid_map)
    }

    /// The maps of the job's namespace. `user` is whom the job runs as, where that is known by number.
    pub(crate) fn maps(&self, wanted: &IdMapping, user: Option<(u32, u32)>) -> IdMaps {
        match wanted {
            IdMapping::Ranges { uids, gids } => {
                IdMaps { uids: uids.clone(), gids: gids.clone(), deny_setgroups: false }
            }
            IdMapping::Auto if self.has_ranges() => IdMaps {
                uids: unchanged(&self.uid_map),
                gids: unchanged(&self.gid_map),
                deny_setgroups: false,
            },
            IdMapping::Auto | IdMapping::Single => {
                let (uid, gid) = user.unwrap_or((self.uid, self.gid));
                IdMaps {
                    uids: vec![IdRange { inside: uid, outside: self.uid, count: 1 }],
                    gids: vec![IdRange { inside: gid, outside: self.gid, count: 1 }],
                    deny_setgroups: true,
                }
            }
        }
    }

    /// Has its own namespace this group?
    pub(crate) fn has_group(&self, gid: u32) -> bool {
        contains(&self.gid_map, gid)
    }

    /// The user a job gets that names none.
    pub(crate) fn default_user(&self, wanted: &IdMapping) -> (u32, u32) {
        match wanted {
            IdMapping::Ranges { .. } => (0, 0),
            IdMapping::Auto if self.has_ranges() => (0, 0),
            IdMapping::Auto | IdMapping::Single => (self.uid, self.gid),
        }
    }
}

/// The same ids inside as in the caller's namespace.
fn unchanged(map: &[IdRange]) -> Vec<IdRange> {
    map.iter().map(|r| IdRange { inside: r.inside, outside: r.inside, count: r.count }).collect()
}

/// A user, resolved to numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Number.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory, where the passwd file tells one.
    pub home: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in the passwd file.
    #[error("the tree's etc/passwd has no user {0}")]
    NoUser(String),
    /// Not in the group file.
    #[error("the tree's etc/group has no group {0}")]
    NoGroup(String),
    /// Nothing before or after the colon.
    #[error("{0:?} is not of the form user[:group]")]
    Form(String),
}

/// Resolves `user[:group]` by the text of a passwd and a group file.
///
/// A number needs no entry. Without a group, the main and further groups of the entry are taken.
///
/// # Errors
/// A name that neither file knows.
pub fn resolve_user(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name)),
        None => (wanted, None),
    };
    if name.is_empty() || group_name == Some("") {
        return Err(UserError::Form(wanted.to_owned()));
    }
    let number = name.parse::<u32>().ok();
    // A number is never a name, even if somebody is called so.
    let is_meant = |fields: &[&str]| match number {
        Some(number) => fields[2].parse() == Ok(number),
        None => fields[0] == name,
    };
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.len() >= 6 && is_meant(fields));
    let field = |index: usize| entry.as_ref().and_then(|fields| fields[index].parse::<u32>().ok());
    let uid = number.or(field(2)).ok_or_else(|| UserError::NoUser(name.to_owned()))?;
    let (gid, groups) = match (group_name, &entry) {
        (Some(wanted), _) => (resolve_group(wanted, group)?, Vec::new()),
        (None, Some(fields)) => (field(3).unwrap_or(0), member_of(fields[0], group)),
        (None, None) => (0, Vec::new()),
    };
    let home = entry.map(|fields| fields[5].to_owned()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, groups, home })
}

/// Resolves a group by number or by name.
///
/// # Errors
/// A name that the file doesn't know.
pub(crate) fn resolve_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    let gid = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(wanted)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    gid.ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn member_of(user: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|member| member == user);
            member.then(|| fields[2].parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:50:web,root\n";

    #[test]
    fn users_by_name_and_number() {
        let web = resolve_user("web", PASSWD, GROUP).unwrap();
        assert_eq!(
            (web.uid, web.gid, web.groups, web.home.as_deref()),
            (33, 34, vec![50], Some("/srv"))
        );
        let web = resolve_user("33", PASSWD, GROUP).unwrap();
        assert_eq!((web.uid, web.gid), (33, 34));
        let other = resolve_user("1000:log", PASSWD, GROUP).unwrap();
        assert_eq!((other.uid, other.gid, other.home), (1000, 50, None));
        assert_eq!(resolve_user("1000", PASSWD, GROUP).unwrap().gid, 0);
        let named = format!("1000:x:5:6::/five:/bin/sh\n{PASSWD}ann:x:1000:7::/ann:/bin/sh\n");
        let ann = resolve_user("1000", &named, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.home.as_deref()), (1000, 7, Some("/ann")));
        assert_eq!(resolve_user("0", PASSWD, GROUP).unwrap().groups, [50]);
        assert_eq!(resolve_user("nobody", PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve_user("0:x", PASSWD, GROUP), Err(UserError::NoGroup("x".into())));
        assert_eq!(resolve_user(":", PASSWD, GROUP), Err(UserError::Form(":".into())));
    }

    #[test]
    fn root_gets_all_ids_and_a_user_gets_one() {
        let all = parse_map("         0          0 4294967295\n");
        let root = Caller {
            maps_freely: true,
            uid_map: all.clone(),
            gid_map: all.clone(),
            ..Caller::default()
        };
        let maps = root.maps(&IdMapping::Auto, Some((33, 33)));
        assert_eq!((maps.uids, maps.deny_setgroups), (all, false));
        assert_eq!(map_text(&root.maps(&IdMapping::Single, Some((33, 34))).gids), "34 0 1\n");

        let one = parse_map("1000 1000 1");
        let user =
            Caller { uid: 1000, gid: 1000, maps_freely: true, uid_map: one.clone(), gid_map: one };
        let maps = user.maps(&IdMapping::Auto, Some((0, 0)));
        assert_eq!((map_text(&maps.uids).as_str(), maps.deny_setgroups), ("0 1000 1\n", true));
        assert_eq!(user.default_user(&IdMapping::Auto), (1000, 1000));
    }

    #[test]
    fn groups_that_may_ping() {
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let of = |gids| IdMaps { uids: Vec::new(), gids, deny_setgroups: false }.all_groups();
        assert_eq!(of(vec![range(0, 0, u32::MAX)]), (0, LAST_GROUP));
        assert_eq!(of(vec![range(0, 1000, 1), range(1, 100_000, 65_536)]), (0, 65_536));
        assert_eq!(of(vec![range(1000, 1000, 1), range(0, 100_000, 1000)]), (1000, 999));
        assert_eq!(of(vec![range(7, 1000, 1)]), (7, 7));
    }

    #[test]
    fn a_shifted_namespace_is_copied_by_its_inner_ids() {
        let map = parse_map("0 100000 65536");
        let caller =
            Caller { maps_freely: true, uid_map: map.clone(), gid_map: map, ..Caller::default() };
        assert_eq!(map_text(&caller.maps(&IdMapping::Auto, None).uids), "0 0 65536\n");
    }
}

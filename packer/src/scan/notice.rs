//! What an image says differently from its input.

use std::fmt;
use std::path::PathBuf;

/// Something the image does not say as the input does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The entry, relative to the layer's root.
    pub path: PathBuf,
    /// What was done to it.
    pub change: Change,
}

/// What a [`Notice`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A time before 1970 became 1970: the format has none earlier.
    TimeBeforeEpoch,
    /// An access control list was left out: the format has none. Its mask stood in the place of the
    /// group's permissions, which are now what the list gave the group.
    AccessControlList,
    /// The same for the list that a directory passes on.
    DefaultAccessControlList,
    /// This attribute was left out, here and wherever else it was: it belongs to the host's file
    /// system (`system.nfs4_acl`) or policy (`security.selinux`), not to the content.
    HostAttribute(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.change {
            Change::TimeBeforeEpoch => f.write_str("a time before 1970 becomes 1970"),
            Change::AccessControlList => f.write_str(
                "the access control list is left out, which squashfs cannot hold; owner, group and others keep what it gave them",
            ),
            Change::DefaultAccessControlList => {
                f.write_str("the default access control list is left out, which squashfs cannot hold")
            }
            Change::HostAttribute(name) => {
                write!(f, "the host's attribute {name} is left out, here and wherever else it is")
            }
        }
    }
}

impl Change {
    /// What the names of attributes start with that squashfs has a place for.
    const HELD: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

    /// What is said of an attribute that an image does not hold; nothing of one that it does.
    pub(super) fn of_attribute(attribute: &[u8]) -> Option<Self> {
        match attribute {
            b"system.posix_acl_access" => Some(Change::AccessControlList),
            b"system.posix_acl_default" => Some(Change::DefaultAccessControlList),
            b"security.selinux" => Some(Self::host(attribute)),
            _ if Self::HELD.iter().any(|prefix| attribute.starts_with(prefix)) => None,
            _ => Some(Self::host(attribute)),
        }
    }

    fn host(attribute: &[u8]) -> Self {
        Change::HostAttribute(String::from_utf8_lossy(attribute).into_owned())
    }
}

//! What is made of what others wrote by this crate, each for any bytes: for `fuzz/`, and for the test that runs its seeds.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{Reply, Request};
use crate::events::Event;
use crate::{JobConfig, MountConfig, NetworkConfig, Status, mountinfo};

/// Takes any bytes; panics if something is wrong with what was made of them.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 4] =
    [("events", events), ("messages", messages), ("mountinfo", mount_table), ("state", state)];

/// A document: written and read again, it stays what it is.
fn document<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(data) else { return };
    // A number that is none is written as null.
    let Ok(text) = serde_json::to_string(&read) else { return };
    let Ok(again) = serde_json::from_str::<T>(&text) else {
        panic!("what was read is not read again: {text}")
    };
    assert_eq!(serde_json::to_string(&again).ok(), Some(text));
}

/// What commands and supervisors say to each other.
pub fn messages(data: &[u8]) {
    document::<Request>(data);
    document::<Reply>(data);
}

/// The documents of the state folder.
pub fn state(data: &[u8]) {
    document::<JobConfig>(data);
    document::<Status>(data);
    document::<MountConfig>(data);
    document::<NetworkConfig>(data);
}

/// The log of events.
pub fn events(data: &[u8]) {
    document::<Event>(data);
}

/// /proc/self/mountinfo, in which names are anybody's.
pub fn mount_table(data: &[u8]) {
    let _entries = mountinfo::parse(&String::from_utf8_lossy(data)).len();
}

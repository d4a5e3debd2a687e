//! Lists and maps of foreign documents that end where there are too many members, rather than in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use mica_graph::Version;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Entry, Index};

struct List<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} members", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(member) = list.next_element()? {
            if all.len() == self.0 {
                return Err(A::Error::invalid_length(self.0 + 1, &self));
            }
            all.push(member);
        }
        Ok(all)
    }
}

/// The versions of an index.
pub(super) fn list<'de, D: Deserializer<'de>>(document: D) -> Result<Vec<Entry>, D::Error> {
    document.deserialize_seq(List(Index::MAX_VERSIONS, PhantomData))
}

struct Tags;

impl<'de> Visitor<'de> for Tags {
    type Value = BTreeMap<Version, Version>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} tags", Index::MAX_TAGS)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut all = BTreeMap::new();
        while let Some((tag, version)) = map.next_entry()? {
            all.insert(tag, version);
            if all.len() > Index::MAX_TAGS {
                return Err(A::Error::invalid_length(all.len(), &self));
            }
        }
        Ok(all)
    }
}

/// The tags of an index.
pub(super) fn tags<'de, D: Deserializer<'de>>(
    document: D,
) -> Result<BTreeMap<Version, Version>, D::Error> {
    document.deserialize_map(Tags)
}

//! Whether and how a new image borrows what earlier ones hold, rather than copy it.
//!
//! It does where most of it is here: then it is ready in the time that its difference takes, costs no more of the disk, and what the
//! page cache has of the earlier image serves the new one. An image in too many files or pieces would be slow to open and read:
//! what lies in the files that hold the least is copied, and an image in too many pieces is stored whole.

use std::collections::HashMap;
use std::sync::Arc;

use mica_squashfs::chunks::ChunkTable;

use super::{LocalFile, Recipe, Segment};
use crate::cache::borrowed::format::{self, BaseFile, MAX_BASES, MAX_SEGMENTS};

/// Images of which no more than this is here are not worth a list.
const SMALLEST: u64 = 1 << 20;

/// When there would be too many base files, so many stay: the next versions then have some to spare.
const KEPT_BASES: usize = MAX_BASES / 2;

/// How to put a borrowed image together.
pub(crate) struct Plan<'a> {
    pub(crate) table: &'a ChunkTable,
    segments: Vec<Planned<'a>>,
}

struct Planned<'a> {
    segment: &'a Segment,
    /// Whether its bytes stay where they are.
    borrowed: bool,
}

/// What comes next.
pub(crate) enum Step<'a> {
    /// Bytes that stay where they are, up to this offset of the image.
    Skip { until: u64 },
    /// So many bytes of this file, from this offset.
    Copy { file: &'a std::fs::File, offset: u64, length: u64 },
    /// A request up to this offset.
    Fetch { until: u64 },
}

impl Recipe {
    /// How to borrow, if that pays.
    pub(crate) fn borrow(&self) -> Option<Plan<'_>> {
        let table = self.table()?;
        if self.local() < SMALLEST {
            return None;
        }
        let mut held: HashMap<&BaseFile, u64> = HashMap::new();
        for segment in &self.segments {
            if let Some(local) = &segment.local {
                *held.entry(&local.file.base).or_default() += segment.end - segment.start;
            }
        }
        let mut bases: Vec<(&BaseFile, u64)> = held.into_iter().collect();
        if bases.len() > MAX_BASES {
            bases.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            bases.truncate(KEPT_BASES);
        }
        let kept = |file: &LocalFile| bases.iter().any(|(base, _)| **base == file.base);
        let segments = self.segments.iter().map(|segment| Planned {
            segment,
            borrowed: segment.local.as_ref().is_some_and(|local| kept(&local.file)),
        });
        let plan = Plan { table, segments: segments.collect() };
        let pays = plan.borrowed() >= table.image_len() / 2 && plan.segments.len() <= MAX_SEGMENTS;
        pays.then_some(plan)
    }
}

impl Plan<'_> {
    /// Bytes that stay where they are.
    pub(crate) fn borrowed(&self) -> u64 {
        let borrowed = self.segments.iter().filter(|planned| planned.borrowed);
        borrowed.map(|planned| planned.segment.end - planned.segment.start).sum()
    }

    /// Whether a byte of the image has to come into its own file.
    pub(crate) fn is_own(&self, offset: u64) -> bool {
        let next = self.segments.partition_point(|planned| planned.segment.end <= offset);
        self.segments.get(next).is_some_and(|planned| !planned.borrowed)
    }

    /// How to go on when the image's first `at` bytes are seen to.
    pub(crate) fn step(&self, at: u64) -> Option<Step<'_>> {
        let next = self.segments.partition_point(|planned| planned.segment.end <= at);
        let Planned { segment, borrowed } = self.segments.get(next)?;
        Some(match &segment.local {
            Some(_) if *borrowed => Step::Skip { until: segment.end },
            Some(local) => Step::Copy {
                file: &local.file.file,
                offset: local.offset + (at - segment.start),
                length: segment.end - at,
            },
            None => Step::Fetch { until: segment.end },
        })
    }

    /// The base files and segments of the image, as its file lists them.
    pub(crate) fn listed(&self) -> (Vec<BaseFile>, Vec<format::Segment>) {
        let mut bases: Vec<&Arc<LocalFile>> = Vec::new();
        let (mut segments, mut own) = (Vec::<format::Segment>::new(), 0);
        for Planned { segment, borrowed } in &self.segments {
            let length = segment.end - segment.start;
            let (file, offset) = match segment.local.as_ref().filter(|_| *borrowed) {
                Some(local) => {
                    let known = bases.iter().position(|base| Arc::ptr_eq(base, &local.file));
                    let base = known.unwrap_or_else(|| {
                        bases.push(&local.file);
                        bases.len() - 1
                    });
                    (base as u32 + 1, local.offset)
                }
                None => (0, own),
            };
            own += if file == 0 { length } else { 0 };
            match segments.last_mut() {
                Some(last) if last.file == file && last.offset + last.length == offset => {
                    last.length += length;
                }
                _ => segments.push(format::Segment { length, file, offset }),
            }
        }
        (bases.into_iter().map(|base| base.base.clone()).collect(), segments)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use mica_graph::Digest;

    use super::super::Local;
    use super::*;
    use crate::cache::borrowed::format::Base;

    const M: u64 = 1 << 20;

    /// Pieces of a megabyte each, of these files; 0 is to be fetched.
    fn recipe(files: &[usize]) -> Recipe {
        let most = files.iter().max().unwrap();
        let file = |i: usize| {
            let base = BaseFile { base: Base::Blob(Digest::of(&i.to_le_bytes())), length: 1 << 40 };
            Arc::new(LocalFile { file: Arc::new(File::open("/dev/null").unwrap()), base })
        };
        let known: Vec<_> = (0..=*most).map(file).collect();
        let mut table = ChunkTable::default();
        let mut segments = Vec::new();
        for (i, file) in files.iter().enumerate() {
            table.push(M as u32, [i as u8; 32]);
            let local = (*file > 0)
                .then(|| Local { file: Arc::clone(&known[*file]), offset: i as u64 * 2 * M });
            segments.push(Segment { start: i as u64 * M, end: (i as u64 + 1) * M, local });
        }
        Recipe { segments, table: Some(table) }
    }

    #[test]
    fn what_is_here_stays_and_the_rest_is_the_images_own() {
        let recipe = recipe(&[1, 0, 1, 2]);
        let plan = recipe.borrow().unwrap();
        assert_eq!(plan.borrowed(), 3 * M);
        assert!(plan.is_own(M) && !plan.is_own(M - 1) && !plan.is_own(2 * M));
        assert!(matches!(plan.step(0), Some(Step::Skip { until: M })));
        assert!(matches!(plan.step(M + 5), Some(Step::Fetch { until }) if until == 2 * M));
        assert!(plan.step(4 * M).is_none());
        let (bases, segments) = plan.listed();
        assert_eq!(bases.len(), 2);
        let segments: Vec<_> = segments.iter().map(|s| (s.file, s.offset, s.length)).collect();
        assert_eq!(segments, [(1, 0, M), (0, 0, M), (1, 4 * M, M), (2, 6 * M, M)]);
    }

    #[test]
    fn little_is_not_borrowed() {
        assert!(recipe(&[0, 0, 1]).borrow().is_none());
        assert!(Recipe::whole().borrow().is_none());
    }

    #[test]
    fn of_too_many_files_those_with_the_least_are_copied() {
        let mut files: Vec<usize> = (1..=MAX_BASES + 1).collect();
        files.extend([1; 40]);
        let recipe = recipe(&files);
        let plan = recipe.borrow().unwrap();
        let (bases, segments) = plan.listed();
        assert_eq!(bases.len(), KEPT_BASES);
        assert!(bases.contains(&recipe.segments[0].local.as_ref().unwrap().file.base));
        assert_eq!(segments.iter().map(|s| s.length).sum::<u64>(), files.len() as u64 * M);
        let copied = (0..files.len()).filter(|i| plan.is_own(*i as u64 * M)).count();
        assert_eq!(copied, MAX_BASES + 1 - KEPT_BASES);
    }
}

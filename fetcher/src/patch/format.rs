//! The index of a patch: what pieces it has, and what of the old contents each refers to.

use mica_graph::Digest;
use mica_squashfs::rebuild::Recipe;

pub(crate) const MAGIC: [u8; 8] = *b"micapat1";

/// The longest piece, as contents.
pub(crate) const PIECE_MAX: usize = 8 << 20;
/// The most of the old contents that one piece refers to.
pub(crate) const REFERENCE_MAX: usize = 32 << 20;
/// The shortest piece, but for the last one: each costs a decoder and a read of the old contents.
pub(crate) const PIECE_MIN: usize = 32 << 10;
/// What a run of the old contents costs at least, in bytes: a block has to be decoded for it.
const RUN_COST: u64 = 64 << 10;
/// Raw contents of an image are no more than so many times as long as the image. What compresses better is sent in chunks.
const RATIO: u64 = 64;
/// What the bounds leave besides, so that small images have room.
const SLACK: u64 = 32 << 20;
/// A piece may be a little longer than its contents.
const STORED_MAX: usize = PIECE_MAX + (PIECE_MAX >> 7);

/// A patch without the bytes of its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchIndex {
    /// The image whose contents it refers to.
    pub old: Digest,
    /// The length of those contents.
    pub old_len: u64,
    /// How the new image follows from its contents.
    pub recipe: Recipe,
    /// The pieces, in the order of the new contents.
    pub pieces: Vec<Piece>,
}

/// A run of the new contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its length.
    pub len: u32,
    /// The length of the zstd frame that encodes it.
    pub stored: u32,
    /// BLAKE3 of that frame.
    pub digest: Digest,
    /// Runs of the old contents, as position and length: joined they are the frame's prefix.
    pub reference: Vec<(u64, u32)>,
}

/// Bytes that are no index of a patch.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The magic is missing.
    #[error("not a patch, or one of another version")]
    Magic,
    /// Less than it says, or more.
    #[error("the index of the patch is cut short or too long")]
    Length,
    /// The recipe cannot be used.
    #[error("the patch has no usable recipe")]
    Recipe(#[from] mica_squashfs::rebuild::RecipeError),
    /// A number that cannot be.
    #[error("piece {piece} of the patch has {what} {value}")]
    Value {
        /// Which piece.
        piece: usize,
        /// Of what.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// It costs far more than the image is worth that it makes.
    #[error("the patch takes decoding {work} bytes for an image of {image}")]
    Work {
        /// What it takes.
        work: u64,
        /// The length of the image.
        image: u64,
    },
    /// The pieces do not make up the contents.
    #[error("the pieces of the patch have {found} bytes of contents, not {expected}")]
    Contents {
        /// Their sum.
        found: u64,
        /// What the recipe says.
        expected: u64,
    },
}

impl PatchIndex {
    /// The index as it is shipped, at the start of the patch.
    pub fn encode(&self) -> Vec<u8> {
        let recipe = self.recipe.encode();
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.old.as_bytes());
        out.extend_from_slice(&self.old_len.to_le_bytes());
        out.extend_from_slice(&(recipe.len() as u32).to_le_bytes());
        out.extend_from_slice(&recipe);
        for piece in &self.pieces {
            out.extend_from_slice(&piece.len.to_le_bytes());
            out.extend_from_slice(&piece.stored.to_le_bytes());
            out.extend_from_slice(piece.digest.as_bytes());
            out.extend_from_slice(&(piece.reference.len() as u32).to_le_bytes());
            for (position, len) in &piece.reference {
                out.extend_from_slice(&position.to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
            }
        }
        out
    }

    /// Bytes to be decoded when it is applied: the new contents, and of the old ones each run as often as it is referred to.
    pub fn work(&self) -> u64 {
        let runs = self.pieces.iter().flat_map(|piece| &piece.reference);
        let old = runs.map(|(_, len)| u64::from(*len).max(RUN_COST));
        old.fold(self.recipe.raw_len(), u64::saturating_add)
    }

    /// The most that [`work`](Self::work) may be: five times the contents, which may be 64 times the image.
    pub fn most_work(&self) -> u64 {
        let longest = self.recipe.image_len().saturating_mul(RATIO).saturating_add(SLACK);
        self.recipe.raw_len().min(longest).saturating_mul(5).saturating_add(SLACK)
    }

    /// Reads a shipped index. Memory is bounded by its length, whatever it says, and what it takes to apply it by the image that
    /// it makes ([`most_work`](Self::most_work)).
    pub fn parse(mut bytes: &[u8]) -> Result<Self, PatchError> {
        let rest = &mut bytes;
        if !matches!(take(rest), Ok(MAGIC)) {
            return Err(PatchError::Magic);
        }
        let old = Digest::from(blake3::Hash::from(take::<32>(rest)?));
        let old_len = u64::from_le_bytes(take(rest)?);
        let recipe = number(rest)? as usize;
        let (recipe, tail) = rest.split_at_checked(recipe).ok_or(PatchError::Length)?;
        *rest = tail;
        let recipe = Recipe::parse(recipe)?;
        let mut index = Self { old, old_len, recipe, pieces: Vec::new() };
        let mut found = 0;
        let expected = index.recipe.raw_len();
        let longest = index.recipe.image_len().saturating_mul(RATIO).saturating_add(SLACK);
        if expected > longest {
            return Err(PatchError::Work { work: expected, image: index.recipe.image_len() });
        }
        while !rest.is_empty() {
            let piece = index.parse_piece(rest)?;
            if (piece.len as usize) < PIECE_MIN && !rest.is_empty() {
                let (piece, value) = (index.pieces.len(), piece.len.into());
                return Err(PatchError::Value { piece, what: "contents of length", value });
            }
            found += u64::from(piece.len);
            index.pieces.push(piece);
        }
        if found != expected {
            return Err(PatchError::Contents { found, expected });
        }
        let work = index.work();
        if work > index.most_work() {
            return Err(PatchError::Work { work, image: index.recipe.image_len() });
        }
        Ok(index)
    }

    fn parse_piece(&self, rest: &mut &[u8]) -> Result<Piece, PatchError> {
        let number_of_piece = self.pieces.len();
        let bounded = |what, value: u32, max: usize| match value {
            0 => Err(PatchError::Value { piece: number_of_piece, what, value: 0 }),
            value if value as usize > max => {
                Err(PatchError::Value { piece: number_of_piece, what, value: value.into() })
            }
            value => Ok(value),
        };
        let len = bounded("contents of length", number(rest)?, PIECE_MAX)?;
        let stored = bounded("length", number(rest)?, STORED_MAX)?;
        let digest = Digest::from(blake3::Hash::from(take::<32>(rest)?));
        let mut reference = Vec::new();
        let mut total = 0_usize;
        for _ in 0..number(rest)? {
            let position = u64::from_le_bytes(take(rest)?);
            let run = bounded("a reference of length", number(rest)?, REFERENCE_MAX)?;
            total += run as usize;
            let inside = position.checked_add(run.into()).is_some_and(|end| end <= self.old_len);
            if !inside || total > REFERENCE_MAX {
                let what = "a reference at";
                return Err(PatchError::Value { piece: number_of_piece, what, value: position });
            }
            reference.push((position, run));
        }
        Ok(Piece { len, stored, digest, reference })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PatchError> {
    let (head, tail) = rest.split_first_chunk().ok_or(PatchError::Length)?;
    *rest = tail;
    Ok(*head)
}

fn number(rest: &mut &[u8]) -> Result<u32, PatchError> {
    Ok(u32::from_le_bytes(take(rest)?))
}

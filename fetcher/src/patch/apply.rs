//! Applying a patch: the new contents, from the old ones and the frames of the pieces.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};

use mica_squashfs::rebuild::{Contents, RebuildError, rebuild};

use super::format::PatchIndex;
use super::make::read_runs;
use super::piece;

/// Makes the new image. `frame` gives the verified frames of the pieces, one after the other; the next piece is decoded while
/// the one before it is compressed again.
pub(crate) fn apply(
    index: &PatchIndex,
    old: &Contents<'_>,
    mut frame: impl FnMut(usize) -> io::Result<Vec<u8>> + Send,
    out: &mut dyn Write,
) -> Result<(), RebuildError> {
    let (sender, pieces) = sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (number, piece) in index.pieces.iter().enumerate() {
                let decoded = frame(number).and_then(|frame| {
                    let reference = read_runs(old, &piece.reference)?;
                    piece::decode(&reference, &frame, piece.len as usize)
                });
                let failed = decoded.is_err();
                // Nobody waits any more when the image could not be written.
                if sender.send(decoded).is_err() || failed {
                    return;
                }
            }
        });
        // Owned here, so that the thread ends when this does.
        let mut contents = NewContents { pieces, piece: io::Cursor::new(Vec::new()) };
        rebuild(&index.recipe, &mut contents, out, None)
    })
}

/// Decoded pieces as one stream.
struct NewContents {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for NewContents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.piece.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Ok(piece) = self.pieces.recv() else { return Ok(0) };
            self.piece = io::Cursor::new(piece?);
        }
    }
}

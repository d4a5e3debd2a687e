//! Applying a patch: the new contents, from the old ones and the frames of the pieces.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use mica_squashfs::rebuild::{Contents, RebuildError, rebuild};

use super::format::PatchIndex;
use super::make::read_runs;
use super::piece;

/// Pieces decoded at a time: old contents have to be decoded for each, which takes as long as compressing them would on a few
/// processors. More would take more memory.
const DECODERS: usize = 2;

/// Makes the new image. `frame` gives the verified frames of the pieces, one after the other; the next pieces are decoded while
/// the one before them is compressed again.
pub(crate) fn apply(
    index: &PatchIndex,
    old: &Contents<'_>,
    frame: impl FnMut(usize) -> io::Result<Vec<u8>> + Send,
    out: &mut dyn Write,
) -> Result<(), RebuildError> {
    let (order, decoded) = sync_channel(1);
    let next = Mutex::new((0..index.pieces.len(), frame));
    std::thread::scope(|scope| {
        let mut started = Err(io::ErrorKind::OutOfMemory.into());
        for _ in 0..DECODERS {
            let (order, next) = (order.clone(), &next);
            let decoder = std::thread::Builder::new().spawn_scoped(scope, move || {
                let mut reference = Vec::new();
                loop {
                    // Held while a frame comes, so that pieces are announced in their order.
                    let mut turn = next.lock().unwrap_or_else(PoisonError::into_inner);
                    let (numbers, frame) = &mut *turn;
                    let Some(number) = numbers.next() else { return };
                    let frame = frame(number);
                    let (sender, receiver) = sync_channel(1);
                    // Nobody waits any more when the image could not be written.
                    if order.send(receiver).is_err() {
                        return;
                    }
                    if frame.is_err() {
                        numbers.start = numbers.end;
                    }
                    drop(turn);
                    let piece = &index.pieces[number];
                    let decoded = frame.and_then(|frame| {
                        read_runs(old, &piece.reference, &mut reference)?;
                        piece::decode(&reference, &frame, piece.len as usize)
                    });
                    // The same holds here.
                    let _ = sender.send(decoded);
                }
            });
            // One is enough.
            started = started.or(decoder.map(drop));
        }
        started.map_err(RebuildError::Contents)?;
        drop(order);
        // Owned here, so that the threads end when this does.
        let mut contents = NewContents { decoded, piece: io::Cursor::new(Vec::new()) };
        rebuild(&index.recipe, Some(old), &mut contents, out, None)
    })
}

/// Decoded pieces as one stream.
struct NewContents {
    /// One for each piece, in order.
    decoded: Receiver<Receiver<io::Result<Vec<u8>>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for NewContents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.piece.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Ok(Ok(piece)) = self.decoded.recv().map(|piece| piece.recv()) else { return Ok(0) };
            self.piece = io::Cursor::new(piece?);
        }
    }
}

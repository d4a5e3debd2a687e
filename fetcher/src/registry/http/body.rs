//! The body of an answer as a blocking reader that never waits for ever.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::runtime::Handle;

use super::{HttpOptions, RateLimit};

/// The body of an answer.
pub(crate) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Reads a body. A read fails when nothing comes for `idle`, or when for longer than `idle` what comes is a trickle.
pub(super) struct BodyReader {
    runtime: Handle,
    pieces: Pieces,
    piece: Bytes,
    idle: Duration,
    rate: Option<RateLimit>,
    /// Since the window began: time spent waiting for the network, and bytes that came.
    waited: Duration,
    came: u64,
}

/// Bytes per second below which a transfer counts as stalled.
const TRICKLE: u64 = 1024;

impl BodyReader {
    pub(super) fn new(runtime: Handle, pieces: Pieces, options: &HttpOptions) -> Self {
        let (waited, came, piece) = (Duration::ZERO, 0, Bytes::new());
        let (idle, rate) = (options.idle_timeout, options.rate.clone());
        Self { runtime, pieces, piece, idle, rate, waited, came }
    }

    fn next_piece(&mut self) -> io::Result<bool> {
        let since = Instant::now();
        // The timer is made inside the runtime.
        let next = async { tokio::time::timeout(self.idle, self.pieces.next()).await };
        let next = self.runtime.block_on(next);
        let Ok(next) = next else {
            let reason = format!("nothing came for {} s", self.idle.as_secs_f32());
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        };
        let Some(piece) = next.transpose()? else { return Ok(false) };
        self.waited += since.elapsed();
        self.came += piece.len() as u64;
        if self.waited > self.idle {
            let least = u128::from(TRICKLE) * self.waited.as_millis() / 1000;
            if u128::from(self.came) < least {
                let reason = format!("less than {TRICKLE} bytes per second came");
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        if let Some(rate) = &self.rate {
            // What is not read yet is not sent yet: the network waits, too.
            std::thread::sleep(rate.take(piece.len()));
        }
        self.piece = piece;
        Ok(true)
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if !self.next_piece()? {
                return Ok(0);
            }
        }
        let n = self.piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

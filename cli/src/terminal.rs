//! A person's terminal while a job has it: raw, with keys to let go of it, its size passed on.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_agent::{Connected, Size};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::signal::SIGWINCH;
use signal_hook::iterator::{Handle, Signals};

use crate::error::{Advise, MICA_FAILED};

/// The size of the terminal at standard input; nothing where there is none.
pub(crate) fn size() -> Size {
    tcgetwinsize(io::stdin())
        .map_or(Size::default(), |size| Size { rows: size.ws_row, columns: size.ws_col })
}

/// A terminal in raw mode, as it was again when this is dropped.
pub(crate) struct Raw(Termios);

impl Raw {
    /// For a job that has a terminal and is typed at.
    pub(crate) fn new() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Err(anyhow::anyhow!("standard input is not a terminal"))
                .hint("leave out -t where input comes from a file or a pipe");
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The keys by which a person lets go of a job: `ctrl-p,ctrl-q`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// So many of them have been typed.
    typed: usize,
}

impl std::str::FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |word: &str| match word.as_bytes() {
            [byte] => Ok(*byte),
            _ => match word.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([byte @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => {
                    Ok(byte & 0x1f)
                }
                _ => Err(format!("`{word}` is not a key; use a letter or ctrl-LETTER")),
            },
        };
        let keys = text.split(',').filter(|w| !w.is_empty()).map(key).collect::<Result<_, _>>()?;
        Ok(Self { keys, typed: 0 })
    }
}

impl DetachKeys {
    /// What of the typed bytes is for the job, and whether the person lets go of it.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.typed]);
            self.typed = usize::from(self.keys.first() == Some(&byte) && self.keys.len() > 1);
            if self.typed == 0 {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

/// Why a dialogue is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The other side has ended.
    Ended,
    /// The person let go of it.
    Detached,
    /// Nobody reads what it prints.
    Unread,
}

/// Bytes between this command's streams and a program's.
#[derive(Default)]
pub(crate) struct Dialogue {
    /// From standard input to here.
    pub(crate) input: Option<OwnedFd>,
    /// The keys that end it; without a terminal there are none.
    pub(crate) keys: Option<DetachKeys>,
    /// There is something to read from standard input.
    pub(crate) typed: bool,
    /// From here to standard output.
    pub(crate) stdout: Option<OwnedFd>,
    /// From here to standard error.
    pub(crate) stderr: Option<OwnedFd>,
    /// Others write to standard output: it is over when nobody reads that.
    pub(crate) watched: bool,
}

impl Dialogue {
    /// Passes bytes on until `end` becomes readable, or the person lets go.
    pub(crate) fn run(&mut self, end: BorrowedFd<'_>) -> io::Result<Over> {
        loop {
            let [input, out, err, ended, unread] = self.wait(end)?;
            if input && !self.typed {
                self.typed = true;
            } else if input && self.take_input() {
                return Ok(Over::Detached);
            }
            if out && !pass_on(self.stdout.as_ref(), &mut io::stdout().lock()) {
                self.stdout = None;
            }
            if err && !pass_on(self.stderr.as_ref(), &mut io::stderr().lock()) {
                self.stderr = None;
            }
            // What was printed before the end is here by now.
            if ended && !out && !err {
                return Ok(Over::Ended);
            }
            if unread {
                return Ok(Over::Unread);
            }
        }
    }

    /// What is ready. Of the input first what is typed and then the program that takes it: nobody waits for a program
    /// that reads nothing, while it waits for its output to be read.
    fn wait(&self, end: BorrowedFd<'_>) -> io::Result<[bool; 5]> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let (read, write) = (PollFlags::IN, PollFlags::OUT);
        let sources = [
            self.input.as_ref().map(|to| match self.typed {
                false => (stdin.as_fd(), read),
                true => (to.as_fd(), write),
            }),
            self.stdout.as_ref().map(|fd| (fd.as_fd(), read)),
            self.stderr.as_ref().map(|fd| (fd.as_fd(), read)),
            Some((end, read)),
            // Only a pipe without a reader is told of.
            self.watched.then(|| (stdout.as_fd(), PollFlags::empty())),
        ];
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.map(|source| source.is_some() && ready.next().unwrap_or(false)))
    }

    /// Passes on what is typed, no more than fits into a pipe that takes anything. True if the person lets go.
    fn take_input(&mut self) -> bool {
        self.typed = false;
        let Some(to) = &self.input else { return false };
        let mut buffer = [0; 4096];
        let count = rustix::io::read(io::stdin(), &mut buffer).unwrap_or(0);
        let (bytes, detached) = match &mut self.keys {
            Some(keys) => keys.filter(&buffer[..count]),
            None => (buffer[..count].to_vec(), false),
        };
        let written = to.try_clone().map(File::from).and_then(|mut to| to.write_all(&bytes));
        if count == 0 || written.is_err() {
            self.input = None;
        }
        detached
    }
}

/// One read's worth. False when there will be no more.
fn pass_on(from: Option<&OwnedFd>, to: &mut impl Write) -> bool {
    let Some(from) = from else { return false };
    let mut buffer = [0; 16 << 10];
    match from.try_clone().map(File::from).and_then(|mut from| from.read(&mut buffer)) {
        // A terminal whose last program has gone ends with an error.
        Ok(0) | Err(_) => false,
        // Nobody reads it any more; the program is told so.
        Ok(count) => to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok(),
    }
}

/// A dialogue with what a job's supervisor connects this command with; ends with its exit code, or 0 when let go of.
pub(crate) fn converse(mut dialogue: Dialogue, connected: &Connected) -> anyhow::Result<ExitCode> {
    let code = loop {
        if dialogue.run(connected.as_fd())? != Over::Ended {
            break Some(0);
        }
        // Answers to signals and sizes are no end.
        if let Some(ended) = connected.try_wait()? {
            break ended;
        }
    };
    // Without a supervisor there is no job.
    let code = code.unwrap_or(128 + 9);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(MICA_FAILED)))
}

/// While this lives, signals to this command are handed on, by a thread that nobody waits for in the end: that would cost up
/// to a millisecond.
pub(crate) struct Passing(Handle);

impl Passing {
    /// Hands them to `each`.
    pub(crate) fn start(
        mut signals: Signals,
        each: impl FnMut(i32) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let handle = signals.handle();
        std::thread::Builder::new()
            .name("mica-signals".to_owned())
            .spawn(move || signals.forever().for_each(each))
            .context("cannot start the thread that passes signals on")?;
        Ok(Self(handle))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Passes a change of the terminal's size on by `resize`, and what is no such signal by `signal`.
pub(crate) fn pass_signal(
    number: i32,
    terminal: bool,
    resize: impl FnOnce(Size),
    signal: impl FnOnce(i32),
) {
    match number {
        SIGWINCH if terminal => resize(size()),
        // Without a terminal of the job's its size is nothing to it.
        SIGWINCH => {}
        other => signal(other),
    }
}

/// A job can be typed at only by a person with a terminal.
pub(crate) fn check(tty: bool, interactive: bool) -> anyhow::Result<Option<Raw>> {
    match (tty, interactive) {
        (true, true) => Raw::new().map(Some),
        _ => Ok(None),
    }
}

/// A pipe whose far end is handed over, to be written to by a [`Dialogue`].
pub(crate) fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
        Ok(ends) => Ok(ends),
        Err(error) => bail!("cannot make a pipe: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_let_go() {
        let mut keys: DetachKeys = "ctrl-p,ctrl-q".parse().unwrap();
        assert_eq!(keys.filter(b"ab"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"\x10"), (b"".to_vec(), false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false), "what was held back follows");
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11more"), (b"".to_vec(), true));
        let mut none: DetachKeys = "".parse().unwrap();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!("ctrl-".parse::<DetachKeys>().is_err());
        assert!("word".parse::<DetachKeys>().is_err());
    }
}

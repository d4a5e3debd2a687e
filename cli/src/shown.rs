//! What a person is shown: text in which nothing moves the cursor, changes colours or hides anything.
//!
//! Names, messages and commands come from jobs, packages, images and registries. A terminal obeys the control characters in
//! them, and bidirectional marks make one thing look like another. Here is the one place that takes them out; JSON, files
//! that are copied and the output of jobs stay as they are.

use std::borrow::Cow;
use std::io::{self, Write};

/// Whether a character is shown as it is.
fn is_harmless(c: char) -> bool {
    let hidden = matches!(c,
        // Line and paragraph separators.
        '\u{2028}' | '\u{2029}'
        // Marks, embeddings, overrides and isolates of bidirectional text.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        // Characters without a look: a byte order mark, annotations, tags.
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    !c.is_control() && !hidden
}

/// A line for a person: control characters are written as `\u{1b}`.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Several lines for a person: line feeds and tabs stay.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || c == '\t')
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(|c| is_harmless(c) || stays(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_harmless(c) || stays(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// A writer of [`text`]; what is no UTF-8 is replaced.
pub(crate) struct Shown<W: Write> {
    to: W,
    /// The beginning of a character whose rest has not come.
    partial: Vec<u8>,
}

impl<W: Write> Shown<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, partial: Vec::new() }
    }
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.partial) {
            Ok(_) => self.partial.len(),
            // A character that is cut short at the end may go on; anything else never will.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.partial.len(),
        };
        let rest = self.partial.split_off(whole);
        let known = std::mem::replace(&mut self.partial, rest);
        self.to.write_all(text(&String::from_utf8_lossy(&known)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(line("naïve 日本 🦀 ~"), "naïve 日本 🦀 ~");
        assert_eq!(
            line("a\x1b[2Jb\r\n\tc\x7f\u{9b}1m"),
            r"a\u{1b}[2Jb\u{d}\u{a}\u{9}c\u{7f}\u{9b}1m"
        );
        assert_eq!(text("one\n\ttwo\r"), "one\n\ttwo\\u{d}");
        assert_eq!(line("exe\u{202e}gpj"), r"exe\u{202e}gpj");
        for c in (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| c.is_control()) {
            assert!(!line(&c.to_string()).contains(c));
        }
        for c in
            ['\u{2028}', '\u{2029}', '\u{200f}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{e0041}']
        {
            assert!(!line(&c.to_string()).contains(c));
        }
    }

    #[test]
    fn a_stream_is_cut_anywhere() {
        let whole = "ü\x1b[1m日本\n\u{202e}".as_bytes();
        for cut in 0..whole.len() {
            let mut shown = Shown::new(Vec::new());
            shown.write_all(&whole[..cut]).unwrap();
            shown.write_all(&whole[cut..]).unwrap();
            assert_eq!(String::from_utf8(shown.to).unwrap(), "ü\\u{1b}[1m日本\n\\u{202e}");
        }
        let mut shown = Shown::new(Vec::new());
        shown.write_all(b"a\xff\x1bb").unwrap();
        assert_eq!(shown.to, "a\u{fffd}\\u{1b}b".as_bytes());
    }
}

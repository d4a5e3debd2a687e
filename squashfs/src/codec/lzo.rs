//! Decoding LZO 1X, which no crate does without trusting its input.
//!
//! A stream is a row of instructions: copy literals from the stream, or bytes from what is decoded already, a distance
//! back. What the low codes mean depends on how many literals the instruction before copied. The format is described
//! in the kernel's `Documentation/staging/lzo.rst`.
//!
//! | first byte | copies | distance |
//! |---|---|---|
//! | `0000LLLL` after no literals | 3 + L literals, L extended | |
//! | `0000DDSS` after 1 to 3 literals | 2 bytes | 1 + D + 4 H |
//! | `0000DDSS` after 4 literals or more | 3 bytes | 2049 + D + 4 H |
//! | `0001HLLL` | 2 + L bytes, L extended | 16384 + D + 16384 H; 16384 is the end of the stream |
//! | `001LLLLL` | 2 + L bytes, L extended | 1 + D |
//! | `01LDDDSS` | 3 + L bytes | 1 + D + 8 H |
//! | `1LLDDDSS` | 5 + L bytes | 1 + D + 8 H |
//!
//! `H` is a byte that follows; the two in the middle are followed by 14 bits of D and 2 of S. S literals follow every
//! copy. A length of 0 is extended by bytes: 255 for each zero, and the first that is not zero.

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LzoError {
    #[error("the stream ends early")]
    Short,
    #[error("a copy from before the start")]
    Distance,
    #[error("bytes behind the end of the stream")]
    Behind,
    #[error("more bytes than allowed")]
    TooLong,
}

struct Stream<'a> {
    rest: &'a [u8],
    out: &'a mut Vec<u8>,
    max: usize,
}

/// Decodes `input` into `out`, whose old content is lost: `max` bytes at most.
pub(super) fn decompress(input: &[u8], max: usize, out: &mut Vec<u8>) -> Result<(), LzoError> {
    out.clear();
    out.reserve_exact(max);
    let mut stream = Stream { rest: input, out, max };
    // Literals that the instruction before copied, 4 for more than 3.
    let mut state = 0;
    if let Some(&first) = input.first().filter(|&&first| first > 17) {
        stream.byte()?;
        let count = usize::from(first) - 17;
        stream.literals(count)?;
        state = count.min(4);
    }
    loop {
        let code = usize::from(stream.byte()?);
        let (len, distance, literals) = match code {
            0..16 if state == 0 => {
                let len = stream.extended(code, 15)?;
                stream.literals(3 + len)?;
                state = 4;
                continue;
            }
            0..16 => {
                let (len, base) = if state == 4 { (3, 2049) } else { (2, 1) };
                (len, base + (code >> 2) + (usize::from(stream.byte()?) << 2), code & 3)
            }
            16..64 => {
                let (mask, base) = if code < 32 { (7, (code & 8) << 11) } else { (31, 1) };
                let len = 2 + stream.extended(code & mask, mask)?;
                let word = usize::from(stream.byte()?) | usize::from(stream.byte()?) << 8;
                let distance = base + (word >> 2);
                match (code, distance) {
                    (..32, 0) if stream.rest.is_empty() => return Ok(()),
                    (..32, 0) => return Err(LzoError::Behind),
                    (..32, _) => (len, 16384 + distance, word & 3),
                    _ => (len, distance, word & 3),
                }
            }
            _ => {
                let distance = 1 + ((code >> 2) & 7) + (usize::from(stream.byte()?) << 3);
                ((code >> 5) + 1, distance, code & 3)
            }
        };
        stream.copy(len, distance)?;
        stream.literals(literals)?;
        state = literals;
    }
}

impl Stream<'_> {
    fn byte(&mut self) -> Result<u8, LzoError> {
        let (&byte, rest) = self.rest.split_first().ok_or(LzoError::Short)?;
        self.rest = rest;
        Ok(byte)
    }

    /// A length that says by 0 that it is `most` and what follows.
    fn extended(&mut self, len: usize, most: usize) -> Result<usize, LzoError> {
        if len > 0 {
            return Ok(len);
        }
        let mut len = most;
        loop {
            match self.byte()? {
                // Cannot overflow: each step takes a byte of the input.
                0 => len += 255,
                last => return Ok(len + usize::from(last)),
            }
        }
    }

    fn literals(&mut self, count: usize) -> Result<(), LzoError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(LzoError::Short)?;
        self.room(count)?;
        self.rest = rest;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn copy(&mut self, mut len: usize, distance: usize) -> Result<(), LzoError> {
        self.room(len)?;
        let from = self.out.len().checked_sub(distance).ok_or(LzoError::Distance)?;
        // A copy may reach into what it writes: then it repeats, and each part doubles what there is.
        while len > 0 {
            let part = len.min(self.out.len() - from);
            self.out.extend_from_within(from..from + part);
            len -= part;
        }
        Ok(())
    }

    fn room(&self, count: usize) -> Result<(), LzoError> {
        if count > self.max - self.out.len() { Err(LzoError::TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8], max: usize) -> Result<Vec<u8>, LzoError> {
        let mut out = Vec::new();
        decompress(input, max, &mut out).map(|()| out)
    }

    const END: [u8; 3] = [0x11, 0, 0];

    #[test]
    fn instructions_one_by_one() {
        let with_end = |bytes: &[u8]| decode(&[bytes, &END[..]].concat(), 1000);
        assert_eq!(with_end(&[]), Ok(vec![]));
        assert_eq!(with_end(b"\x15abcd"), Ok(b"abcd".to_vec()));
        // 5 bytes from 4 back, then one literal.
        assert_eq!(with_end(b"\x15abcd\x8d\x00z"), Ok(b"abcdabcdaz".to_vec()));
        // 3 bytes from 2 back.
        assert_eq!(with_end(b"\x15abcd\x44\x00"), Ok(b"abcdcdc".to_vec()));
        // 2 bytes from 1 back, after one literal.
        assert_eq!(with_end(b"\x12a\x00\x00"), Ok(b"aaa".to_vec()));
        // 33 + 7 bytes from 1 back; 18 literals.
        assert_eq!(with_end(b"\x12a\x20\x07\x00\x00"), Ok(vec![b'a'; 41]));
        assert_eq!(with_end(b"\x00\x01nineteen literals !"), Ok(b"nineteen literals !".to_vec()));
    }

    #[test]
    fn damage_ends_in_errors() {
        assert_eq!(decode(b"", 10), Err(LzoError::Short));
        assert_eq!(decode(b"\x15ab", 10), Err(LzoError::Short));
        assert_eq!(decode(b"\x15abcd\x44\x01", 10), Err(LzoError::Distance));
        assert_eq!(decode(b"\x15abcd\x11\x00\x00", 3), Err(LzoError::TooLong));
        assert_eq!(decode(b"\x15abcd\x11\x00\x00x", 10), Err(LzoError::Behind));
        assert_eq!(decode(&[&b"\x12a\x20"[..], &[0; 100]].concat(), 10), Err(LzoError::Short));
    }
}

//! Bounds of foreign JSON: memory follows from what a text has of values, not from its length alone.

/// How much a JSON text may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonBounds {
    /// Its longest length, in bytes.
    pub bytes: u64,
    /// The most values in it, members of lists and objects counted alike. A value takes some 100 bytes in memory.
    pub values: usize,
    /// The deepest nesting of lists and objects.
    pub depth: usize,
}

/// A text that holds more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it holds more than {} bytes, {} values or {} levels", .0.bytes, .0.values, .0.depth)]
pub struct TooMuchJson(pub JsonBounds);

impl JsonBounds {
    /// Bounds of so many bytes and values, nested at most 32 deep.
    pub const fn new(bytes: u64, values: usize) -> Self {
        Self { bytes, values, depth: 32 }
    }

    /// Looks through a text before anything is made of it, in time and without memory. Whether it is JSON is not its business.
    ///
    /// # Errors
    /// It holds too much.
    pub fn check(&self, text: &[u8]) -> Result<(), TooMuchJson> {
        if text.len() as u64 > self.bytes {
            return Err(TooMuchJson(*self));
        }
        // One value for the text itself; each opening and each comma begins one more.
        let (mut values, mut depth, mut in_string, mut escaped) = (1_usize, 0_usize, false, false);
        for byte in text {
            if in_string {
                match (escaped, byte) {
                    (true, _) => escaped = false,
                    (false, b'\\') => escaped = true,
                    (false, b'"') => in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => (values, depth) = (values + 1, depth + 1),
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' => values += 1,
                _ => {}
            }
            if values > self.values || depth > self.depth {
                return Err(TooMuchJson(*self));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted() {
        let bounds = JsonBounds { bytes: 40, values: 6, depth: 2 };
        for good in ["", "7", r#"{"a":[1,2,3]}"#, r#"["[[[[,,,,,{{{","\",,,,,"]"#, "]]]]]]"] {
            assert_eq!(bounds.check(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            r#"{"a":[1,2,3,4,5]}"#,
            "[[[1]]]",
            r#""                                        ""#,
            r#"["\\",1,1,1,1,1,1]"#,
        ] {
            assert!(bounds.check(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

//! XAR's text header: a shell script of assignments before the file system.
//!
//! ```text
//! #!/usr/bin/env xarexec_fuse
//! OFFSET="4096"
//! UUID="d7c1a1f0"
//! VERSION="1624969906"
//! XAREXEC_TARGET="bin/app"
//! #xar_stop
//! echo This XAR file should not be executed by sh
//! exit 1
//! # Actual squashfs file begins at 4096
//! ```
//!
//! padded with LF to `OFFSET` bytes. `xarexec_fuse` reads 4096 bytes, wants `OFFSET`, `UUID` and `VERSION`, takes no
//! offset but 4096, and ignores keys it does not know. A shell that runs the file evaluates the assignments, so a
//! value that a shell would interpret cannot be written.

use std::fmt::Write as _;

/// Bytes of the header that [`XarHeader::encode`] makes, and the offset of the file system behind it.
pub const HEADER_SIZE: usize = 4096;
/// What an executable XAR starts with.
pub const MAGIC: &[u8] = b"#!/usr/bin/env xarexec_fuse";
/// What all XARs start with: `make_xar --raw` without an executable names another interpreter.
const SCRIPT: &[u8] = b"#!";
/// Ends the assignments.
const STOP: &str = "#xar_stop";

/// A XAR header. The order of unknown keys is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct XarHeader {
    /// Where the file system starts: a multiple of 4096.
    pub offset: u64,
    /// `UUID`: what distinguishes two mounts. Ours is the first 8 hex digits of the payload's digest.
    pub uuid: Option<String>,
    /// `VERSION`: XAR's own tools write the time of packing.
    pub version: Option<String>,
    /// `DEPENDENCIES`: other XARs to mount; empty in practice.
    pub dependencies: Option<String>,
    /// `XAREXEC_TARGET`: what to run, relative to the mounted tree.
    pub xarexec_target: Option<String>,
    /// All other keys.
    pub others: Vec<(String, String)>,
}

/// Why a XAR header cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XarError {
    /// The file does not start as a XAR does.
    #[error("not a XAR header")]
    Magic,
    /// The line that ends the header is missing.
    #[error("the XAR header has no #xar_stop line")]
    NoStop,
    /// A line that is not `KEY="value"`.
    #[error("line {line} of the XAR header is not KEY=\"value\"")]
    Line {
        /// Line number, from 1.
        line: usize,
    },
    /// A key appears twice.
    #[error("the XAR header sets {key} twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// `OFFSET` is missing or not a positive multiple of 4096.
    #[error("the XAR header's OFFSET is not a positive multiple of 4096")]
    Offset,
    /// A key that is not a shell variable's name.
    #[error("{key:?} cannot be a key in a XAR header")]
    Key {
        /// The key.
        key: String,
    },
    /// A value that a shell would interpret, or with a line break.
    #[error("the value of {key} has a character that a XAR header cannot hold")]
    Value {
        /// The key.
        key: String,
    },
    /// More than fits in 4096 bytes.
    #[error("the XAR header takes {size} bytes, more than {HEADER_SIZE}")]
    TooLong {
        /// Bytes needed.
        size: usize,
    },
}

impl XarHeader {
    /// Whether these first bytes of a file can be a XAR's: they are a script's.
    pub fn is_xar(bytes: &[u8]) -> bool {
        bytes.starts_with(SCRIPT)
    }

    /// Reads a header from the first bytes of a file (4096 are enough for every tool known; more are accepted).
    ///
    /// Headers by others are taken as they are: any keys in any order, unquoted values, CR before LF, blank lines
    /// and comments.
    pub fn parse(bytes: &[u8]) -> Result<Self, XarError> {
        if !Self::is_xar(bytes) {
            return Err(XarError::Magic);
        }
        let mut header = Self::default();
        let mut offset = None;
        let mut stopped = false;
        for (index, raw) in bytes.split(|&b| b == b'\n').enumerate().skip(1) {
            let bad_line = XarError::Line { line: index + 1 };
            let line = raw.strip_suffix(b"\r").unwrap_or(raw);
            if line == STOP.as_bytes() {
                stopped = true;
                break;
            }
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let line = std::str::from_utf8(line).map_err(|_| bad_line.clone())?;
            let (key, value) = line.split_once('=').ok_or_else(|| bad_line.clone())?;
            if !is_key(key) {
                return Err(bad_line);
            }
            let value = unquote(value).ok_or(bad_line)?.to_owned();
            header.set(key, value, &mut offset)?;
        }
        if !stopped {
            return Err(XarError::NoStop);
        }
        header.offset = offset
            .and_then(|text| text.parse().ok())
            .filter(|&n: &u64| n > 0 && n % HEADER_SIZE as u64 == 0)
            .ok_or(XarError::Offset)?;
        Ok(header)
    }

    fn set(
        &mut self,
        key: &str,
        value: String,
        offset: &mut Option<String>,
    ) -> Result<(), XarError> {
        let slot = match key {
            "OFFSET" => offset,
            "UUID" => &mut self.uuid,
            "VERSION" => &mut self.version,
            "DEPENDENCIES" => &mut self.dependencies,
            "XAREXEC_TARGET" => &mut self.xarexec_target,
            _ => {
                if self.others.iter().any(|(k, _)| k == key) {
                    return Err(XarError::Twice { key: key.to_owned() });
                }
                self.others.push((key.to_owned(), value));
                return Ok(());
            }
        };
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(XarError::Twice { key: key.to_owned() }),
        }
    }

    /// Value of one of the other keys.
    pub fn other(&self, key: &str) -> Option<&str> {
        self.others.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The header in exactly [`HEADER_SIZE`] bytes. `offset` must be 4096.
    pub fn encode(&self) -> Result<Vec<u8>, XarError> {
        if self.offset != HEADER_SIZE as u64 {
            return Err(XarError::Offset);
        }
        let mut text = String::from_utf8_lossy(MAGIC).into_owned();
        text.push('\n');
        let mut put = |key: &str, value: &str| -> Result<(), XarError> {
            if !is_key(key) {
                return Err(XarError::Key { key: key.to_owned() });
            }
            if value.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | '$' | '`')) {
                return Err(XarError::Value { key: key.to_owned() });
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key}=\"{value}\"");
            Ok(())
        };
        put("OFFSET", &self.offset.to_string())?;
        let known = [
            ("UUID", &self.uuid),
            ("VERSION", &self.version),
            ("DEPENDENCIES", &self.dependencies),
            ("XAREXEC_TARGET", &self.xarexec_target),
        ];
        for (key, value) in known {
            if let Some(value) = value {
                put(key, value)?;
            }
        }
        for (index, (key, value)) in self.others.iter().enumerate() {
            let known_key = key == "OFFSET" || known.iter().any(|(k, _)| k == key);
            if known_key || self.others[..index].iter().any(|(k, _)| k == key) {
                return Err(XarError::Twice { key: key.clone() });
            }
            put(key, value)?;
        }
        text.push_str(STOP);
        text.push_str("\necho This XAR file should not be executed by sh\nexit 1\n");
        text.push_str("# Actual squashfs file begins at 4096\n");
        let mut bytes = text.into_bytes();
        if bytes.len() > HEADER_SIZE {
            return Err(XarError::TooLong { size: bytes.len() });
        }
        bytes.resize(HEADER_SIZE, b'\n');
        Ok(bytes)
    }
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Takes the double quotes off a value, where it has them.
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|v| !v.contains('"')),
        None => (!value.contains('"')).then_some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> XarHeader {
        XarHeader {
            offset: 4096,
            uuid: Some("d7c1a1f0".into()),
            version: Some("953bc".into()),
            dependencies: Some(String::new()),
            xarexec_target: Some("bin/app".into()),
            others: vec![("MICA_LABEL".into(), "//app:A".into())],
        }
    }

    #[test]
    fn encodes_to_one_page_and_parses_back() {
        let bytes = sample().encode().unwrap();
        assert_eq!(bytes.len(), 4096);
        assert!(bytes.ends_with(b"begins at 4096\n\n") || bytes.ends_with(b"\n\n"));
        assert_eq!(XarHeader::parse(&bytes).unwrap(), sample());
    }

    #[test]
    fn reads_what_make_xar_writes() {
        let text = "#!/usr/bin/env xarexec_fuse\nOFFSET=\"4096\"\nUUID=\"e7c1\"\nVERSION=\"1624969906\"\n\
                    DEPENDENCIES=\"\"\nXAREXEC_TARGET=\"xar_bootstrap.sh\"\n\
                    XAREXEC_TRAMPOLINE_NAMES=\"'main'\"\n#xar_stop\necho no\nexit 1\n";
        let header = XarHeader::parse(text.as_bytes()).unwrap();
        assert_eq!(header.offset, 4096);
        assert_eq!(header.xarexec_target.as_deref(), Some("xar_bootstrap.sh"));
        assert_eq!(header.other("XAREXEC_TRAMPOLINE_NAMES"), Some("'main'"));
    }

    #[test]
    fn reads_a_xar_without_an_executable() {
        let text = "#!/bin/echo This is not an executable XAR file.\nOFFSET=\"4096\"\nUUID=\"8864918e\"\n\
                    VERSION=\"1795330456\"\nDEPENDENCIES=\"\"\n#xar_stop\nexit 1\n";
        let header = XarHeader::parse(text.as_bytes()).unwrap();
        assert_eq!((header.offset, header.uuid.as_deref()), (4096, Some("8864918e")));
    }

    #[test]
    fn refuses_what_a_shell_would_run() {
        for value in ["$(reboot)", "`id`", "a\"b", "a\\b", "a\nb"] {
            let header = XarHeader { version: Some(value.into()), ..sample() };
            assert_eq!(header.encode(), Err(XarError::Value { key: "VERSION".into() }), "{value}");
        }
    }

    #[test]
    fn refuses_damaged_headers() {
        let parse = |text: &str| XarHeader::parse(text.as_bytes());
        assert_eq!(parse("hsqs"), Err(XarError::Magic));
        assert_eq!(parse("#!/bin/sh\n"), Err(XarError::NoStop));
        let start = "#!/usr/bin/env xarexec_fuse\n";
        assert_eq!(parse(&format!("{start}OFFSET=\"4096\"\n")), Err(XarError::NoStop));
        assert_eq!(parse(&format!("{start}#xar_stop\n")), Err(XarError::Offset));
        assert_eq!(parse(&format!("{start}OFFSET=\"7\"\n#xar_stop\n")), Err(XarError::Offset));
        assert_eq!(parse(&format!("{start}what\n#xar_stop\n")), Err(XarError::Line { line: 2 }));
        let twice = format!("{start}UUID=\"1\"\nUUID=\"2\"\n#xar_stop\n");
        assert_eq!(parse(&twice), Err(XarError::Twice { key: "UUID".into() }));
    }
}

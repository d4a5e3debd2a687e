//! Ranges and conditions of requests. Pure.

use std::ops::Range;

/// What part of a file of `size` bytes a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it: no range, several ranges, or a unit we do not know.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that are not there.
    Beyond,
}

pub(super) fn range(header: Option<&str>, size: u64) -> Wanted {
    let Some((first, last)) = header
        .and_then(|header| header.trim().strip_prefix("bytes="))
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Wanted::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Wanted::Whole,
        (Ok(first), _) if first >= size => Wanted::Beyond,
        (Ok(first), Ok(last)) => Wanted::Part(first..last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Wanted::Part(first..size),
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Beyond,
        (Err(_), Ok(_)) if first.trim().is_empty() && size == 0 => Wanted::Beyond,
        (Err(_), Ok(n)) if first.trim().is_empty() => Wanted::Part(size.saturating_sub(n)..size),
        _ => Wanted::Whole,
    }
}

/// Whether an `If-None-Match` or `If-Match` list names this tag (which stands in quotes).
pub(super) fn matches(header: &str, etag: &str) -> bool {
    let same = |item: &str| item == "*" || item.strip_prefix("W/").unwrap_or(item) == etag;
    header.split(',').map(str::trim).any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, wanted) in [
            ("bytes=0-4", Wanted::Part(0..5)),
            ("bytes=5-", Wanted::Part(5..10)),
            ("bytes=5-99", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=18446744073709551615-18446744073709551615", Wanted::Beyond),
            ("bytes=0-18446744073709551615", Wanted::Part(0..10)),
            ("lines=0-4", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(range(Some(header), 10), wanted, "{header}");
        }
        assert_eq!(range(None, 10), Wanted::Whole);
        assert_eq!(range(Some("bytes=0-0"), 0), Wanted::Beyond);
        assert_eq!(range(Some("bytes=-5"), 0), Wanted::Beyond);
    }

    #[test]
    fn tags() {
        assert!(matches("\"a\", \"b\"", "\"b\""));
        assert!(matches("W/\"b\"", "\"b\""));
        assert!(matches("*", "\"b\""));
        assert!(!matches("\"a\"", "\"b\""));
    }
}

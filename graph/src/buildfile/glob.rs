//! `glob()` patterns: `*` and `?` within a part of a path, `**` for any number of parts.

/// Whether the whole of `path` matches `pattern`.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<_> = pattern.split('/').collect();
    let path: Vec<_> = path.split('/').collect();
    // row[j]: the pattern's parts so far match the first j parts of the path.
    let mut row = vec![false; path.len() + 1];
    row[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let mut any = false;
            for (index, &here) in row.iter().enumerate() {
                any |= here;
                next[index] = any;
            }
        } else {
            for index in 0..path.len() {
                next[index + 1] = row[index] && matches_part(part, path[index]);
            }
        }
        row = next;
    }
    row[path.len()]
}

/// One part, by the usual two-pointer walk: linear for one `*`, quadratic at worst.
fn matches_part(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// What is wrong with a pattern.
pub(super) fn check(pattern: &str) -> Result<(), &'static str> {
    if pattern.starts_with('/') {
        return Err("it is absolute");
    }
    if pattern.contains(['[', ']', '{', '}']) {
        return Err("only *, ? and ** are special");
    }
    for part in pattern.split('/') {
        match part {
            "" | "." | ".." => return Err("a part of it is empty, `.` or `..`"),
            "**" => {}
            part if part.contains("**") => return Err("`**` stands for whole parts of a path"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path) in [
            ("*.c", "a.c"),
            ("**", "a/b/c"),
            ("**/*.c", "a.c"),
            ("**/*.c", "x/y/a.c"),
            ("x/**/a.c", "x/a.c"),
            ("x/**/a.c", "x/y/z/a.c"),
            ("a?c/*", "abc/d"),
            ("*a*b*", "xxaxxbxx"),
            ("*", ".hidden"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.c", "x/a.c"),
            ("*", "a/b"),
            ("x/**", "y/a"),
            ("a?c", "ac"),
            ("**/a", "b"),
            ("*a*b*", "xxbxxaxx"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let pattern = format!("{}b", "*a".repeat(2000));
        assert!(!matches(&pattern, &"a".repeat(4000)));
        let pattern = format!("{}b", "**/a/".repeat(500));
        assert!(!matches(&pattern, &format!("{}a", "a/".repeat(900))));
    }
}

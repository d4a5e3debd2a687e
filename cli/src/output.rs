//! Standard output carries data only; everything else goes to standard error.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use serde::Serialize;

use crate::shown::{self, Shown};

/// Buffered standard output.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Buffered standard output for text that people read: control characters come out as text.
pub(crate) fn text() -> BufWriter<Shown<StdoutLock<'static>>> {
    BufWriter::new(Shown::new(io::stdout().lock()))
}

/// Writes one line to standard error. That nobody reads it is no reason to fail.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", shown::text(&line.to_string()));
}

/// Prints a value as indented JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

/// Prints one line per item, for people and scripts: control characters come out as text.
pub(crate) fn lines(items: impl IntoIterator<Item = impl AsRef<str>>) -> anyhow::Result<()> {
    let mut out = stdout();
    for item in items {
        writeln!(out, "{}", shown::line(item.as_ref()))?;
    }
    out.flush()?;
    Ok(())
}

/// Prints one line per item as it is: JSON, and what mica itself has made.
pub(crate) fn exact_lines(items: impl IntoIterator<Item = impl AsRef<str>>) -> anyhow::Result<()> {
    let mut out = stdout();
    for item in items {
        writeln!(out, "{}", item.as_ref())?;
    }
    out.flush()?;
    Ok(())
}

/// How long ago a moment was, given in milliseconds since 1970.
pub(crate) fn ago(ms: i64) -> String {
    format!("{} ago", since(ms))
}

/// How much time has passed since a moment, given in milliseconds since 1970.
pub(crate) fn since(ms: i64) -> String {
    let seconds = (mica_agent::now_ms() - ms).max(0) / 1000;
    match seconds {
        1 => "1 second".into(),
        0..=119 => format!("{seconds} seconds"),
        120..=7_199 => format!("{} minutes", seconds / 60),
        7_200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A package reference with a full commit hash cut to twelve digits, for columns.
pub(crate) fn short_source(source: &str) -> String {
    match source.split_once('@') {
        Some((name, version)) if version.len() >= 40 && version.is_ascii() => {
            format!("{name}@{}", &version[..12])
        }
        _ => source.to_owned(),
    }
}

/// Prints rows in aligned columns under a heading; the last column is never padded.
pub(crate) fn table<const N: usize>(
    heading: [&str; N],
    rows: &[[String; N]],
) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(render_table(heading, rows).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// The text of [`table`].
pub(crate) fn render_table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    let rows: Vec<[_; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| shown::line(cell))).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading = heading.map(std::borrow::Cow::Borrowed);
    for row in std::iter::once(&heading).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size for people, in powers of 1024.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration for people.
pub(crate) fn duration(time: std::time::Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}

/// Whether progress bars make sense: a person watches, and has not asked for quiet.
pub(crate) fn shows_progress(quiet: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !quiet && !dumb && !set("CI") && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sizes_and_times_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(duration(Duration::from_millis(1500)), "1.5 s");
    }

    #[test]
    fn columns_line_up() {
        let text =
            render_table(["A", "LONG"], &[["xyz".into(), "1".into()], ["ü".into(), "2".into()]]);
        assert_eq!(text, "A    LONG\nxyz  1\nü    2\n");
    }
}

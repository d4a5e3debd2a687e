//! `mica image ls`: list an image's files.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mica_squashfs::{Image, Inode, InodeKind};
use serde::Serialize;

use super::ImageFile;
use crate::output;

/// List an image's files
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageFile,
    /// List only what is at or below this path
    #[arg(default_value = "/", value_name = "PATH")]
    below: PathBuf,
    /// Mode, links, owner, size, time and symlink targets too
    #[arg(short, long)]
    long: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    /// Bytes that are not UTF-8 are replaced.
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u32,
    inode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image = args.image.open()?;
    let start = super::find(&image, &args.below)?;
    let mut out = output::text();
    let mut rows = Vec::new();
    super::walk(&image, (Path::new("/").join(&args.below), start), |path, inode| {
        if args.json {
            rows.push(row(&image, path, inode)?);
            return Ok(());
        }
        if args.long {
            write!(out, "{} ", columns(&row(&image, path, inode)?))?;
        }
        out.write_all(path.as_os_str().as_bytes())?;
        if let (true, InodeKind::Symlink { .. }) = (args.long, &inode.kind) {
            out.write_all(b" -> ")?;
            out.write_all(&image.read_link(inode)?)?;
        }
        Ok(out.write_all(b"\n")?)
    })?;
    out.flush()?;
    if args.json {
        output::json(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(image: &Image, path: &Path, inode: &Inode) -> anyhow::Result<Row> {
    let kind = super::kind_word(inode);
    let size = match inode.kind {
        InodeKind::File { size, .. } => size,
        _ => 0,
    };
    let target = match inode.kind {
        InodeKind::Symlink { .. } => Some(image.read_link(inode)?),
        _ => None,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Row {
        path: text(path.as_os_str().as_bytes()),
        kind,
        mode: mode_text(kind, inode.mode),
        links: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: target.as_ref().map_or(size, |target| target.len() as u64),
        mtime: inode.mtime,
        inode: inode.number,
        target: target.as_deref().map(text),
        rdev: inode.device().map(|(major, minor)| [major, minor]),
        xattrs: image.xattrs(inode)?.iter().map(|xattr| text(&xattr.name)).collect(),
    })
}

fn columns(row: &Row) -> String {
    let time = jiff::Timestamp::from_second(row.mtime.into()).map(|time| time.to_string());
    let size = match row.rdev {
        Some([major, minor]) => format!("{major}, {minor}"),
        None => row.size.to_string(),
    };
    let owner = format!("{}:{}", row.uid, row.gid);
    format!("{} {:>3} {owner:>9} {size:>10} {}", row.mode, row.links, time.unwrap_or_default())
}

/// As `ls -l` writes it.
fn mode_text(kind: &str, mode: u16) -> String {
    let first = match kind {
        "file" => '-',
        "symlink" => 'l',
        "fifo" => 'p',
        other => other.chars().next().unwrap_or('?'),
    };
    let mut text = String::from(first);
    for (shift, special, set, unset) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::mode_text;

    #[test]
    fn modes_as_ls_writes_them() {
        assert_eq!(mode_text("file", 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_text("directory", 0o1777), "drwxrwxrwt");
        assert_eq!(mode_text("character-device", 0o2640), "crw-r-S---");
    }
}

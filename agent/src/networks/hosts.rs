//! A job's `/etc/hosts`: what it was given, what it wrote itself, and between two marks who is on its network.

use std::fmt::Write as _;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::files::{FileError, at};
use crate::state::JobDir;

const BEGIN: &str = "# jobs of this network; mica keeps these lines up to date";
const END: &str = "# end of the jobs of this network";

/// A job may write to its file; nobody reads more of it than this.
const LONGEST: u64 = 1 << 20;

/// Where it is kept, to be mounted in the job.
pub(super) fn file(job: &JobDir) -> PathBuf {
    job.path().join("hosts")
}

/// Makes the file as a job starts; whoever a job runs as may read it.
pub(crate) fn create(path: &Path, base: &str) -> Result<(), FileError> {
    std::fs::write(path, base).map_err(at("write", path))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(at("change", path))
}

/// Writes the lines of a network in place: the file is mounted in the job, so it can't be replaced.
pub(crate) fn update(path: &Path, entries: &[(IpAddr, Vec<String>)]) -> Result<(), FileError> {
    let mut file =
        OpenOptions::new().read(true).write(true).open(path).map_err(at("open", path))?;
    let mut text = String::new();
    let length =
        (&mut file).take(LONGEST + 1).read_to_string(&mut text).map_err(at("read", path))?;
    if length as u64 > LONGEST {
        return Err(at("understand", path)(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    let new = with_entries(&text, entries);
    if new == text {
        return Ok(());
    }
    // Readers meanwhile see the new lines, and perhaps some old ones after them.
    file.write_all_at(new.as_bytes(), 0).map_err(at("write", path))?;
    file.set_len(new.len() as u64).map_err(at("write", path))
}

fn with_entries(text: &str, entries: &[(IpAddr, Vec<String>)]) -> String {
    let mut new = String::new();
    let mut ours = false;
    for line in text.lines() {
        if line == BEGIN || line == END {
            ours = line == BEGIN;
        } else if !ours {
            new.push_str(line);
            new.push('\n');
        }
    }
    // Writing to memory can't fail.
    let _ = writeln!(new, "{BEGIN}");
    for (address, names) in entries {
        let _ = writeln!(new, "{address}\t{}", names.join(" "));
    }
    let _ = writeln!(new, "{END}");
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_own_lines_stay() {
        let entry = |last, name: &str| (IpAddr::from([10, 1, 0, last]), vec![name.to_owned()]);
        let first = with_entries("127.0.0.1\tlocalhost\n", &[entry(2, "a"), entry(3, "b")]);
        assert!(first.starts_with("127.0.0.1\tlocalhost\n") && first.contains("10.1.0.3\tb\n"));
        let second = with_entries(&(first + "1.2.3.4 mine"), &[entry(3, "c")]);
        assert!(second.contains("1.2.3.4 mine\n") && second.contains("10.1.0.3\tc\n"), "{second}");
        assert!(!second.contains("10.1.0.2") && second.matches(BEGIN).count() == 1, "{second}");
        assert_eq!(with_entries(&second, &[entry(3, "c")]), second);
    }

    #[test]
    fn the_file_stays_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "x\n").unwrap();
        let before = path.metadata().unwrap().ino();
        update(&path, &[(IpAddr::from([10, 1, 0, 2]), vec!["a".into()])]).unwrap();
        update(&path, &[]).unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("x\n{BEGIN}\n{END}\n"));
    }
}

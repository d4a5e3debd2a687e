//! What the job sees beside its stack: volumes, further stacks, file systems in memory.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::bail;
use mica_agent::{JobDir, StackConfig, StateDir, VolumeName};
use mica_launcher::{IdMapping, IdRange, Mount};

use super::values::{in_job, parse_mode, parse_size};
use crate::context::Context;
use crate::stacks::{self, Way};

/// Something to mount: of the host, or a volume by its name, whose folder is found when the job is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// As it is.
    Mount(Mount),
    /// Another package, or an image file.
    Image(ImageFlag),
    /// By name.
    Named {
        /// The volume.
        name: VolumeName,
        /// In the job.
        target: PathBuf,
        /// The job may not write to it.
        read_only: bool,
    },
}

/// A further stack in the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageFlag {
    /// A package, or the path of an image file.
    pub(crate) source: String,
    /// In the job.
    pub(crate) target: PathBuf,
    /// What of it is shown.
    pub(crate) subpath: Option<PathBuf>,
    /// The job may write to its own copy.
    pub(crate) writable: bool,
}

impl ImageFlag {
    /// What is mounted.
    pub(super) fn stack(&self, context: &Context, way: &Way<'_>) -> anyhow::Result<StackConfig> {
        if is_path(&self.source) {
            return stacks::of_images(&[PathBuf::from(&self.source)], way.verify);
        }
        Ok(stacks::of_package(context, &self.source.parse()?, way)?.0)
    }
}

/// A path of the host begins so; other words are names.
fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.'])
}

/// How a source is mounted.
#[derive(Clone)]
struct Options {
    read_only: bool,
    recursive: bool,
    follow: bool,
    ids: Option<IdMapping>,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_only: false, recursive: true, follow: false, ids: None }
    }
}

impl Options {
    fn set(&mut self, option: &str) -> Result<(), String> {
        match option {
            "ro" | "readonly" => self.read_only = true,
            "rw" | "rprivate" | "z" | "Z" => {}
            "private" => self.recursive = false,
            "rslave" => self.follow = true,
            "idmap" => self.ids = Some(IdMapping::Auto),
            maps if maps.starts_with("idmap=") => self.ids = Some(parse_idmap(&maps[6..])?),
            "rshared" | "shared" => {
                return Err(format!(
                    "`{option}`: mounts of a job never appear on the host; use rslave"
                ));
            }
            other => {
                return Err(format!(
                    "`{other}` is not an option of a volume; use ro, rw, rprivate, private, rslave or idmap"
                ));
            }
        }
        Ok(())
    }

    fn volume(self, source: &str, target: PathBuf) -> Result<Volume, String> {
        let Self { read_only, recursive, follow, ids } = self;
        if !is_path(source) {
            if ids.is_some() {
                return Err("a named volume has the job's own owners already".into());
            }
            return Ok(Volume::Named { name: source.parse()?, target, read_only });
        }
        let source = std::path::absolute(source).map_err(|error| error.to_string())?;
        Ok(Volume::Mount(Mount::Bind { source, target, read_only, recursive, follow, ids }))
    }
}

/// `uids=FILE-JOB-COUNT#…;gids=…`, as podman has it; without gids they are as the uids.
fn parse_idmap(text: &str) -> Result<IdMapping, String> {
    let wrong = || format!("`{text}` is not of the form uids=FILE-JOB-COUNT[#…][;gids=…]");
    let (mut uids, mut gids) = (None, None);
    for part in text.split(';') {
        let (kind, ranges) = part.split_once('=').ok_or_else(wrong)?;
        let range = |text: &str| {
            let numbers: Vec<u32> =
                text.split('-').map_while(|number| number.parse().ok()).collect();
            match numbers[..] {
                [outside, inside, count] if count > 0 => Ok(IdRange { inside, outside, count }),
                _ => Err(wrong()),
            }
        };
        let ranges = ranges.split('#').map(range).collect::<Result<Vec<_>, _>>()?;
        match kind {
            "uids" => uids = Some(ranges),
            "gids" => gids = Some(ranges),
            _ => return Err(wrong()),
        }
    }
    let uids = uids.ok_or_else(wrong)?;
    Ok(IdMapping::Ranges { gids: gids.unwrap_or_else(|| uids.clone()), uids })
}

pub(super) fn parse_volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(format!("`{text}` is not of the form SRC:DST[:ro]"));
    };
    let mut options = Options::default();
    parts.flat_map(|part| part.split(',')).try_for_each(|option| options.set(option))?;
    options.volume(source, in_job(target)?)
}

/// `type=bind,source=/a,target=/b,readonly`, as docker has it.
pub(super) fn parse_mount(text: &str) -> Result<Volume, String> {
    let (mut kind, mut source, mut target) = ("volume", None, None);
    let (mut writable, mut subpath) = (false, None);
    let (mut options, mut size, mut mode) = (Options::default(), None, 0o1777);
    for part in text.split(',') {
        match part.split_once('=').unwrap_or((part, "")) {
            ("type", value) => kind = value,
            ("source" | "src", value) => source = Some(value),
            ("target" | "destination" | "dst", value) => target = Some(in_job(value)?),
            ("readonly" | "ro", "" | "true" | "1") => options.read_only = true,
            ("readonly" | "ro", "false" | "0") => options.read_only = false,
            ("readwrite" | "rw", "" | "true" | "1") => writable = true,
            ("readwrite" | "rw", "false" | "0") => options.read_only = true,
            ("image-subpath" | "subpath", value) => subpath = Some(PathBuf::from(value)),
            ("bind-propagation", value) => options.set(value)?,
            ("idmap", "") => options.set("idmap")?,
            ("idmap", value) => options.ids = Some(parse_idmap(value)?),
            ("tmpfs-size", value) => size = Some(parse_size(value)?),
            ("tmpfs-mode", value) => mode = parse_mode(value)?,
            (other, _) => return Err(format!("`{other}` is not a key of a mount")),
        }
    }
    let target = target.ok_or("a mount needs target=PATH")?;
    if subpath.is_some() && kind != "image" {
        return Err(format!("a mount of type {kind} has no image-subpath"));
    }
    match (kind, source) {
        ("image", Some(source)) => {
            let (source, writable) = (source.to_owned(), writable && !options.read_only);
            Ok(Volume::Image(ImageFlag { source, target, subpath, writable }))
        }
        ("tmpfs", None) => {
            let read_only = options.read_only;
            let options = Vec::new();
            Ok(Volume::Mount(Mount::Tmpfs { target, size, mode, read_only, exec: false, options }))
        }
        ("bind", Some(source)) if is_path(source) => options.volume(source, target),
        ("volume", Some(source)) if !is_path(source) => options.volume(source, target),
        ("bind", _) => Err("a mount of type bind needs source=PATH".into()),
        ("volume" | "image", _) => Err(format!("a mount of type {kind} needs source=NAME")),
        _ => Err(format!("`{kind}` is not a type of mount; use bind, volume, tmpfs or image")),
    }
}

/// Options that every tmpfs of a job has, or that make no difference to one.
const TMPFS_ANYWAY: [&str; 17] = [
    "defaults",
    "rw",
    "noexec",
    "nosuid",
    "nodev",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "private",
    "rprivate",
];

/// As docker has it: whatever is said of times and the like is taken, and the later of two options counts.
pub(super) fn parse_tmpfs(text: &str) -> Result<Mount, String> {
    let (target, words) = text.split_once(':').unwrap_or((text, ""));
    let target = in_job(target)?;
    let (mut size, mut mode, mut read_only, mut exec) = (None, 0o1777, false, false);
    let mut options: Vec<(String, String)> = Vec::new();
    let number = |value: &str| value.parse::<u32>().is_ok();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("size", value)) => {
                options.retain(|(name, _)| name != "size");
                match value.strip_suffix('%').map(str::parse::<u8>) {
                    Some(Ok(1..=100)) => {
                        size = None;
                        options.push(("size".into(), value.into()));
                    }
                    Some(_) => return Err(format!("`{value}` is not from 1% to 100%")),
                    None => size = Some(parse_size(value)?),
                }
            }
            Some(("mode", value)) => mode = parse_mode(value)?,
            Some((name @ ("uid" | "gid"), value)) if number(value) => {
                options.push((name.into(), value.into()));
            }
            Some(("nr_inodes", value)) => {
                options.push(("nr_inodes".into(), parse_size(value)?.to_string()));
            }
            None if word == "ro" => read_only = true,
            None if word == "exec" => exec = true,
            None if TMPFS_ANYWAY.contains(&word) => {
                read_only &= word != "rw" && word != "defaults";
                exec &= word != "noexec" && word != "defaults";
            }
            _ => {
                return Err(format!(
                    "`{word}` is not an option of a tmpfs; use size=, mode=, uid=, gid=, nr_inodes=, ro or exec"
                ));
            }
        }
    }
    Ok(Mount::Tmpfs { target, size, mode, read_only, exec, options })
}

/// The mounts of a job, or of a dry run, which has no folders.
pub(super) fn mounts<'a>(
    volumes: impl Iterator<Item = &'a Volume>,
    job: Option<(&JobDir, &StateDir)>,
    ids: &IdMapping,
) -> anyhow::Result<Vec<Mount>> {
    let mut images = 0..;
    let mount = |volume: &Volume| match volume {
        Volume::Mount(mount) => Ok(mount.clone()),
        Volume::Named { name, target, read_only } => {
            named(name, target, *read_only, job.map(|(_, state)| state), ids)
        }
        Volume::Image(image) => {
            let tree = job.zip(images.next()).map(|((job, _), index)| job.image_tree(index));
            Ok(bind(tree.unwrap_or_else(|| image.source.clone().into()), image))
        }
    };
    volumes.map(mount).collect()
}

/// What lies deeper is mounted later, whatever the order of the flags.
pub(super) fn in_order(mounts: &mut [Mount]) -> anyhow::Result<()> {
    mounts.sort_by_key(|mount| mount.target().components().count());
    let mut seen = HashSet::new();
    match mounts.iter().find(|mount| !seen.insert(mount.target())) {
        Some(mount) => bail!("two mounts at {}", mount.target().display()),
        None => Ok(()),
    }
}

/// A volume's folder is made by the first job that names it, as with docker; a dry run makes none.
fn named(
    name: &VolumeName,
    target: &Path,
    read_only: bool,
    state: Option<&StateDir>,
    ids: &IdMapping,
) -> anyhow::Result<Mount> {
    Ok(Mount::Bind {
        source: match state {
            Some(state) => state.volumes().create(name)?,
            None => name.as_str().into(),
        },
        target: target.to_owned(),
        read_only,
        recursive: true,
        follow: false,
        // What it holds belongs to the job's users, whoever they are outside.
        ids: matches!(ids, IdMapping::Ranges { .. }).then_some(IdMapping::Auto),
    })
}

fn bind(source: PathBuf, image: &ImageFlag) -> Mount {
    Mount::Bind {
        source,
        target: image.target.clone(),
        read_only: !image.writable,
        recursive: true,
        follow: false,
        ids: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let volume = parse_volume("/a:/b:ro");
        let Ok(Volume::Mount(Mount::Bind { read_only, recursive, .. })) = &volume else {
            panic!("a volume")
        };
        assert!(*read_only && *recursive);
        assert_eq!(parse_mount("type=bind,src=/a,dst=/b,readonly"), volume);
        assert_eq!(parse_mount("source=data,target=/b"), parse_volume("data:/b"));
        let image = |text| match parse_mount(text) {
            Ok(Volume::Image(image)) => (image.source, image.subpath, image.writable),
            other => panic!("{other:?}"),
        };
        assert_eq!(image("type=image,src=B@v1,dst=/b"), ("B@v1".into(), None, false));
        assert_eq!(
            image("type=image,source=./f.xar,target=/b,rw=true,image-subpath=etc"),
            ("./f.xar".into(), Some("etc".into()), true)
        );
        let Ok(Volume::Mount(Mount::Bind { ids: Some(IdMapping::Ranges { uids, gids }), .. })) =
            parse_volume("/a:/b:ro,idmap=uids=1000-0-1#5-6-7;gids=1000-0-1")
        else {
            panic!("a volume with mapped owners")
        };
        assert_eq!((uids[0].outside, uids[0].inside, uids[1].count, gids.len()), (1000, 0, 7, 1));
        for bad in [
            "/a",
            "a b:/b",
            "/a:b",
            "/a:/b:rx",
            "/a:/b:rshared",
            "/a:/b:idmap=uids=1-2",
            "a:/b:idmap",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
        for bad in ["type=bind,source=a,target=/b", "type=tmpfs", "type=x,target=/b", "target=/b"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn file_systems_in_memory() {
        let parse = |text| match parse_tmpfs(text) {
            Ok(Mount::Tmpfs { size, mode, read_only, exec, options, .. }) => {
                let options: Vec<_> = options.iter().map(|(k, v)| format!("{k}={v}")).collect();
                (size, mode, read_only, exec, options.join(","))
            }
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(parse("/x"), (None, 0o1777, false, false, String::new()));
        assert_eq!(
            parse(
                "/x:rw,noexec,nosuid,nodev,size=64m,mode=700,uid=1000,gid=5,nr_inodes=1k,noatime"
            ),
            (Some(64 << 20), 0o700, false, false, "uid=1000,gid=5,nr_inodes=1024".into())
        );
        assert_eq!(
            parse("/x:size=1m,size=50%,exec,ro"),
            (None, 0o1777, true, true, "size=50%".into())
        );
        assert_eq!(parse("/x:ro,exec,defaults"), (None, 0o1777, false, false, String::new()));
        for bad in ["x", "/x:dev", "/x:suid", "/x:size=0%", "/x:uid=a", "/x:shared", "/x:mpol=bind"]
        {
            assert!(parse_tmpfs(bad).is_err(), "{bad}");
        }
    }
}

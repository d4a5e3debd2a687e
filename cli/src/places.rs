//! Where things are kept, and the settings: flag > `MICA_*` > the workspace's `mica.toml` > the user's > the host's.

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use mica_agent::LogConfig;
use mica_fetcher::Trust;
use mica_launcher::HostView;
use serde::Deserialize;

use crate::error::Advise as _;
use crate::folders::{self, TrustedFolders};
use crate::homes;
use crate::trust;
use crate::verbs::run::{log_settings, parse_size};

/// One layer of settings; what is `None` is left to the next.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    registry: Option<String>,
    cache: Option<PathBuf>,
    state: Option<PathBuf>,
    runtime: Option<PathBuf>,
    /// Mirrors of the registry, asked before it.
    mirrors: Option<Vec<String>>,
    /// Bytes that the cache may take, as in `20g`.
    quota: Option<String>,
    /// Bytes per second that may be fetched and sent, as in `10m`.
    limit_rate: Option<String>,
    /// Another cache, to be read only.
    shared_cache: Option<PathBuf>,
    /// The account whose subordinate ids root's jobs have.
    userns_remap: Option<String>,
    /// What jobs without a root layer see of the host; `default` stands for the usual paths.
    host_paths: Option<Vec<PathBuf>>,
    /// What keeps the output of jobs, as `--log-driver` says it.
    log_driver: Option<String>,
    /// The size of a log file, as in `20m`.
    log_max_size: Option<String>,
    /// How many there are.
    log_max_file: Option<u32>,
    /// Which packages need signatures. Every file's rules hold, whichever comes first: none can take back what another asks for.
    #[serde(default)]
    trust: Vec<trust::Setting>,
    /// The rules read so far.
    #[serde(skip)]
    rules: Trust,
    /// Packages whose recommended flags are taken without asking, whatever these are.
    #[serde(default)]
    recommended: Vec<trust::Setting>,
    /// The same, read.
    #[serde(skip)]
    accepted: Trust,
}

impl Settings {
    fn or(self, next: Self) -> Self {
        Self {
            registry: self.registry.or(next.registry),
            cache: self.cache.or(next.cache),
            state: self.state.or(next.state),
            runtime: self.runtime.or(next.runtime),
            mirrors: self.mirrors.or(next.mirrors),
            quota: self.quota.or(next.quota),
            limit_rate: self.limit_rate.or(next.limit_rate),
            shared_cache: self.shared_cache.or(next.shared_cache),
            userns_remap: self.userns_remap.or(next.userns_remap),
            host_paths: self.host_paths.or(next.host_paths),
            log_driver: self.log_driver.or(next.log_driver),
            log_max_size: self.log_max_size.or(next.log_max_size),
            log_max_file: self.log_max_file.or(next.log_max_file),
            trust: Vec::new(),
            rules: self.rules.and(next.rules),
            recommended: Vec::new(),
            accepted: self.accepted.and(next.accepted),
        }
    }

    /// What is set, in the words of the files.
    fn set(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let all = [
            ("registry", self.registry.clone()),
            ("mirrors", self.mirrors.as_ref().map(|list| list.join(" "))),
            ("cache", path(&self.cache)),
            ("shared-cache", path(&self.shared_cache)),
            ("quota", self.quota.clone()),
            ("state", path(&self.state)),
            ("runtime", path(&self.runtime)),
            ("userns-remap", self.userns_remap.clone()),
            ("host-paths", self.host_paths.as_deref().map(listed)),
            ("log-driver", self.log_driver.clone()),
            ("log-max-size", self.log_max_size.clone()),
            ("log-max-file", self.log_max_file.map(|count| count.to_string())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn from_env() -> Self {
        let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let word = |name: &str| var(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            registry: word("MICA_REGISTRY"),
            mirrors: word("MICA_MIRRORS")
                .map(|list| list.split_whitespace().map(str::to_owned).collect()),
            quota: word("MICA_QUOTA"),
            limit_rate: word("MICA_LIMIT_RATE"),
            userns_remap: word("MICA_USERNS_REMAP"),
            host_paths: var("MICA_HOST_PATHS").map(|list| env::split_paths(&list).collect()),
            shared_cache: var("MICA_SHARED_CACHE").map(PathBuf::from),
            cache: var("MICA_CACHE").map(PathBuf::from),
            state: var("MICA_STATE").map(PathBuf::from),
            runtime: var("MICA_RUNTIME").map(PathBuf::from),
            ..Self::default()
        }
    }

    /// A file that isn't there sets nothing. Relative paths in it start at its folder. What somebody else can change is an
    /// error, by `check`, which tells whether the user vouches for it: settings decide which programs run, and whose files are believed.
    fn from_file(
        path: &Path,
        check: impl FnOnce(&Path) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let Some(text) = folders::read(path)? else { return Ok(Self::default()) };
        let vouched = check(path)?;
        let mut settings: Self = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for dir in [
            &mut settings.cache,
            &mut settings.state,
            &mut settings.runtime,
            &mut settings.shared_cache,
        ] {
            *dir = dir.take().map(|dir| folder.join(dir));
        }
        settings.registry = settings.registry.map(|location| relative_to(folder, location));
        let rules = std::mem::take(&mut settings.trust);
        settings.rules = trust::rules(rules, path, folder, vouched)?;
        let rules = std::mem::take(&mut settings.recommended);
        settings.accepted = trust::recommended(rules, path, folder, vouched)?;
        Ok(settings)
    }
}

fn check_host_paths(settings: &Settings) -> anyhow::Result<()> {
    let bad = |path: &&PathBuf| {
        *path != Path::new(DEFAULT)
            && (!path.is_absolute() || path.components().any(|part| part == Component::ParentDir))
    };
    if settings.host_paths.iter().flatten().any(|path| path == Path::new("/")) {
        bail!("/ is not a part of the host; `mica run --host-root` shows all of it");
    }
    match settings.host_paths.iter().flatten().find(bad) {
        Some(path) => bail!("{} is not an absolute path without ..", path.display()),
        None => Ok(()),
    }
}

/// Stands for the usual paths among those that jobs see of the host.
const DEFAULT: &str = "default";

fn host_paths(set: Option<Vec<PathBuf>>) -> Vec<PathBuf> {
    let Some(set) = set else { return HostView::usual() };
    let meant = |path: PathBuf| match path == Path::new(DEFAULT) {
        true => HostView::usual(),
        false => vec![path],
    };
    set.into_iter().flat_map(meant).collect()
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn relative_to(folder: &Path, location: String) -> String {
    if !mica_fetcher::registry::is_folder(&location) || Path::new(&location).is_absolute() {
        return location;
    }
    folder.join(location).to_string_lossy().into_owned()
}

/// The folders and the registry a command works with.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The registry packages are published to and pulled from: a folder or a URL.
    pub(crate) registry: String,
    /// Whether it is not the workspace that names it: only then it gets a token that is for no registry in particular.
    pub(crate) named_by_user: bool,
    /// The node's images.
    pub(crate) cache: PathBuf,
    /// The jobs.
    pub(crate) state: PathBuf,
    /// Mounts, gone after a reboot.
    pub(crate) runtime: PathBuf,
    /// Mirrors of the registry, asked before it.
    pub(crate) mirrors: Vec<String>,
    /// Bytes that the cache may take.
    pub(crate) quota: Option<u64>,
    /// Bytes per second that may be fetched and sent.
    pub(crate) limit_rate: Option<u64>,
    /// Another cache, to be read only.
    pub(crate) shared_cache: Option<PathBuf>,
    /// The account whose subordinate ids root's jobs have.
    pub(crate) userns_remap: Option<String>,
    /// What jobs without a root layer see of the host.
    pub(crate) host_paths: Vec<PathBuf>,
    /// Where the output of jobs is kept.
    pub(crate) log: LogConfig,
    /// Which packages need signatures.
    pub(crate) trust: Trust,
    /// Packages whose recommended flags are taken without asking.
    pub(crate) accepted: Trust,
    /// Folders of all settings, also where stronger ones name others.
    pub(crate) folders: Vec<PathBuf>,
}

impl Places {
    /// Reads the settings as seen from the folder `cwd`; `registry` is the flag's value.
    pub(crate) fn find(cwd: &Path, registry: Option<&str>) -> anyhow::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let flag = Settings { registry: registry.map(str::to_owned), ..Settings::default() };
        let layers = layers(cwd)?;
        layers.iter().try_for_each(|(origin, settings)| {
            check_host_paths(settings).with_context(|| format!("cannot use host-paths of {origin}"))
        })?;
        let named_by_user = registry.is_some() || !workspace_names_registry(&layers);
        let named = layers.iter().flat_map(|(_, s)| [&s.state, &s.cache, &s.runtime]);
        let folders = named.flatten().cloned().collect();
        let layers = layers.into_iter();
        let settings = layers.fold(flag, |settings, (_, next)| settings.or(next));
        let place = |set: Option<PathBuf>, var, below, for_root: &str| -> anyhow::Result<PathBuf> {
            if let Some(dir) = set {
                return std::path::absolute(&dir)
                    .with_context(|| format!("cannot find {}", dir.display()));
            }
            if root && env::var_os(var).is_none_or(|value| value.is_empty()) {
                return Ok(for_root.into());
            }
            let at_home = || Some(home()?.join(below)).filter(|dir| homes::is_usable(dir));
            let dir = match absolute(var).or_else(at_home) {
                Some(dir) => dir,
                // Accounts without a home have a folder that is theirs alone all the same.
                None => homes::temporary()
                    .with_context(|| {
                        format!("neither {var} nor HOME names a folder that can be used")
                    })?
                    .join(below),
            };
            Ok(dir.join("mica"))
        };
        let cache = place(settings.cache, "XDG_CACHE_HOME", ".cache", "/var/cache/mica")?;
        let state = place(settings.state, "XDG_STATE_HOME", ".local/state", "/var/lib/mica")?;
        let runtime = match (settings.runtime, runtime_folder()) {
            (Some(set), _) => std::path::absolute(set)?,
            (None, Some(session)) => session.join("mica"),
            (None, None) if root => "/run/mica".into(),
            // Without a session, mounts are kept track of beside the jobs.
            (None, None) => state.join("run"),
        };
        let registry = settings
            .registry
            .unwrap_or_else(|| state.join("registry").to_string_lossy().into_owned());
        let size = |text: Option<String>, what: &str| {
            let wrong = |text, reason| anyhow::anyhow!("{what} {text}: {reason}");
            let parse = |text: String| parse_size(&text).map_err(|reason| wrong(text, reason));
            text.map(parse).transpose()
        };
        Ok(Self {
            registry,
            named_by_user,
            cache,
            state,
            runtime,
            mirrors: settings.mirrors.unwrap_or_default(),
            quota: size(settings.quota, "the cache's quota")?,
            limit_rate: size(settings.limit_rate, "the limit of the rate")?,
            shared_cache: settings.shared_cache,
            userns_remap: settings.userns_remap,
            host_paths: host_paths(settings.host_paths),
            log: log_settings(settings.log_driver, settings.log_max_size, settings.log_max_file)?,
            trust: settings.rules,
            accepted: settings.accepted,
            folders,
        })
    }
}

impl Places {
    /// The folders that no job may see, those of this user that other settings name or would make included.
    pub(crate) fn hidden(&self) -> Vec<PathBuf> {
        let own = [&self.state, &self.cache, &self.runtime].into_iter().chain(&self.shared_cache);
        let usual = [
            ("XDG_STATE_HOME", ".local/state"),
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_RUNTIME_DIR", ".local/state/mica/run"),
        ];
        let usual = usual.iter().filter_map(|(var, home)| Some(xdg(var, home)?.join("mica")));
        let system = ["/var/lib/mica", "/var/cache/mica", "/run/mica"].map(PathBuf::from);
        let temporary = homes::temporary_path();
        own.chain(&self.folders).cloned().chain(usual).chain(system).chain([temporary]).collect()
    }
}

/// Who said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An environment variable.
    Environment,
    /// The workspace's file.
    Workspace(PathBuf),
    /// Another file.
    File(PathBuf),
    /// Nobody.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment => f.write_str("environment"),
            Self::Workspace(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The settings but for flags, the strongest first.
fn layers(cwd: &Path) -> anyhow::Result<Vec<(Origin, Settings)>> {
    let mut layers = vec![(Origin::Environment, Settings::from_env())];
    if let Some(workspace) = find_workspace(cwd) {
        let file = workspace.join("mica.toml");
        let check = |file: &Path| trusted_folders()?.check_workspace(file);
        let settings = Settings::from_file(&file, check)?;
        // It is somebody's repository: it can ask for more, and give nothing away of who works in it.
        if settings.host_paths.is_some()
            || settings.userns_remap.is_some()
            || settings.accepted.rules().next().is_some()
        {
            return Err(anyhow::anyhow!("a workspace may not say what jobs are given, or whose ids they have"))
                .with_context(|| format!("cannot use {}", file.display()))
                .hint("host-paths, userns-remap and [[recommended]] belong into ~/.config/mica/config.toml or /etc/mica/config.toml");
        }
        layers.push((Origin::Workspace(file), settings));
    }
    let user = config_folder().map(|dir| dir.join("config.toml"));
    for file in [user, Some("/etc/mica/config.toml".into())].into_iter().flatten() {
        let settings = Settings::from_file(&file, |file| folders::check(file).map(|()| false))?;
        layers.push((Origin::File(file), settings));
    }
    Ok(layers)
}

/// Whether the registry is the one that the workspace's file names.
fn workspace_names_registry(layers: &[(Origin, Settings)]) -> bool {
    let names = layers.iter().find(|(_, settings)| settings.registry.is_some());
    names.is_some_and(|(origin, _)| matches!(origin, Origin::Workspace(_)))
}

/// The user's configuration folder.
fn config_folder() -> Option<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("mica"))
}

/// The folders that the user trusts.
pub(crate) fn trusted_folders() -> anyhow::Result<TrustedFolders> {
    TrustedFolders::read(config_folder())
}

/// Each setting that holds, and who set it. Every file's rules of trust hold.
pub(crate) fn origins(
    cwd: &Path,
    places: &Places,
) -> anyhow::Result<Vec<(String, String, Origin)>> {
    let layers = layers(cwd)?;
    let said: Vec<_> = layers.iter().map(|(origin, settings)| (origin, settings.set())).collect();
    let path = |path: &Path| Some(path.display().to_string());
    let all = [
        ("registry", Some(places.registry.clone())),
        ("mirrors", Some(places.mirrors.join(" ")).filter(|list| !list.is_empty())),
        ("cache", path(&places.cache)),
        ("shared-cache", places.shared_cache.as_deref().and_then(path)),
        ("quota", places.quota.map(|bytes| bytes.to_string())),
        ("state", path(&places.state)),
        ("runtime", path(&places.runtime)),
        ("userns-remap", places.userns_remap.clone()),
        ("host-paths", Some(listed(&places.host_paths))),
        ("log-driver", serde_json::to_value(places.log.driver)?.as_str().map(str::to_owned)),
        ("log-max-size", Some(places.log.max_size.to_string())),
        ("log-max-file", Some(places.log.max_file.to_string())),
    ];
    let mut rows = Vec::new();
    for (name, value) in all {
        let sets = |set: &[(&str, String)]| set.iter().any(|(other, _)| *other == name);
        let origin = said.iter().find(|(_, set)| sets(set)).map(|(origin, _)| (*origin).clone());
        rows.push((
            name.to_owned(),
            value.unwrap_or("-".into()),
            origin.unwrap_or(Origin::Default),
        ));
    }
    for (origin, settings) in layers {
        for rule in settings.accepted.rules() {
            let need = format!("{} of {} signatures", rule.threshold, rule.keys.len());
            rows.push((format!("recommended {}", rule.names.join(" ")), need, origin.clone()));
        }
        for rule in settings.rules.rules() {
            let need = match rule.keys.len() {
                0 => "no signature".to_owned(),
                keys => format!("{} of {keys} signatures", rule.threshold),
            };
            rows.push((format!("trust {}", rule.names.join(" ")), need, origin.clone()));
        }
    }
    Ok(rows)
}

/// `$var`, or `below` the home; relative values are to be ignored (XDG Base Directory Specification).
fn xdg(var: &str, below: &str) -> Option<PathBuf> {
    absolute(var).or_else(|| Some(home()?.join(below)))
}

fn absolute(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute())
}

/// `$HOME`; where there is none, or one that the user has no right to enter, as in cron's, Slurm's and podman's hooks, the one of the account.
fn home() -> Option<PathBuf> {
    let entered = |home: &PathBuf| {
        let stat = rustix::fs::stat(home.join("."));
        stat.err() != Some(rustix::io::Errno::ACCESS)
    };
    absolute("HOME").filter(entered).or_else(|| {
        let uid = rustix::process::geteuid().as_raw();
        let line = |text: &str| home_in(text, uid);
        fs::read_to_string("/etc/passwd").ok().as_deref().and_then(line).or_else(|| {
            // Accounts of a directory service.
            let mut getent = std::process::Command::new("getent");
            let output = getent.args(["passwd", &uid.to_string()]).output().ok()?;
            line(&String::from_utf8_lossy(&output.stdout))
        })
    })
}

/// The home of a user by passwd(5).
fn home_in(passwd: &str, uid: u32) -> Option<PathBuf> {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.get(2).is_some_and(|id| id.parse() == Ok(uid)))?;
    // `/nonexistent` and the like are homes of those who have none.
    fields.get(5).map(PathBuf::from).filter(|home| home.is_absolute() && home.is_dir())
}

/// `$XDG_RUNTIME_DIR`, if it is what the specification says: there, the user's, and nobody else's to write. What `su` and `sudo`
/// leave of another session is none.
fn runtime_folder() -> Option<PathBuf> {
    let folder = absolute("XDG_RUNTIME_DIR")?;
    let stat = rustix::fs::stat(&folder).ok()?;
    let own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0;
    own.then_some(folder)
}

/// The nearest folder, from `cwd` upwards, that is the root of a workspace.
pub(crate) fn find_workspace(cwd: &Path) -> Option<PathBuf> {
    const MARKS: [&str; 6] =
        ["mica.toml", "WORKSPACE", "WORKSPACE.bazel", "MODULE.bazel", ".buckconfig", ".git"];
    cwd.ancestors().find(|dir| MARKS.iter().any(|mark| dir.join(mark).exists())).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "registry = \"oci://h/p\"\ncache = \"c\"\nmirrors = [\"m\"]\nquota = \"20g\"\n\
        host-paths = [\"/usr\", \"default\"]\nuserns-remap = \"u\"\n[[trust]]\nname = \"a*\"\nkeys = []\n";

    #[test]
    fn settings_cut_off_or_changed_anywhere_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mica.toml");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Settings::from_file(&path, |_| Ok(true)).is_ok()
        };
        assert!(read(SEED.lines().next().unwrap().as_bytes()));
        for at in 0..SEED.len() {
            read(&SEED.as_bytes()[..at]);
            for bit in 0..8 {
                let mut changed = SEED.as_bytes().to_vec();
                changed[at] ^= 1 << bit;
                read(&changed);
            }
        }
        // As deep as it likes.
        assert!(!read(format!("mirrors = {}", "[".repeat(100_000)).as_bytes()));
    }
}

//! Credentials as other tools keep them: `auth.json` of podman and skopeo, `config.json` of docker, credential helpers.
//!
//! The files are those of containers-auth.json(5) and of docker's configuration: `auths` holds `user:password` in base64 (or an
//! identity token) by place, `credHelpers` a helper by host, `credsStore` one for the rest. The longest place that the
//! repository lies in wins; the first file that knows one wins.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mica_durable::Named;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Access, RegistryError};
use crate::file;

/// Files to look credentials up in.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
}

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// A name and a password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token to be exchanged for others (OAuth 2).
    IdentityToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// A file of credentials. What we do not know in it is kept.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auths: BTreeMap<String, Auth>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creds_store: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Auth {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What a helper prints: <https://github.com/docker/docker-credential-helpers>.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Credentials {
    /// The files that podman and docker look into, or only `authfile`.
    pub fn usual(authfile: Option<PathBuf>) -> Self {
        if let Some(file) = authfile.or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Self { files: vec![file] };
        }
        let home = variable("HOME");
        let docker =
            variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let config =
            variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
        let containers = [variable("XDG_RUNTIME_DIR"), config];
        let files = containers.into_iter().flatten().map(|dir| dir.join("containers/auth.json"));
        Self { files: files.chain(docker.map(|dir| dir.join("config.json"))).collect() }
    }

    /// What is known about a place, `host[:port][/path]`.
    pub(crate) fn login(&self, place: &str) -> Result<Option<Login>, RegistryError> {
        for path in &self.files {
            let Some(file) = read(path)? else { continue };
            if let Some(login) = file.login(place, path)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// The same for a server that takes no identity tokens.
    pub(crate) fn access(&self, place: &str) -> Result<Access, RegistryError> {
        Ok(match self.login(place)? {
            Some(Login::Password { user, password }) => Access::Basic { user, password },
            Some(Login::IdentityToken(_)) | None => Access::Anonymous,
        })
    }

    /// Notes a name and a password in the first file.
    pub fn store(&self, place: &str, user: &str, password: &str) -> Result<PathBuf, RegistryError> {
        let auth = Some(STANDARD.encode(format!("{user}:{password}")));
        self.change(|file| {
            file.auths.insert(place.to_owned(), Auth { auth, ..Auth::default() });
        })
    }

    /// Forgets what the first file knows of a place; whether it knew anything.
    pub fn forget(&self, place: &str) -> Result<bool, RegistryError> {
        let mut known = false;
        self.change(|file| known = file.auths.remove(place).is_some())?;
        Ok(known)
    }

    fn change(&self, change: impl FnOnce(&mut AuthFile)) -> Result<PathBuf, RegistryError> {
        let path = self.files.first().ok_or(RegistryError::NoAuthFile)?;
        let mut file = read(path)?.unwrap_or_default();
        change(&mut file);
        let json = serde_json::to_vec_pretty(&file).expect("strings and what was JSON before");
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(RegistryError::NoAuthFile)?;
        file::create_dir(folder, 0o700)?.replace(name, &json, 0o600)?;
        Ok(path.clone())
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn read(path: &Path) -> Result<Option<AuthFile>, RegistryError> {
    let Some(bytes) = file::read_given(path, 1 << 20)? else { return Ok(None) };
    // It names servers that get passwords, and programs that are run for them.
    let trusted = mica_durable::trusted::check(path, rustix::process::geteuid().as_raw());
    let refused = |error| std::io::Error::new(std::io::ErrorKind::PermissionDenied, error);
    trusted.map_err(refused).named("use", path)?;
    if bytes.is_empty() {
        return Ok(Some(AuthFile::default()));
    }
    let parsed = serde_json::from_slice(&bytes);
    Ok(Some(parsed.map_err(|source| RegistryError::AuthFile { path: path.to_owned(), source })?))
}

/// For [`crate::fuzz`].
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(mut file) = serde_json::from_slice::<AuthFile>(data) else { return };
    // No program is started for it.
    file.cred_helpers.clear();
    file.creds_store = None;
    let _login = file.login("example.com/team/app", Path::new("auth.json")).is_ok();
}

impl AuthFile {
    fn login(&self, place: &str, path: &Path) -> Result<Option<Login>, RegistryError> {
        let host = place.split('/').next().unwrap_or(place);
        let helper = self.cred_helpers.iter().find(|(key, _)| normal(key) == host);
        if let Some((key, helper)) = helper {
            return Ok(ask_helper(helper, key));
        }
        // From the whole place up to the host alone.
        let mut wanted = place;
        loop {
            let found = self.auths.iter().find(|(key, _)| normal(key) == wanted);
            if let Some(login) = found.and_then(|(_, auth)| auth.login(path)) {
                return Ok(Some(login));
            }
            match wanted.rsplit_once('/') {
                Some((above, _)) => wanted = above,
                None => break,
            }
        }
        let key = match host {
            "docker.io" => "https://index.docker.io/v1/",
            host => host,
        };
        Ok(self.creds_store.as_ref().and_then(|helper| ask_helper(helper, key)))
    }
}

/// `https://index.docker.io/v1/` and the like, as places.
fn normal(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    if key == "index.docker.io" { "docker.io" } else { key }
}

impl Auth {
    fn login(&self, path: &Path) -> Option<Login> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(Login::IdentityToken(token.clone()));
        }
        let auth = self.auth.as_ref().filter(|auth| !auth.is_empty())?;
        let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let login = decoded.as_deref().and_then(|text| text.split_once(':'));
        if login.is_none() {
            tracing::warn!(file = %path.display(), "an entry is not user:password in base64");
        }
        let (user, password) = login?;
        Some(Login::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

/// The longest answer of a helper, and the longest wait for it.
const HELPER_LIMIT: usize = 64 << 10;
const HELPER_PATIENCE: Duration = Duration::from_secs(60);

/// What a helper prints, if it ends well.
fn run_helper(helper: &str, place: &str) -> std::io::Result<Option<Vec<u8>>> {
    if helper.contains('/') {
        return Err(std::io::Error::other("its name has a slash"));
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(place.as_bytes())?;
    }
    let said = child.stdout.take().map_or(Ok(Vec::new()), |mut output| read_helper(&mut output));
    if said.is_err() {
        child.kill()?;
    }
    let ended = child.wait()?;
    said.map(|said| ended.success().then_some(said))
}

fn read_helper(output: &mut ChildStdout) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + HELPER_PATIENCE;
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(&*output, PollFlags::IN)];
        if poll(&mut fds, Some(&left))? == 0 {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        match output.read(&mut buffer)? {
            0 => return Ok(said),
            n => said.extend_from_slice(&buffer[..n]),
        }
        if said.len() > HELPER_LIMIT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// What a helper knows; one that fails knows nothing, as for docker.
fn ask_helper(helper: &str, place: &str) -> Option<Login> {
    let said = run_helper(helper, place)
        .inspect_err(|error| tracing::warn!(helper, %error, "cannot run a credential helper"))
        .ok()?;
    let helped: Option<Helped> = said.and_then(|said| serde_json::from_slice(&said).ok());
    let Some(helped) = helped else {
        tracing::debug!(helper, place, "the credential helper knows nothing");
        return None;
    };
    Some(match helped.username.as_str() {
        "<token>" => Login::IdentityToken(helped.secret),
        _ => Login::Password { user: helped.username, password: helped.secret },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn password(found: Option<Login>) -> Option<String> {
        match found? {
            Login::Password { password, .. } => Some(password),
            Login::IdentityToken(token) => Some(token),
        }
    }

    #[test]
    fn a_helper_that_never_ends_its_answer_is_ended() {
        let mut endless = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
        let error = read_helper(endless.stdout.as_mut().unwrap()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
        endless.kill().unwrap();
        endless.wait().unwrap();
        assert!(run_helper("../x", "place").is_err());
    }

    #[test]
    fn the_longest_place_wins_and_what_is_unknown_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/auth.json");
        let credentials = Credentials::usual(Some(path.clone()));
        assert_eq!(credentials.login("host:5000/a").unwrap(), None);
        credentials.store("host:5000", "u", "host").unwrap();
        credentials.store("host:5000/a/b", "u", "b:with:colons").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let find = |place: &str| password(credentials.login(place).unwrap());
        assert_eq!(find("host:5000/a/b/c").unwrap(), "b:with:colons");
        assert_eq!(find("host:5000/a/bc").unwrap(), "host");
        assert_eq!(find("host:5001"), None);
        assert!(credentials.forget("host:5000").unwrap());
        assert!(!credentials.forget("host:5000").unwrap());
        std::fs::write(
            &path,
            r#"{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}},"detachKeys":"x"}"#,
        )
        .unwrap();
        assert_eq!(find("docker.io/library").unwrap(), "t");
        credentials.store("h", "u", "p").unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("detachKeys"));
        std::fs::write(&path, "no json").unwrap();
        let error = credentials.login("h").unwrap_err().to_string();
        assert!(error.contains("auth.json"), "{error}");
    }
}

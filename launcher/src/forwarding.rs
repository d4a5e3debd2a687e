//! The host forwards packets while it has a network that leads outside, and no longer if it did not before.
//!
//! What it was before is kept where the settings themselves live, in the network namespace: as empty chains of a table of
//! nftables, one for each setting that was changed, beside one for each bridge that needs them. It is written before the
//! setting is, so whoever is killed between leaves nothing that isn't taken back with the last bridge; and it is gone, as
//! the settings are, when the machine starts anew. The state directories of a host share it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bridge::{BridgeError, Changed, set_where_it_is, switch_on as set_to_one, version6};
use crate::{firewall, programs};

const TABLE: &str = "mica-host";
const FOUR: &str = "forward4";
const SIX: &str = "forward6";
/// Followed by the name of an interface, in hexadecimal digits.
const LISTENS: &str = "listens-";

const PATIENCE: Duration = Duration::from_secs(10);

fn four() -> PathBuf {
    "/proc/sys/net/ipv4/ip_forward".into()
}

fn six() -> PathBuf {
    version6("all", "forwarding")
}

/// Lets the host forward packets, of IPv6, too, if that is wanted; says what was changed.
pub(crate) fn switch_on(with_six: bool) -> Result<Changed, BridgeError> {
    let mut changed = Changed::default();
    if is_off(&four())? {
        remember(&[FOUR.to_owned()])?;
        changed.forwarding = set_to_one(four())?;
    }
    if with_six && is_off(&six())? {
        let listening = listening()?;
        let words = listening.iter().map(|name| format!("{LISTENS}{}", to_hex(name)));
        remember(&words.chain([SIX.to_owned()]).collect::<Vec<_>>())?;
        // A host that forwards takes itself for a router and no longer listens to others, unless told to: those
        // interfaces that listened go on to.
        for name in &listening {
            set(&version6(name, "accept_ra"), "2")?;
        }
        changed.forwarding6 = set_to_one(six())?;
    }
    Ok(changed)
}

/// Commands that note that a bridge needs a host that forwards.
pub(crate) fn use_by(bridge: &str) -> String {
    format!("add table inet {TABLE}\nadd chain inet {TABLE} {bridge}\n")
}

/// Puts the settings back to what they were, if no other bridge needs them.
pub(crate) fn take_back(last: &str) -> Result<(), BridgeError> {
    let words = remembered()?;
    if words.is_empty() {
        return Ok(());
    }
    let bridges = bridges()?;
    if words.iter().any(|word| word != last && bridges.contains(word)) {
        let forget = format!("{}delete chain inet {TABLE} {last}\n", use_by(last));
        return firewall::apply(&forget).map_err(filter);
    }
    for word in &words {
        match word.as_str() {
            FOUR => set(&four(), "0")?,
            SIX => set(&six(), "0")?,
            other => {
                let name = other.strip_prefix(LISTENS).and_then(from_hex);
                let path = name.map(|name| version6(&name, "accept_ra"));
                if let Some(path) = path.filter(|path| is(path, "2")) {
                    set(&path, "1")?;
                }
            }
        }
    }
    let forget = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    firewall::apply(&forget).map_err(filter)?;
    // A command of another state directory may have made a bridge just now, and found the host forwarding.
    let late: Vec<String> = self::bridges()?
        .into_iter()
        .filter(|name| name != last && !bridges.contains(name))
        .collect();
    if !late.is_empty() {
        remember(&late)?;
        switch_on(words.iter().any(|word| word == SIX))?;
    }
    Ok(())
}

fn filter(source: io::Error) -> BridgeError {
    BridgeError::Filter { name: TABLE.to_owned(), source }
}

fn remember(words: &[String]) -> Result<(), BridgeError> {
    let chains: String =
        words.iter().map(|word| format!("add chain inet {TABLE} {word}\n")).collect();
    firewall::apply(&format!("add table inet {TABLE}\n{chains}")).map_err(filter)
}

fn remembered() -> Result<Vec<String>, BridgeError> {
    let list = || {
        let nft = programs::find("nft")?;
        let tables = programs::run(&nft, &["list", "tables", "inet"], b"", PATIENCE)?;
        let known = format!("table inet {TABLE}");
        if !String::from_utf8_lossy(&tables).lines().any(|line| line.trim() == known) {
            return Ok(Vec::new());
        }
        programs::run(&nft, &["list", "table", "inet", TABLE], b"", PATIENCE)
    };
    match list() {
        Ok(text) => Ok(chains(&String::from_utf8_lossy(&text))),
        // Whoever lacks the program has changed nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(filter(error)),
    }
}

/// The names of chains in a listing of nft's.
fn chains(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let name = line.trim().strip_prefix("chain ")?.strip_suffix('{')?.trim();
        Some(name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

/// The bridges of networks that there are now, of whatever state directory.
fn bridges() -> Result<Vec<String>, BridgeError> {
    let text = read(Path::new("/proc/net/dev"))?;
    let ours = |line: &str| {
        let name = line.split_once(':')?.0.trim();
        let id = name.strip_prefix("mica-")?;
        let good = id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| name.to_owned())
    };
    Ok(text.lines().filter_map(ours).collect())
}

/// The interfaces that listen to routers now.
fn listening() -> Result<Vec<String>, BridgeError> {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    let entries = fs::read_dir(folder).map_err(failed(folder))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    // One that is gone by now needs nothing.
    Ok(names.filter(|name| name != "all" && is(&version6(name, "accept_ra"), "1")).collect())
}

fn to_hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Nothing but a name of an interface, whatever stands there.
fn from_hex(text: &str) -> Option<String> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
    let name = String::from_utf8(bytes?).ok()?;
    (!name.is_empty() && name != ".." && !name.contains('/')).then_some(name)
}

fn is(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

fn is_off(path: &Path) -> Result<bool, BridgeError> {
    Ok(read(path)?.trim() == "0")
}

fn read(path: &Path) -> Result<String, BridgeError> {
    fs::read_to_string(path).map_err(failed(path))
}

fn set(path: &Path, value: &str) -> Result<(), BridgeError> {
    set_where_it_is(path, value).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BridgeError + use<> {
    let path = path.to_owned();
    |source| BridgeError::Setting { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_again() {
        let text = "table inet mica-host {\n\tchain listens-657468302e31 {\n\t}\n\n\tchain forward6 {\n\t}\n}\n";
        assert_eq!(chains(text), ["listens-657468302e31", "forward6"]);
        assert_eq!(from_hex(&to_hex("eth0.1")).as_deref(), Some("eth0.1"));
        for bad in ["", "2", "zz", "2e2e", "2f", "ff"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}

//! Values of flags, as people know them from docker.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use mica_agent::Attachment;
use mica_launcher::cdi::Registry;
use mica_launcher::{Device, PortForward, Protocol, Rlimit};

use super::flags::{NetworkMode, Shared, Users};

/// `512`, `512k`, `1.5g`, `2GiB`: powers of 1024, as docker has them.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &lower[digits.len()..];
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{unit}` is not a unit; use k, m, g or t")),
    };
    let number: f64 =
        digits.parse().map_err(|_| format!("`{text}` is not a size such as 512m or 2g"))?;
    let bytes = number * (1_u64 << shift) as f64;
    if !(0.0..9.0e18).contains(&bytes) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as u64)
}

/// `500ms`, `30s`, `1m30s`, `2h`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 500ms, 30s or 1m30s");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        rest = &rest[unit..];
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A limit; `None` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

/// A size, or -1 for no limit.
pub(super) fn parse_swap(text: &str) -> Result<Limit, String> {
    if text == "-1" { Ok(Limit(None)) } else { parse_size(text).map(|bytes| Limit(Some(bytes))) }
}

/// A number, or -1 for no limit.
pub(super) fn parse_count(text: &str) -> Result<Limit, String> {
    match text.parse() {
        _ if text == "-1" => Ok(Limit(None)),
        Ok(count) => Ok(Limit(Some(count))),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}

pub(super) fn parse_init(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => {
            Err("every job has an init: it is what signals, exec and the exit code go by".into())
        }
        other => Err(format!("`{other}` is neither true nor false")),
    }
}

/// In milliseconds.
pub(crate) fn as_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cpus) if cpus > 0.0 && cpus < 100_000.0 => Ok(cpus),
        _ => Err(format!("`{text}` is not a number of processors such as 0.5 or 2")),
    }
}

pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form NAME=VALUE")),
    }
}

/// An octal mode.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("`{text}` is not an octal mode"))
}

/// `8080:80`, `127.0.0.1:8080:80/tcp`, `53/udp`, `[::1]:80:80`.
pub(super) fn parse_port(text: &str) -> Result<PortForward, String> {
    let wrong = || format!("`{text}` is not of the form [[IP:]HOST:]JOB[/udp]");
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((numbers, "tcp")) => (numbers, Protocol::Tcp),
        Some((numbers, "udp")) => (numbers, Protocol::Udp),
        Some(_) => return Err(wrong()),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (outside, job) = match numbers.rsplit_once(':') {
        None => {
            return Ok(PortForward {
                protocol,
                address: None,
                host: port(numbers)?,
                job: port(numbers)?,
            });
        }
        Some((outside, job)) => (outside, port(job)?),
    };
    let (address, host) = match outside.rsplit_once(':') {
        None => (None, outside),
        Some((address, host)) => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            (Some(address.parse().map_err(|_| wrong())?), host)
        }
    };
    Ok(PortForward { protocol, address, host: port(host)?, job })
}

/// `host`, `none`, `private`, or the name of a network, perhaps with `:ip=IP,alias=NAME`.
pub(super) fn parse_network(text: &str) -> Result<NetworkMode, String> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let mode = match name {
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        "private" if options == "host" => return Ok(NetworkMode::Private(true)),
        "private" => NetworkMode::Private(false),
        name => {
            let network = name.parse()?;
            NetworkMode::Bridge(Attachment {
                network,
                address: None,
                aliases: Vec::new(),
                host: false,
            })
        }
    };
    if options.is_empty() {
        return Ok(mode);
    }
    let NetworkMode::Bridge(mut attachment) = mode else {
        return Err(format!("the network {name} has no options"));
    };
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("ip", address)) => {
                let wrong = |_| format!("`{address}` is not an IPv4 address");
                attachment.address = Some(address.parse().map_err(wrong)?);
            }
            Some(("alias", name)) => attachment.aliases.push(parse_host_name(name)?),
            None if option == "host" => attachment.host = true,
            _ => {
                return Err(format!(
                    "`{option}` is not an option of a network; use ip=, alias=, host"
                ));
            }
        }
    }
    Ok(NetworkMode::Bridge(attachment))
}

/// `host`, `private`, or `remap:ACCOUNT`.
pub(super) fn parse_userns(text: &str) -> Result<Users, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("host", "") => Ok(Users::Shared(Shared::Host)),
        ("private", "") => Ok(Users::Shared(Shared::Private)),
        ("remap", account) if !account.is_empty() => Ok(Users::Remap(account.to_owned())),
        _ => Err(format!("`{text}` is none of host, private and remap:ACCOUNT")),
    }
}

/// `NAME:IP`.
pub(super) fn parse_host(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) =
        text.split_once(':').ok_or_else(|| format!("`{text}` is not of the form NAME:IP"))?;
    let address = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
    Ok((parse_host_name(name)?, address))
}

/// A name by which a machine is found.
pub(super) fn parse_host_name(text: &str) -> Result<String, String> {
    if !mica_launcher::is_host_name(text) {
        return Err(format!(
            "{text:?} cannot name a machine (letters, digits and `-`, in parts of at most 63 characters with `.` between)"
        ));
    }
    Ok(text.to_owned())
}

/// A program with its first arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrypoint(pub(crate) Vec<String>);

pub(super) fn parse_entrypoint(text: &str) -> Result<Entrypoint, String> {
    Ok(Entrypoint(match text {
        "" => Vec::new(),
        list if list.starts_with('[') => parse_list(list)?,
        program => vec![program.to_owned()],
    }))
}

/// A JSON list of words.
pub(crate) fn parse_list(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON list of words: {error}"))
}

/// A device of the host, or one that a vendor describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceFlag {
    /// A node.
    Node(Device),
    /// By its CDI name.
    Cdi(String),
}

pub(super) fn parse_device(text: &str) -> Result<DeviceFlag, String> {
    if Registry::is_name(text) {
        return Ok(DeviceFlag::Cdi(text.to_owned()));
    }
    let mut parts = text.split(':');
    let source = in_job(parts.next().unwrap_or_default())?;
    let mut permissions = parts.next();
    let mut target = source.clone();
    // As with docker, the second part may be permissions.
    if let Some(path) = permissions.filter(|part| part.starts_with('/')) {
        target = in_job(path)?;
        permissions = parts.next();
    }
    match permissions {
        None | Some("rw" | "rwm") => {}
        Some(part @ ("r" | "ro" | "rm" | "w")) => {
            return Err(format!(
                "`{part}`: a job can use a device that it sees as its mode allows, no less; leave the permissions out"
            ));
        }
        Some(other) => {
            return Err(format!("`{other}` are not permissions of a device; use rw"));
        }
    }
    Ok(DeviceFlag::Node(Device { source, target, writable: true }))
}

pub(super) fn parse_ulimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || format!("`{text}` is not of the form NAME=SOFT[:HARD]");
    let (resource, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| match value {
        "unlimited" | "-1" => Ok(None),
        value => value.parse().map(Some).map_err(|_| wrong()),
    };
    Ok(Rlimit { resource: resource.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

pub(super) fn in_job(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(format!("`{path}` is not an absolute path"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for bad in ["", "m", "-1", "12q", "1e30", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "5x", "1m30", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let port =
            |text| parse_port(text).map(|port| (port.host, port.job, port.address.is_some()));
        assert_eq!(port("80"), Ok((80, 80, false)));
        assert_eq!(port("8080:80/udp"), Ok((8080, 80, false)));
        assert_eq!(port("127.0.0.1:8080:80"), Ok((8080, 80, true)));
        assert_eq!(port("[::1]:8080:80"), Ok((8080, 80, true)));
        for bad in ["", "0", "a:80", "1:2:3", "80/sctp", "70000"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(parse_network("private"), Ok(NetworkMode::Private(false)));
        assert_eq!(parse_network("private:host"), Ok(NetworkMode::Private(true)));
        let Ok(NetworkMode::Bridge(back)) = parse_network("back:ip=10.1.0.7,alias=db") else {
            panic!("a bridge network")
        };
        assert_eq!(back.network.as_str(), "back");
        assert_eq!((back.address, back.aliases), ("10.1.0.7".parse().ok(), vec!["db".to_owned()]));
        for bad in ["", "a b", "host:ip=10.1.0.7", "back:ip=x", "back:mac=1", "back:ip"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_machines() {
        assert_eq!(parse_host_name("db.example.org"), Ok("db.example.org".into()));
        assert!(parse_host("db:10.1.0.7").is_ok());
        for bad in ["", "a b", "a\n10.0.0.1 bank", "-a", "a_b"] {
            assert!(parse_host_name(bad).is_err(), "{bad:?}");
            assert!(parse_host(&format!("{bad}:10.1.0.7")).is_err(), "{bad:?}");
            assert!(parse_network(&format!("back:alias={bad}")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn devices() {
        let device = |text| match parse_device(text) {
            Ok(DeviceFlag::Node(device)) => Some(device.target),
            _ => None,
        };
        assert_eq!(device("/dev/a"), Some("/dev/a".into()));
        assert_eq!(device("/dev/a:/dev/b:rwm"), Some("/dev/b".into()));
        assert_eq!(device("/dev/a:x"), None);
        assert!(parse_device("/dev/a:/dev/b:r").unwrap_err().contains("leave the permissions out"));
        assert!(matches!(parse_device("nvidia.com/gpu=0"), Ok(DeviceFlag::Cdi(_))));
    }

    #[test]
    fn entrypoints() {
        let words = |text| parse_entrypoint(text).map(|Entrypoint(words)| words);
        assert_eq!(words(""), Ok(vec![]));
        assert_eq!(words("a b"), Ok(vec!["a b".into()]));
        assert_eq!(words(r#"["a", "b"]"#), Ok(vec!["a".into(), "b".into()]));
        assert!(words("[a]").is_err());
    }

    #[test]
    fn ulimits() {
        let limit = parse_ulimit("nofile=10:unlimited").unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(10), None));
        assert!(parse_ulimit("nofile").is_err());
    }
}

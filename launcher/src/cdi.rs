//! Devices by name, as vendors describe them: the Container Device Interface.
//!
//! A vendor's tool writes specifications to `/etc/cdi` or `/var/run/cdi`; each lists devices of one kind
//! (`nvidia.com/gpu`) and what a container needs for them: device nodes, mounts, variables, groups, hooks. [`Registry`]
//! reads them, [`Registry::inject`] adds what the named devices need to a [`Spec`].
//!
//! Hooks of the stage `createContainer` are run, which is the one that `nvidia-ctk cdi generate` uses. A job in the
//! host's root sees the host's own libraries, links and linker cache: there, mounts of a path onto itself and hooks are
//! left out. Whatever else can't be done is an error that names it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::{Device, Mount, Root, Spec};

/// Where specifications are found; those in later directories win.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A program of the host's that prepares the job's root before the job is in it, told about it as OCI runtimes do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// On the host.
    pub path: PathBuf,
    /// Its arguments, the name first.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<String>,
}

/// Why devices can't be given to a job.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A directory or file can't be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a specification.
    #[error("{} is not a CDI specification: {reason}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No such device.
    #[error("there is no CDI device {name}")]
    NoDevice {
        /// The name asked for.
        name: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// Something in a specification that can't be done.
    #[error("CDI device {device} asks for {what}, which is not supported")]
    Unsupported {
        /// The device.
        device: String,
        /// What it asks for.
        what: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: String,
    #[serde(default)]
    devices: Vec<NamedDevice>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedDevice {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<EditMount>,
    hooks: Vec<EditHook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    #[serde(default)]
    host_path: Option<PathBuf>,
    #[serde(default)]
    permissions: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EditMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EditHook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
}

/// The devices of a host.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// By qualified name: what all devices of the specification need, and what this one needs.
    devices: BTreeMap<String, (Edits, Edits)>,
}

impl Registry {
    /// Reads all specifications in some directories, such as [`DIRECTORIES`]. A directory that doesn't exist is empty.
    ///
    /// # Errors
    /// A directory or a file can't be read, or a file isn't a specification.
    pub fn read(directories: &[&Path]) -> Result<Self, CdiError> {
        let mut registry = Self::default();
        for directory in directories {
            for path in specifications(directory)? {
                let text = fs::read_to_string(&path)
                    .map_err(|source| CdiError::Read { path: path.clone(), source })?;
                let json = path.extension() == Some(OsStr::new("json"));
                registry.add(&text, json).map_err(|reason| CdiError::Parse { path, reason })?;
            }
        }
        Ok(registry)
    }

    /// Adds the devices of one specification, given as text.
    fn add(&mut self, text: &str, json: bool) -> Result<(), String> {
        let document: Document = if json {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?
        };
        for device in document.devices {
            let name = format!("{}={}", document.kind, device.name);
            self.devices.insert(name, (document.container_edits.clone(), device.container_edits));
        }
        Ok(())
    }

    /// The qualified names of all devices, such as `nvidia.com/gpu=0`.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// Is this the form of a qualified name, rather than a path? `--device` takes both.
    pub fn is_name(text: &str) -> bool {
        !text.starts_with('/')
            && text
                .split_once('=')
                .is_some_and(|(kind, name)| kind.contains('/') && !name.is_empty())
    }

    /// The qualified names that `--gpus` means: `all`, a number of them, or `device=` and a list.
    ///
    /// # Errors
    /// There aren't as many.
    pub fn gpus(&self, wanted: &str) -> Result<Vec<String>, CdiError> {
        const KIND: &str = "nvidia.com/gpu=";
        if let Ok(count) = wanted.parse::<usize>() {
            let numbered =
                |name: &&str| name.strip_prefix(KIND).is_some_and(|n| n.parse::<u32>().is_ok());
            let mut names: Vec<_> = self.devices().filter(numbered).map(str::to_owned).collect();
            names.sort_by_key(|name| name[KIND.len()..].parse::<u32>().ok());
            if names.len() < count {
                return Err(self.missing(format!("{KIND}{}", names.len())));
            }
            names.truncate(count);
            return Ok(names);
        }
        let list = wanted.strip_prefix("device=").unwrap_or(wanted);
        Ok(list.split(',').map(|name| format!("{KIND}{name}")).collect())
    }

    fn missing(&self, name: String) -> CdiError {
        CdiError::NoDevice { name, known: self.devices.keys().cloned().collect() }
    }

    /// Adds what the devices of these qualified names need to a job.
    ///
    /// # Errors
    /// An unknown device, or one that needs something that can't be done.
    pub fn inject(&self, names: &[String], spec: &mut Spec) -> Result<(), CdiError> {
        let mut applied: Vec<&Edits> = Vec::new();
        for name in names {
            let (common, own) = self.devices.get(name).ok_or_else(|| self.missing(name.clone()))?;
            for edits in [common, own] {
                // Devices of one specification share the common part.
                if !applied.contains(&edits) {
                    edits.apply(name, spec)?;
                    applied.push(edits);
                }
            }
        }
        Ok(())
    }
}

impl Edits {
    fn apply(&self, device: &str, spec: &mut Spec) -> Result<(), CdiError> {
        let unsupported = |what: String| CdiError::Unsupported { device: device.to_owned(), what };
        if self.intel_rdt.is_some() {
            return Err(unsupported("Intel RDT".into()));
        }
        if !self.net_devices.is_empty() {
            return Err(unsupported("network devices".into()));
        }
        // What is there by itself: of the host's root the file, and the cache of libraries that hooks would make.
        let view = match &spec.root {
            Root::Host { view, .. } => Some(view.clone()),
            Root::Tree(_) => None,
        };
        let in_hosts_root = view.is_some();
        for line in &self.env {
            let (name, value) =
                line.split_once('=').ok_or_else(|| unsupported(format!("the variable {line}")))?;
            spec.env.retain(|(known, _)| known != name);
            spec.env.push((name.into(), value.into()));
        }
        for node in &self.device_nodes {
            let writable =
                node.permissions.as_ref().is_none_or(|permissions| permissions.contains('w'));
            let source = node.host_path.clone().unwrap_or_else(|| node.path.clone());
            let target = node.path.clone();
            spec.devices.retain(|known| known.target != target);
            spec.devices.push(Device { source, target, writable });
        }
        for mount in &self.mounts {
            let shown = view.as_ref().is_some_and(|view| view.shows(&mount.host_path));
            if shown && mount.host_path == mount.container_path {
                continue;
            }
            spec.mounts.push(mount.bind().map_err(unsupported)?);
        }
        for hook in self.hooks.iter().filter(|_| !in_hosts_root) {
            if hook.hook_name != "createContainer" {
                return Err(unsupported(format!("a hook of the stage {}", hook.hook_name)));
            }
            spec.hooks.push(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
            });
        }
        spec.groups.extend(self.additional_gids.iter().map(u32::to_string));
        Ok(())
    }
}

impl EditMount {
    fn bind(&self) -> Result<Mount, String> {
        if self.kind.as_deref().is_some_and(|kind| !["bind", "none", ""].contains(&kind)) {
            return Err(format!("a mount of type {}", self.kind.as_deref().unwrap_or_default()));
        }
        let mut read_only = false;
        let mut recursive = false;
        let mut follow = false;
        for option in &self.options {
            match option.as_str() {
                "ro" => read_only = true,
                "rbind" => recursive = true,
                "rslave" | "slave" => follow = true,
                // Ours are like this anyway.
                "rw" | "bind" | "nosuid" | "nodev" | "private" | "rprivate" | "exec" => {}
                other => return Err(format!("the mount option {other}")),
            }
        }
        let (source, target) = (self.host_path.clone(), self.container_path.clone());
        Ok(Mount::Bind { source, target, read_only, recursive, follow, ids: None })
    }
}

/// The specifications in a directory, sorted.
fn specifications(directory: &Path) -> Result<Vec<PathBuf>, CdiError> {
    let error = |source| CdiError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(error)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let mut paths = paths.map_err(error)?;
    paths.retain(|path| {
        path.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|known| e == *known))
    });
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::HostView;

    const NVIDIA: &str = "
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: '0'
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: '1'
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
      hostPath: /dev/other
      permissions: r
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
  mounts:
  - hostPath: /usr/bin/nvidia-smi
    containerPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
";

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.add(NVIDIA, false).unwrap();
        registry
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_gpu_with_all_that_it_needs() {
        let mut spec = Spec::new("x", Root::Tree("/t".into()), ["true"]);
        registry().inject(&names(&["nvidia.com/gpu=0", "nvidia.com/gpu=1"]), &mut spec).unwrap();
        let nodes: Vec<_> =
            spec.devices.iter().map(|d| (d.source.to_str().unwrap(), d.writable)).collect();
        assert_eq!(
            nodes,
            [("/dev/nvidiactl", true), ("/dev/nvidia0", true), ("/dev/other", false)]
        );
        assert_eq!(spec.env, [("NVIDIA_VISIBLE_DEVICES".into(), "void".into())]);
        assert!(matches!(
            &spec.mounts[..],
            [Mount::Bind { read_only: true, recursive: false, .. }]
        ));
        assert_eq!(spec.hooks[0].args[1], "update-ldcache");
    }

    #[test]
    fn the_hosts_root_has_its_own_files() {
        let root =
            Root::Host { tree: "/t".into(), at: "/packages/a".into(), view: HostView::default() };
        let mut spec = Spec::new("x", root, ["true"]);
        registry().inject(&names(&["nvidia.com/gpu=all"]), &mut spec).unwrap();
        assert!(spec.mounts.is_empty() && spec.hooks.is_empty());
        assert_eq!(spec.devices.len(), 3);
    }

    #[test]
    fn names_and_numbers() {
        let registry = registry();
        assert_eq!(registry.gpus("all").unwrap(), ["nvidia.com/gpu=all"]);
        assert_eq!(registry.gpus("2").unwrap(), ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]);
        assert_eq!(registry.gpus("device=1").unwrap(), ["nvidia.com/gpu=1"]);
        assert_eq!(
            registry.gpus("3").unwrap_err().to_string(),
            "there is no CDI device nvidia.com/gpu=2"
        );
        assert!(
            Registry::is_name("nvidia.com/gpu=0")
                && !Registry::is_name("/dev/x=y")
                && !Registry::is_name("a=b")
        );
        let mut spec = Spec::new("x", Root::Tree("/t".into()), ["true"]);
        let error = registry.inject(&names(&["nvidia.com/gpu=7"]), &mut spec).unwrap_err();
        assert_eq!(error.to_string(), "there is no CDI device nvidia.com/gpu=7");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let text = r#"{"cdiVersion": "0.6.0", "kind": "a.b/c", "devices": [{"name": "d", "containerEdits":
            {"hooks": [{"hookName": "poststop", "path": "/bin/true"}]}}]}"#;
        let mut registry = Registry::default();
        registry.add(text, true).unwrap();
        let mut spec = Spec::new("x", Root::Tree("/t".into()), ["true"]);
        let error = registry.inject(&names(&["a.b/c=d"]), &mut spec).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CDI device a.b/c=d asks for a hook of the stage poststop, which is not supported"
        );
        assert!(registry.add("[]", true).is_err() && registry.add("kind: [", false).is_err());
    }
}

//! The JSON form of a build graph, as the module's documentation describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BuildGraph, BuildGraphError, Module, Output};
use crate::{HealthCheck, Label, Limits, Port, Process, Service};

const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphDocument {
    #[serde(default = "schema")]
    schema: u32,
    modules: Vec<ModuleDocument>,
}

const fn schema() -> u32 {
    SCHEMA
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleDocument {
    label: Label,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    rule: String,
    #[serde(default)]
    outputs: Vec<Output>,
    #[serde(default)]
    deps: Vec<Label>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    root: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "LimitsDocument::is_empty")]
    limits: LimitsDocument,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    ports: BTreeSet<Port>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_timeout: Option<u64>,
}

/// As [`Limits`], but refusing what it does not know: a limit must not be lost by a typing mistake.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<f64>,
}

impl LimitsDocument {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BuildGraph {
    /// Reads the JSON form. Sources that are relative are taken as relative to `base`.
    pub fn from_json(text: &str, base: &Path) -> Result<Self, BuildGraphError> {
        let document: GraphDocument = serde_json::from_str(text).map_err(BuildGraphError::Json)?;
        if document.schema != SCHEMA {
            return Err(BuildGraphError::Schema(document.schema));
        }
        Self::new(document.modules.into_iter().map(|module| module.into_module(base)))
    }

    /// Writes the JSON form, sources as they are; fails where a source's path is not UTF-8.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let modules = self.modules().cloned().map(ModuleDocument::from).collect();
        serde_json::to_string_pretty(&GraphDocument { schema: SCHEMA, modules })
    }
}

impl ModuleDocument {
    fn into_module(self, base: &Path) -> Module {
        let place = |Output { path, source }: Output| Output { path, source: base.join(source) };
        Module {
            label: self.label,
            rule: self.rule,
            outputs: self.outputs.into_iter().map(place).collect(),
            deps: self.deps,
            root: self.root,
            process: Process {
                entrypoint: self.entrypoint,
                cmd: self.cmd,
                env: self.env,
                workdir: self.workdir,
                user: self.user,
            },
            labels: self.labels,
            limits: Limits {
                memory: self.limits.memory,
                pids: self.limits.pids,
                cpus: self.limits.cpus,
            },
            service: Service {
                ports: self.ports,
                health: self.health,
                stop_signal: self.stop_signal,
                stop_timeout: self.stop_timeout,
            },
        }
    }
}

impl From<Module> for ModuleDocument {
    fn from(module: Module) -> Self {
        let Process { entrypoint, cmd, env, workdir, user } = module.process;
        let Limits { memory, pids, cpus } = module.limits;
        let Service { ports, health, stop_signal, stop_timeout } = module.service;
        Self {
            label: module.label,
            rule: module.rule,
            outputs: module.outputs,
            deps: module.deps,
            root: module.root,
            entrypoint,
            cmd,
            env,
            workdir,
            user,
            labels: module.labels,
            limits: LimitsDocument { memory, pids, cpus },
            ports,
            health,
            stop_signal,
            stop_timeout,
        }
    }
}

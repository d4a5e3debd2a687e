//! `mica_package`: how a package of another target is started, its limits, and what its jobs have by default.

use super::{Analyzer, Provided};
use crate::buildfile::{BuildFileError, Dep, Target};
use crate::{HealthCheck, Port, Service};

impl Analyzer<'_> {
    pub(super) fn package(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let Some(Dep::Target(binary)) = target.deps("binary").first() else {
            return Err(target.error("`binary` of a mica_package is a target, not a file"));
        };
        let mut analyzed = self.module(target, &["binary", "deps"], []);
        let module = &mut analyzed.module;
        if let Some(base) = self.modules.iter().find(|base| base.module.label == *binary) {
            module.process = base.module.process.clone();
        }
        if target.has("entrypoint") {
            module.process.entrypoint = self.expand_all(target, target.strs("entrypoint"))?;
        }
        if target.has("args") {
            module.process.cmd = self.expand_all(target, target.strs("args"))?;
        }
        for (name, value) in target.dict("env") {
            module.process.env.insert(name, self.expand(target, &value)?);
        }
        module.process.workdir = target.str("workdir").map(str::to_owned);
        module.process.user = target.str("user").map(str::to_owned);
        module.labels = target.dict("labels");
        module.limits.memory = positive(target, "memory")?;
        module.limits.pids = positive(target, "pids")?;
        module.limits.cpus = target.float("cpus");
        if module.limits.cpus.is_some_and(|cpus| !(cpus.is_finite() && cpus > 0.0)) {
            return Err(target.error("`cpus` is a positive number"));
        }
        module.service = service(target)?;
        let provided = self.provided[binary].clone();
        self.modules.push(analyzed);
        Ok(provided)
    }
}

fn service(target: &Target) -> Result<Service, BuildFileError> {
    let ports = target.strs("ports").iter().map(|text| text.parse::<Port>());
    Ok(Service {
        ports: ports.collect::<Result<_, _>>().map_err(|error| target.error(error.to_string()))?,
        health: health(target)?,
        stop_signal: target.str("stop_signal").map(str::to_owned),
        stop_timeout: positive(target, "stop_timeout")?,
    })
}

/// Times are in seconds, as everywhere in BUILD files.
fn health(target: &Target) -> Result<Option<HealthCheck>, BuildFileError> {
    let times = ["health_interval", "health_timeout", "health_start_period"];
    let Some(command) = target.str("health_cmd") else {
        return match times.iter().chain(&["health_retries"]).find(|attr| target.has(attr)) {
            Some(attr) => Err(target.error(format!("`{attr}` means nothing without `health_cmd`"))),
            None => Ok(None),
        };
    };
    let ms = |attr: &str| match target.float(attr) {
        None => Ok(None),
        Some(seconds) if (0.0..1e9).contains(&seconds) => Ok(Some((seconds * 1000.0) as u64)),
        Some(_) => Err(target.error(format!("`{attr}` is a number of seconds"))),
    };
    let retries = positive(target, "health_retries")?.map(u32::try_from).transpose();
    Ok(Some(HealthCheck {
        interval_ms: ms(times[0])?,
        timeout_ms: ms(times[1])?,
        start_period_ms: ms(times[2])?,
        retries: retries.map_err(|_| target.error("`health_retries` is too large"))?,
        ..HealthCheck::shell(command)
    }))
}

fn positive(target: &Target, attr: &str) -> Result<Option<u64>, BuildFileError> {
    match target.int(attr).map(u64::try_from) {
        None => Ok(None),
        Some(Ok(value)) if value > 0 => Ok(Some(value)),
        Some(_) => Err(target.error(format!("`{attr}` is a positive number"))),
    }
}

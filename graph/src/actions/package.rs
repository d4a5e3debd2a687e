//! `mica_package`: how a package of another target is started, and its limits.

use super::{Analyzer, Provided};
use crate::buildfile::{BuildFileError, Dep, Target};

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
        let provided = self.provided[binary].clone();
        self.modules.push(analyzed);
        Ok(provided)
    }
}

fn positive(target: &Target, attr: &str) -> Result<Option<u64>, BuildFileError> {
    match target.int(attr).map(u64::try_from) {
        None => Ok(None),
        Some(Ok(value)) if value > 0 => Ok(Some(value)),
        Some(_) => Err(target.error(format!("`{attr}` is a positive number"))),
    }
}

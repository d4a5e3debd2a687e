//! Limits into the files of either version of cgroups: pure.

use crate::spec::{IoLimit, Limits};

/// A value to be written into a file of a job's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The controller that owns the file.
    pub controller: &'static str,
    /// The file.
    pub file: &'static str,
    /// What is written.
    pub value: String,
}

const PERIOD: u64 = 100_000;

fn quota(cpus: f64) -> u64 {
    ((cpus * PERIOD as f64).round() as u64).max(1_000)
}

/// Collects settings in order.
struct Settings(Vec<Setting>);

impl Settings {
    fn put(&mut self, controller: &'static str, file: &'static str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| Setting { controller, file, value: value.to_string() }));
    }
}

/// The settings for the unified hierarchy.
pub fn v2(limits: &Limits) -> Vec<Setting> {
    let mut out = Settings(Vec::new());
    out.put("memory", "memory.max", limits.memory);
    let swap = limits.memory_swap.map(|both| both.saturating_sub(limits.memory.unwrap_or(0)));
    out.put("memory", "memory.swap.max", swap);
    out.put("memory", "memory.low", limits.memory_reservation);
    out.put("pids", "pids.max", limits.pids);
    out.put("cpu", "cpu.max", limits.cpus.map(|cpus| format!("{} {PERIOD}", quota(cpus))));
    out.put("cpu", "cpu.weight", limits.cpu_weight);
    out.put("cpuset", "cpuset.cpus", limits.cpuset_cpus.as_ref());
    out.put("cpuset", "cpuset.mems", limits.cpuset_mems.as_ref());
    // The file belongs to the proportional-share policy that is in use: BFQ, or the cost model.
    out.put("io", "io.weight", limits.io_weight.map(|weight| format!("default {weight}")));
    for io in &limits.io {
        out.put("io", "io.max", Some(io_max(io)));
    }
    out.0
}

fn io_max(io: &IoLimit) -> String {
    let fields = [
        ("rbps", io.read_bytes),
        ("wbps", io.write_bytes),
        ("riops", io.read_operations),
        ("wiops", io.write_operations),
    ];
    let values = fields.iter().filter_map(|(name, value)| Some(format!(" {name}={}", (*value)?)));
    format!("{}:{}{}", io.major, io.minor, values.collect::<String>())
}

/// The settings for the hierarchies of version 1.
pub fn v1(limits: &Limits) -> Vec<Setting> {
    let mut out = Settings(Vec::new());
    out.put("memory", "memory.limit_in_bytes", limits.memory);
    out.put("memory", "memory.memsw.limit_in_bytes", limits.memory_swap);
    out.put("memory", "memory.soft_limit_in_bytes", limits.memory_reservation);
    out.put("pids", "pids.max", limits.pids);
    if let Some(cpus) = limits.cpus {
        out.put("cpu", "cpu.cfs_period_us", Some(PERIOD));
        out.put("cpu", "cpu.cfs_quota_us", Some(quota(cpus)));
    }
    // Version 1 counts shares of 1024 where version 2 counts weights of 100.
    out.put("cpu", "cpu.shares", limits.cpu_weight.map(|weight| (weight * 1024 / 100).max(2)));
    out.put("cpuset", "cpuset.cpus", limits.cpuset_cpus.as_ref());
    out.put("cpuset", "cpuset.mems", limits.cpuset_mems.as_ref());
    out.put("blkio", "blkio.weight", limits.io_weight);
    for io in &limits.io {
        let device =
            |value: Option<u64>| value.map(|value| format!("{}:{} {value}", io.major, io.minor));
        out.put("blkio", "blkio.throttle.read_bps_device", device(io.read_bytes));
        out.put("blkio", "blkio.throttle.write_bps_device", device(io.write_bytes));
        out.put("blkio", "blkio.throttle.read_iops_device", device(io.read_operations));
        out.put("blkio", "blkio.throttle.write_iops_device", device(io.write_operations));
    }
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn both_versions() {
        let limits = Limits {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            pids: Some(50),
            cpus: Some(1.5),
            cpu_weight: Some(100),
            cpuset_cpus: Some("0-1".into()),
            io: vec![IoLimit { major: 8, minor: 0, write_bytes: Some(5), ..IoLimit::default() }],
            ..Limits::default()
        };
        assert_eq!(
            lines(&v2(&limits)),
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "pids.max=50",
                "cpu.max=150000 100000",
                "cpu.weight=100",
                "cpuset.cpus=0-1",
                "io.max=8:0 wbps=5"
            ]
        );
        assert_eq!(
            lines(&v1(&limits)),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=100663296",
                "pids.max=50",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=150000",
                "cpu.shares=1024",
                "cpuset.cpus=0-1",
                "blkio.throttle.write_bps_device=8:0 5"
            ]
        );
    }
}

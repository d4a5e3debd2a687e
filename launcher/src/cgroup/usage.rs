//! What a job used, from the text of its cgroup's files.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a job used. What the host doesn't count is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time of all processes.
    pub cpu: Option<Duration>,
    /// Of that, in the kernel.
    pub cpu_system: Option<Duration>,
    /// Time during which the CPU quota kept the job from running.
    pub throttled: Option<Duration>,
    /// Memory in use now, in bytes, page cache included.
    pub memory: Option<u64>,
    /// The most memory it ever used, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes killed because the job's memory ran out.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_written: Option<u64>,
}

impl Usage {
    /// Reads files of the unified hierarchy by means of `read`, which returns the text of a file by name.
    pub(crate) fn read_v2(&mut self, read: impl Fn(&str) -> Option<String>) {
        if let Some(stat) = read("cpu.stat") {
            // Without the controller the file still has the times, but no throttling.
            self.cpu = self.cpu.or(micros(&stat, "usage_usec"));
            self.cpu_system = self.cpu_system.or(micros(&stat, "system_usec"));
            self.throttled = self.throttled.or(micros(&stat, "throttled_usec"));
        }
        self.memory = self.memory.or(single(read("memory.current")));
        self.memory_peak = self.memory_peak.or(single(read("memory.peak")));
        self.oom_kills =
            self.oom_kills.or(read("memory.events").and_then(|t| field(&t, "oom_kill")));
        self.pids = self.pids.or(single(read("pids.current")));
        if let Some(stat) = read("io.stat") {
            self.io_read = Some(sum_io(&stat, "rbytes="));
            self.io_written = Some(sum_io(&stat, "wbytes="));
        }
    }

    /// The same for a hierarchy of version 1.
    pub(crate) fn read_v1(
        &mut self,
        controllers: &[String],
        read: impl Fn(&str) -> Option<String>,
    ) {
        for controller in controllers {
            match controller.as_str() {
                "memory" => {
                    self.memory = single(read("memory.usage_in_bytes"));
                    self.memory_peak = single(read("memory.max_usage_in_bytes"));
                    self.oom_kills = read("memory.oom_control").and_then(|t| field(&t, "oom_kill"));
                }
                "pids" => self.pids = single(read("pids.current")),
                "cpuacct" => {
                    self.cpu = single(read("cpuacct.usage")).map(Duration::from_nanos);
                    self.cpu_system = single(read("cpuacct.usage_sys")).map(Duration::from_nanos);
                }
                "cpu" => {
                    let nanos = read("cpu.stat").and_then(|t| field(&t, "throttled_time"));
                    self.throttled = nanos.map(Duration::from_nanos);
                }
                _ => {}
            }
        }
    }
}

fn single(text: Option<String>) -> Option<u64> {
    text?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn micros(text: &str, name: &str) -> Option<Duration> {
    field(text, name).map(Duration::from_micros)
}

fn sum_io(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let mut v2 = Usage::default();
        v2.read_v2(|file| {
            Some(match file {
                "cpu.stat" => "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nthrottled_usec 7\n".into(),
                "memory.peak" => "4096\n".into(),
                "memory.events" => "low 0\noom 2\noom_kill 1\noom_group_kill 0\n".into(),
                "io.stat" => "8:0 rbytes=10 wbytes=20\n8:16 rbytes=1 wbytes=2\n".into(),
                _ => return None,
            })
        });
        assert_eq!(v2.cpu, Some(Duration::from_micros(1500)));
        assert_eq!((v2.memory_peak, v2.oom_kills, v2.memory), (Some(4096), Some(1), None));
        assert_eq!((v2.io_read, v2.io_written), (Some(11), Some(22)));

        let mut v1 = Usage::default();
        v1.read_v1(&["memory".into(), "cpuacct".into()], |file| {
            Some(match file {
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n".into(),
                "cpuacct.usage" => "2000\n".into(),
                _ => return None,
            })
        });
        assert_eq!((v1.oom_kills, v1.cpu), (Some(3), Some(Duration::from_nanos(2000))));
    }
}

//! Where a job's output is kept: flags and settings.

use mica_agent::{LogConfig, LogDriver};

use super::values::parse_size;

/// Where what the job prints is kept.
#[derive(Debug, clap::Args)]
pub(super) struct Log {
    /// What keeps what the job prints: json-file, journald or none [default: the setting log-driver, or json-file]
    #[arg(long, value_name = "DRIVER", value_parser = parse_driver)]
    log_driver: Option<LogDriver>,
    /// max-size=SIZE of a log file, or -1; max-file=N files [default: the settings log-max-size and log-max-file, or 20m and 5]
    #[arg(long = "log-opt", value_name = "NAME=VALUE", value_parser = parse_option)]
    log_options: Vec<LogOption>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
enum LogOption {
    MaxSize(u64),
    MaxFile(u32),
}

impl Log {
    /// What holds for a job, where the settings are these.
    pub(super) fn config(&self, mut log: LogConfig) -> LogConfig {
        log.driver = self.log_driver.unwrap_or(log.driver);
        for option in &self.log_options {
            match option {
                LogOption::MaxSize(bytes) => log.max_size = *bytes,
                LogOption::MaxFile(count) => log.max_file = *count,
            }
        }
        log
    }
}

/// The name of a driver.
fn parse_driver(text: &str) -> Result<LogDriver, String> {
    match text {
        "json-file" => Ok(LogDriver::JsonFile),
        "journald" => Ok(LogDriver::Journald),
        "none" => Ok(LogDriver::None),
        _ => Err(format!("`{text}` is not a log driver; use json-file, journald or none")),
    }
}

/// A size, or `-1` for no limit.
fn parse_max_size(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(u64::MAX),
        _ => match parse_size(text)? {
            0 => Err("a log needs some room; `--log-driver none` keeps nothing".into()),
            bytes => Ok(bytes),
        },
    }
}

/// A number of files.
fn parse_max_file(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err(format!("`{text}` is not a number of files from 1 to 1000")),
    }
}

fn parse_option(text: &str) -> Result<LogOption, String> {
    match text.split_once('=') {
        Some(("max-size", size)) => parse_max_size(size).map(LogOption::MaxSize),
        Some(("max-file", count)) => parse_max_file(count).map(LogOption::MaxFile),
        _ => Err(format!(
            "`{text}` is not an option of logs; there are max-size=SIZE and max-file=N"
        )),
    }
}

/// Where the output of jobs is kept, by the settings.
pub(crate) fn log_settings(
    driver: Option<String>,
    size: Option<String>,
    count: Option<u32>,
) -> anyhow::Result<LogConfig> {
    let usual = LogConfig::default();
    let wrong =
        |name: &'static str| move |reason: String| anyhow::anyhow!("the setting {name}: {reason}");
    let driver = driver.as_deref().map(parse_driver).transpose().map_err(wrong("log-driver"))?;
    let size = size.as_deref().map(parse_max_size).transpose().map_err(wrong("log-max-size"))?;
    let count = count.map(|count| parse_max_file(&count.to_string())).transpose();
    Ok(LogConfig {
        driver: driver.unwrap_or(usual.driver),
        max_size: size.unwrap_or(usual.max_size),
        max_file: count.map_err(wrong("log-max-file"))?.unwrap_or(usual.max_file),
    })
}

//! Mounts images on a directory and serves them until the mount is taken down:
//! `cargo run -p mica-mounter --example mount -- [--upper DIR] DIR TOP [BASE …]`.
//! At the end it prints how often the kernel asked for what.

#![allow(clippy::print_stderr)] // an example for people

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mica_mounter::{ChunkTable, MountOptions, Stack, StackLayer, Trace, Upper, Verify, mount};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1).peekable();
    let mut options = MountOptions::default();
    let (mut record, mut verify) = (None, Verify::FirstRead);
    while let Some(flag) = args.next_if(|arg| arg.starts_with("--")) {
        let value = args.next().ok_or("a flag without a value")?;
        match flag.as_str() {
            "--upper" => options.upper = Some(Upper::new(value)),
            "--volatile" => options.upper = Some(Upper { volatile: true, ..Upper::new(value) }),
            "--threads" => options.threads = value.parse()?,
            "--readahead" => options.readahead_kib = Some(value.parse()?),
            "--record" => {
                record = Some(value);
                options.record_trace = true;
            }
            "--trace" => {
                let text = std::fs::read_to_string(value)?;
                options.trace = Some(Arc::new(Trace::parse(&text).ok_or("not a trace")?));
            }
            "--verify" => verify = value.parse()?,
            "--passthrough" => options.passthrough = value.parse()?,
            "--complete-after" => options.complete_after = Duration::from_millis(value.parse()?),
            "--cache" => options.block_cache_bytes = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let dir = args.next().ok_or("usage: mount [--upper DIR] DIR TOP [BASE …]")?;
    let mut stack = Stack::default();
    for path in args {
        // The chunk table that `mica image pack` writes beside an image.
        let layer = match std::fs::read(format!("{path}.chunks")) {
            Ok(table) => {
                let table = ChunkTable::parse(&table)?;
                StackLayer::open_verified(path.as_str(), Path::new(&path), table, verify)?
            }
            Err(_) => StackLayer::open(path.as_str(), Path::new(&path))?,
        };
        stack.layers.push(layer);
    }
    let mounted = mount(stack, Path::new(&dir), &options)?;
    eprintln!("ready");
    let stats = mounted.watch();
    if let Some(path) = record {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?; // until then it is recorded
        std::fs::write(path, mounted.trace().unwrap_or_default().to_text())?;
    }
    mounted.wait();
    for (operation, count) in stats.stats().requests {
        eprintln!("{count:>10} {operation}");
    }
    Ok(())
}

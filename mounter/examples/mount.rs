//! Mounts images on a directory and serves them until the mount is taken down:
//! `cargo run -p mica-mounter --example mount -- [--upper DIR] DIR TOP [BASE …]`.
//! At the end it prints how often the kernel asked for what.

#![allow(clippy::print_stderr)] // an example for people

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use mica_mounter::{MountOptions, Stack, StackLayer, Upper, mount};
use mica_squashfs::{Image, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1).peekable();
    let mut options = MountOptions::default();
    while let Some(flag) = args.next_if(|arg| arg.starts_with("--")) {
        let value = args.next().ok_or("a flag without a value")?;
        match flag.as_str() {
            "--upper" => options.upper = Some(Upper::new(value)),
            "--volatile" => options.upper = Some(Upper { volatile: true, ..Upper::new(value) }),
            "--threads" => options.threads = value.parse()?,
            "--readahead" => options.readahead_kib = Some(value.parse()?),
            "--passthrough" => options.passthrough = value.parse()?,
            "--cache" => options.block_cache_bytes = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let dir = args.next().ok_or("usage: mount [--upper DIR] DIR TOP [BASE …]")?;
    let mut stack = Stack::default();
    for path in args {
        let image = Arc::new(Image::open(&path, &OpenOptions::default())?);
        stack.layers.push(StackLayer { name: path, image });
    }
    let mounted = mount(stack, Path::new(&dir), &options)?;
    eprintln!("ready");
    let stats = mounted.watch();
    mounted.wait();
    for (operation, count) in stats.stats().requests {
        eprintln!("{count:>10} {operation}");
    }
    Ok(())
}

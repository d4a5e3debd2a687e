//! Packs a directory:
//! `cargo run --release -p mica-packer --example pack -- DIR IMAGE [--level N] [--jobs N] [--index] [--previous FILE]
//! [--scan-cache FILE] [--no-sync]`.
#![allow(clippy::print_stdout)]

use std::path::Path;

use mica_packer::{PackOptions, pack_dir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: pack DIR IMAGE [FLAG]…".into());
    };
    let mut options = PackOptions::default();
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or("the flag needs a value");
        match flag.to_str() {
            Some("--level") => options.level = Some(value()?.to_string_lossy().parse()?),
            Some("--jobs") => options.jobs = Some(value()?.to_string_lossy().parse()?),
            Some("--index") => options.index = true,
            Some("--previous") => options.previous = Some(value()?.into()),
            Some("--scan-cache") => options.scan_cache = Some(value()?.into()),
            Some("--no-sync") => options.durable = false,
            _ => return Err(format!("unknown flag {}", flag.display()).into()),
        }
    }
    let packed = pack_dir(Path::new(&dir), Path::new(&image), &options)?;
    println!("{} {} bytes", packed.digest, packed.size);
    println!("{} inodes, {} files of {} bytes", packed.inodes, packed.files, packed.bytes_in);
    println!("{} duplicates, {} blocks reused", packed.duplicates, packed.reused);
    println!("{} chunks, {} ms", packed.chunks.chunks().len(), packed.elapsed.as_millis());
    packed.notices.iter().for_each(|notice| println!("{notice}"));
    Ok(())
}

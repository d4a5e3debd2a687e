//! Packs a directory: `cargo run --release -p mica-packer --example pack -- DIR IMAGE [LEVEL]`.
#![allow(clippy::print_stdout)]

use std::path::Path;

use mica_packer::{PackOptions, pack_dir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: pack DIR IMAGE [LEVEL]".into());
    };
    let level = args.next().map(|text| text.to_string_lossy().parse()).transpose()?;
    let options = PackOptions { level, ..PackOptions::default() };
    let packed = pack_dir(Path::new(&dir), Path::new(&image), &options)?;
    println!("{packed:?}");
    Ok(())
}

//! Times what the reader does: `cargo run --release -p mica-squashfs --example measure -- open|walk|verify|unpack|cat
//! IMAGE [PATH]`. Prints wall time and the peak of memory.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program, not a library")]

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use mica_squashfs::read::walk;
use mica_squashfs::unpack::{UnpackOptions, unpack};
use mica_squashfs::verify::verify;
use mica_squashfs::{Image, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: measure open|walk|verify|unpack|cat IMAGE [PATH]";
    let (Some(verb), Some(path)) = (args.first(), args.get(1)) else { return Err(usage.into()) };
    let operand = args.get(2).map(String::as_str).ok_or(usage);
    let start = Instant::now();
    let image = Image::open(path, &OpenOptions::default())?;
    match verb.as_str() {
        "open" => println!("{} entries at most", image.inode(image.root())?.size() / 9),
        "walk" => println!("{} entries", walk(&image).filter(Result::is_ok).count()),
        "verify" => println!("{} damaged", verify(&image, None).damage.len()),
        "unpack" => {
            let done = unpack(&image, Path::new(operand?), &UnpackOptions::default())?;
            println!("{} files, {} bytes", done.files, done.bytes);
        }
        "cat" => {
            let inode = image.resolve(operand?.as_bytes())?.ok_or("no such file")?;
            let blocks = image.blocks(&inode)?;
            let (mut out, mut bytes) = (std::io::stdout().lock(), Vec::new());
            for index in 0..blocks.count() {
                blocks.read(index, &mut bytes)?;
                out.write_all(&bytes)?;
            }
        }
        _ => return Err(usage.into()),
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    eprintln!("{verb}: {:.3} ms, {peak}", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

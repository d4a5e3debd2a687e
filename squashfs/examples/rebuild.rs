//! Describes an image, makes it again from its contents in a temporary file, and says what that took:
//! `cargo run --release -p mica-squashfs --example rebuild -- IMAGE [RECIPE [CONTENTS]]` keeps recipe and contents too.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a program for measuring")]

use std::error::Error;
use std::io::{BufReader, Seek as _};
use std::time::Instant;

use mica_squashfs::rebuild::{Recipe, describe, rebuild};
use mica_squashfs::{Image, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: rebuild IMAGE [RECIPE]")?;
    let image = Image::open(path, &OpenOptions::default())?;
    let start = Instant::now();
    let described = describe(&image, None, None)?;
    let recipe = described.recipe.encode();
    if let Some(path) = std::env::args_os().nth(2) {
        std::fs::write(path, &recipe)?;
    }
    let size = described.recipe.image_len();
    println!(
        "described in {:.2?}: {} level {}, {:.1} of {:.1} MB verbatim, recipe of {} bytes ({:.3} %)",
        start.elapsed(),
        described.recipe.library(),
        described.recipe.level(),
        described.recipe.verbatim() as f64 / 1e6,
        size as f64 / 1e6,
        recipe.len(),
        recipe.len() as f64 * 100.0 / size as f64
    );
    let start = Instant::now();
    let mut raw = match std::env::args_os().nth(3) {
        Some(path) => std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?,
        None => tempfile::tempfile()?,
    };
    described.contents.copy_to(&mut raw, None)?;
    raw.rewind()?;
    println!(
        "{:.1} MB of contents in {:.2?}",
        described.recipe.raw_len() as f64 / 1e6,
        start.elapsed()
    );
    let start = Instant::now();
    rebuild(&Recipe::parse(&recipe)?, None, &mut BufReader::new(raw), &mut std::io::sink(), None)?;
    println!("made again in {:.2?}", start.elapsed());
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("peak memory {}", peak.trim_start_matches("VmHWM:").trim());
    Ok(())
}

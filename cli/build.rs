//! How the binary is linked, where linking costs every start: a job starts it twice, and a third of such a start was the
//! loader's work on the binary (60,000 addresses to fill in, a megabyte of memory to do that in) and its libraries.
//!
//! On Linux with glibc the binary is loaded at a fixed address. What is lost is that its own code and constants lie at an
//! address of chance; stack, heap and libraries still do. Packed relocations (`-z pack-relative-relocs`) don't help: it is
//! the memory they are written to that costs, 260 page faults and 0.6 ms of `mica --version`'s 1.6. And libgcc, of which only the unwinder is used, is linked in where
//! it can be: the shared one asks a virtual machine's host what processor this is, which takes 0.1 ms, at every start.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    if var("CARGO_CFG_TARGET_OS") != "linux" || var("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-no-pie");
    // For another machine than this one the compiler to ask is another.
    if var("HOST") != var("TARGET") {
        return;
    }
    let (Some(unwinder), Some(rest)) = (archive("libgcc_eh.a"), archive("libgcc.a")) else {
        return;
    };
    // A script in place of the shared library, for the linker to find first.
    let folder = var("OUT_DIR");
    let script = format!("GROUP({unwinder} {rest})\n");
    if fs::write(Path::new(&folder).join("libgcc_s.so"), script).is_ok() {
        println!("cargo::rustc-link-arg-bins=-L{folder}");
    }
}

/// Where the compiler has this archive, if it does.
fn archive(name: &str) -> Option<String> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&path).is_absolute().then_some(path)
}

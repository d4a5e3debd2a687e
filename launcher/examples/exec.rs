//! Times further programs in a running job: `exec TREE PROGRAM WAITING-PROGRAM RUNS` starts the
//! first program that often beside the waiting one, and prints the median and the 99th percentile in milliseconds. `bench/launch.sh` sets it beside `runc exec`.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use mica_launcher::{ExecSpec, Root, Spec, Stdio, init_main, launch};

fn main() -> Result<(), Box<dyn Error>> {
    init_main();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tree, program, wait, runs] = arguments.as_slice() else {
        return Err("usage: exec TREE PROGRAM WAITING-PROGRAM RUNS".into());
    };
    let spec = Spec::new(format!("exec-{}", std::process::id()), Root::Tree(tree.into()), [wait]);
    let job = launch(&spec, Stdio::null()?)?;
    let exec = ExecSpec { argv: vec![program.into()], ..ExecSpec::default() };
    let mut times = Vec::new();
    for _ in 0..runs.parse::<usize>()? {
        let begin = Instant::now();
        job.exec(&exec, Stdio::null()?)?.wait()?;
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |part: f64| {
        times.get((times.len() as f64 * part) as usize).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    println!("  mica exec    median {:7.2}  p99 {:7.2}", at(0.5), at(0.99));
    Ok(())
}

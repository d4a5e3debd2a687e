//! Builds a target of a workspace: `build WORKSPACE //app:A`.
#![allow(clippy::print_stdout)] // it is a program

use std::error::Error;

use mica_packer::build::{BuildOptions, build};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [workspace, target] = arguments.as_slice() else {
        return Err("two arguments are wanted: a workspace and a target".into());
    };
    let built = build(workspace.as_ref(), &target.parse()?, &BuildOptions::default())?;
    for (label, text) in &built.said {
        println!("{label}: {text}");
    }
    for module in built.graph.plan(&built.target)?.layers() {
        println!("{}", module.label);
        for output in &module.outputs {
            println!("  {} <- {}", output.path, output.source.display());
        }
    }
    println!("{} run, {} reused, {:?}", built.actions_run, built.actions_reused, built.duration);
    Ok(())
}

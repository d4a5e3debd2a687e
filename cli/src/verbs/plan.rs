//! `mica plan`: a target's layers in stack order, and where `pack` gets them from.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mica_graph::build::{BuildGraph, Module};
use mica_graph::{Digest, Label};
use mica_packer::{
    Modes, Output, PackOptions, Scan, ScanOptions, check_conflicts, inputs_digest, scan_outputs,
};
use serde::Serialize;

use crate::kept::Kept;
use crate::output::{self, note};
use crate::places::find_workspace;

/// Show a target's layers in stack order
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which target, and where its outputs come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The target: //package:name
    #[arg(long, value_name = "LABEL")]
    pub(crate) target: Label,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// Where a target's outputs come from.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Source {
    /// Take graph and outputs from this JSON file (- for standard input) instead of building BUILD files
    #[arg(long, value_name = "FILE")]
    pub(crate) graph: Option<PathBuf>,
    /// Root of the build's source tree [default: the nearest one around the current folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<PathBuf>,
    /// Threads for building and packing [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
}

/// A built graph and where it was built.
pub(crate) struct Built {
    pub(crate) graph: BuildGraph,
    /// The target, aliases followed.
    pub(crate) target: Label,
    pub(crate) workspace: PathBuf,
    /// How the modes of what the build put together are packed.
    modes: Modes,
    /// Time for building the outputs.
    pub(crate) elapsed: Duration,
}

impl Target {
    /// Builds the target, or reads the graph that another tool built.
    pub(crate) fn build(&self) -> anyhow::Result<Built> {
        self.source.build(&self.target)
    }
}

impl Source {
    /// Builds a target, or reads the graph that another tool built.
    pub(crate) fn build(&self, target: &Label) -> anyhow::Result<Built> {
        let started = Instant::now();
        let workspace = match &self.workspace {
            Some(dir) => dir.clone(),
            None => {
                let cwd = std::env::current_dir()?;
                find_workspace(&cwd).unwrap_or(cwd)
            }
        };
        if let Some(file) = &self.graph {
            let graph = read_graph(file, self.workspace.as_deref())?;
            let target = target.clone();
            return Ok(Built {
                graph,
                target,
                workspace,
                modes: Modes::Keep,
                elapsed: started.elapsed(),
            });
        }
        let options = mica_packer::build::BuildOptions {
            jobs: self.jobs.map(usize::from),
            ..mica_packer::build::BuildOptions::default()
        };
        let built = mica_packer::build::build(&workspace, target, &options)?;
        built.printed.iter().for_each(note);
        for (label, said) in &built.said {
            note(format_args!("{label}: {}", said.trim_end()));
        }
        Ok(Built {
            graph: built.graph,
            target: built.target,
            workspace,
            modes: Modes::Executable,
            elapsed: started.elapsed(),
        })
    }
}

/// Sources in the graph start at the given folder, else at the file's own.
fn read_graph(file: &Path, base: Option<&Path>) -> anyhow::Result<BuildGraph> {
    let cannot = || format!("cannot read the graph {}", file.display());
    let (text, folder) = if file.as_os_str() == OsStr::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).with_context(cannot)?;
        (text, std::env::current_dir()?)
    } else {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        (
            fs::read_to_string(file).with_context(cannot)?,
            folder.unwrap_or(Path::new(".")).to_owned(),
        )
    };
    Ok(BuildGraph::from_json(&text, base.unwrap_or(&folder))?)
}

/// A layer to be: its module, what was scanned, and the digest of that.
pub(crate) struct PlannedLayer<'g> {
    pub(crate) module: &'g Module,
    pub(crate) scan: Scan,
    pub(crate) inputs: Digest,
}

impl Built {
    /// Scans the outputs of every layer, topmost first, and checks that no two contradict each other.
    pub(crate) fn scan_layers(
        &self,
        options: &PackOptions,
        kept: Option<&Kept>,
    ) -> anyhow::Result<Vec<PlannedLayer<'_>>> {
        let plan = self.graph.plan(&self.target)?;
        let mut layers = Vec::new();
        for module in plan.layers() {
            let known = kept.map(|kept| kept.scan_cache(&module.label));
            let how = ScanOptions { cache: known.clone(), ..self.scan_options(module, options) };
            let scan = scan_outputs(&outputs(module), &how)
                .with_context(|| format!("cannot pack the outputs of {}", module.label))?;
            let inputs = inputs_digest(&scan, options)?;
            if let Some((kept, known)) = kept.zip(known) {
                kept.remember(&module.label, &scan, &known);
            }
            layers.push(PlannedLayer { module, scan, inputs });
        }
        if layers.is_empty() {
            bail!("{} has no outputs, so there is nothing to pack", self.target);
        }
        let scans: Vec<_> =
            layers.iter().map(|layer| (layer.module.label.clone(), &layer.scan)).collect();
        check_conflicts(&scans)?;
        Ok(layers)
    }

    /// A tree that a `mica_tree` or `mica_base` rule takes whole keeps its modes.
    fn scan_options(&self, module: &Module, options: &PackOptions) -> ScanOptions {
        let modes = if module.rule.starts_with("mica_") { Modes::Keep } else { self.modes };
        ScanOptions { modes, ..options.scan() }
    }
}

fn outputs(module: &Module) -> Vec<Output> {
    let output = |output: &mica_graph::Output| Output {
        tree_path: PathBuf::from(&output.path),
        source: output.source.clone(),
    };
    module.outputs.iter().map(output).collect()
}

#[derive(Serialize)]
struct Row<'g> {
    module: &'g Label,
    rule: &'g str,
    inputs: Digest,
    files: u64,
    bytes: u64,
    deps: &'g [Label],
    root: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let built = args.target.build()?;
    let layers = built.scan_layers(&PackOptions::default(), None)?;
    let row = |layer: &PlannedLayer<'_>| -> [String; 5] {
        [
            layer.module.label.to_string(),
            layer.module.rule.clone(),
            layer.scan.files.to_string(),
            output::bytes(layer.scan.bytes),
            layer.inputs.short(),
        ]
    };
    if args.json {
        let rows: Vec<Row<'_>> = layers
            .iter()
            .map(|layer| Row {
                module: &layer.module.label,
                rule: &layer.module.rule,
                inputs: layer.inputs,
                files: layer.scan.files,
                bytes: layer.scan.bytes,
                deps: &layer.module.deps,
                root: layer.module.root,
            })
            .collect();
        output::json(&rows)?;
    } else {
        let rows: Vec<_> = layers.iter().map(row).collect();
        output::table(["MODULE", "RULE", "FILES", "SIZE", "INPUTS"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

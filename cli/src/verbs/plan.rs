//! `mica plan`: a target's layers in stack order, and where `pack` gets them from.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mica_graph::build::{BuildGraph, Module};
use mica_graph::{Digest, Label};
use mica_packer::build::BuildOptions;
use mica_packer::{
    Modes, Output, PackOptions, Scan, ScanOptions, check_conflicts, inputs_digest, scan_outputs,
};
use serde::Serialize;

use crate::confined::{self, ActionFlags};
use crate::kept::Kept;
use crate::output::{self, note};
use crate::places::{Places, find_workspace};

/// Show a target's layers in stack order
///
/// Runs nothing of the workspace but its build files, and writes nothing: what is not built yet is said to be so.
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

/// A graph and where it is from.
pub(crate) struct Built {
    pub(crate) graph: BuildGraph,
    /// The target, aliases followed.
    pub(crate) target: Label,
    pub(crate) workspace: PathBuf,
    /// Outputs that are not there yet, or not as they would be built now.
    unbuilt: BTreeSet<PathBuf>,
    /// How the modes of what the build put together are packed.
    modes: Modes,
    /// Time for building the outputs.
    pub(crate) elapsed: Duration,
}

impl Source {
    /// Builds a target, or reads the graph that another tool built.
    pub(crate) fn build(
        &self,
        target: &Label,
        actions: &ActionFlags,
        places: &Places,
    ) -> anyhow::Result<Built> {
        let started = Instant::now();
        let workspace = self.workspace()?;
        if let Some(file) = &self.graph {
            return self.built_elsewhere(file, target, workspace);
        }
        let options = BuildOptions {
            jobs: self.jobs.map(usize::from),
            executor: actions.executor(places, &workspace),
            ..BuildOptions::default()
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
            unbuilt: BTreeSet::new(),
            modes: Modes::Executable,
            elapsed: started.elapsed(),
        })
    }

    /// Looks at a target as it is, without running anything of the workspace.
    pub(crate) fn plan(&self, target: &Label) -> anyhow::Result<Built> {
        let started = Instant::now();
        let workspace = self.workspace()?;
        if let Some(file) = &self.graph {
            return self.built_elsewhere(file, target, workspace);
        }
        let executor = confined::for_planning();
        let options = BuildOptions { executor, ..BuildOptions::default() };
        let planned = mica_packer::build::plan(&workspace, target, &options)?;
        planned.printed.iter().for_each(note);
        Ok(Built {
            graph: planned.graph,
            target: planned.target,
            workspace,
            unbuilt: planned.unbuilt,
            modes: Modes::Executable,
            elapsed: started.elapsed(),
        })
    }

    fn workspace(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.workspace {
            return Ok(dir.clone());
        }
        let cwd = std::env::current_dir().context("cannot find the working directory")?;
        Ok(find_workspace(&cwd).unwrap_or(cwd))
    }

    fn built_elsewhere(
        &self,
        file: &Path,
        target: &Label,
        workspace: PathBuf,
    ) -> anyhow::Result<Built> {
        let started = Instant::now();
        let graph = read_graph(file, self.workspace.as_deref())?;
        let target = target.clone();
        let (unbuilt, modes) = (BTreeSet::new(), Modes::Keep);
        Ok(Built { graph, target, workspace, unbuilt, modes, elapsed: started.elapsed() })
    }
}

/// Sources in the graph start at the given folder, else at the file's own.
fn read_graph(file: &Path, base: Option<&Path>) -> anyhow::Result<BuildGraph> {
    let cannot = || format!("cannot read the graph {}", file.display());
    let (text, folder) = if file.as_os_str() == OsStr::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).with_context(cannot)?;
        (text, std::env::current_dir().context("cannot find the working directory")?)
    } else {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        (
            fs::read_to_string(file).with_context(cannot)?,
            folder.unwrap_or(Path::new(".")).to_owned(),
        )
    };
    Ok(BuildGraph::from_json(&text, base.unwrap_or(&folder))?)
}

/// A layer to be.
pub(crate) struct PlannedLayer<'g> {
    pub(crate) module: &'g Module,
    /// What it is made of; `None` if that is not built yet.
    pub(crate) scanned: Option<Scanned>,
}

/// What a layer is made of, and the digest of that.
pub(crate) struct Scanned {
    pub(crate) scan: Scan,
    pub(crate) inputs: Digest,
}

impl PlannedLayer<'_> {
    /// # Errors
    /// It is not built yet.
    pub(crate) fn scanned(&self) -> anyhow::Result<&Scanned> {
        self.scanned.as_ref().ok_or_else(|| not_built(&self.module.label))
    }
}

fn not_built(module: &Label) -> anyhow::Error {
    let error = anyhow::anyhow!("the outputs of {module} are not built, or not as they are now");
    let hint = "`mica pack` builds them; looking at a target runs nothing of its workspace";
    crate::error::advised(error, Some(hint.into()), None)
}

impl Built {
    /// Scans the outputs of every layer that are built, topmost first, and checks that no two contradict each other.
    pub(crate) fn scan_layers(
        &self,
        options: &PackOptions,
        kept: Option<&Kept>,
    ) -> anyhow::Result<Vec<PlannedLayer<'_>>> {
        let plan = self.graph.plan(&self.target)?;
        let mut layers = Vec::new();
        for module in plan.layers() {
            if module.outputs.iter().any(|output| self.unbuilt.contains(&output.source)) {
                layers.push(PlannedLayer { module, scanned: None });
                continue;
            }
            let known = kept.map(|kept| kept.scan_cache(&module.label));
            let how = ScanOptions { cache: known.clone(), ..self.scan_options(module, options) };
            let scan = scan_outputs(&outputs(module), &how)
                .with_context(|| format!("cannot pack the outputs of {}", module.label))?;
            let inputs = inputs_digest(&scan, options)?;
            if let Some((kept, known)) = kept.zip(known) {
                kept.remember(&module.label, &scan, &known);
            }
            layers.push(PlannedLayer { module, scanned: Some(Scanned { scan, inputs }) });
        }
        if layers.is_empty() {
            bail!("{} has no outputs, so there is nothing to pack", self.target);
        }
        let scanned = layers.iter().filter_map(|layer| Some((layer, layer.scanned.as_ref()?)));
        let scans: Vec<_> =
            scanned.map(|(layer, of_it)| (layer.module.label.clone(), &of_it.scan)).collect();
        check_conflicts(&scans)?;
        Ok(layers)
    }

    /// What is of this machine and not of the workspace: outputs that are links by an absolute path, and folders packed from
    /// elsewhere.
    pub(crate) fn of_this_machine(&self) -> anyhow::Result<Vec<String>> {
        let workspace = std::path::absolute(&self.workspace)?;
        let real = workspace.canonicalize().unwrap_or(workspace);
        let mut found = Vec::new();
        for module in self.graph.plan(&self.target)?.layers() {
            for output in &module.outputs {
                let (label, path) = (&module.label, &output.path);
                match fs::read_link(&output.source) {
                    Ok(target) if target.is_absolute() => found.push(format!(
                        "{label}: /{path} is a link to {}, which is on this machine",
                        target.display()
                    )),
                    Ok(_) => {}
                    Err(_) if self.modes == Modes::Executable => {
                        let source = std::path::absolute(&output.source)?;
                        if !source.starts_with(&real) {
                            found.push(format!(
                                "{label}: packs {} of this machine",
                                source.display()
                            ));
                        }
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(found)
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
    /// Else what follows is not known.
    built: bool,
    inputs: Option<Digest>,
    files: Option<u64>,
    bytes: Option<u64>,
    deps: &'g [Label],
    root: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let built = args.target.source.plan(&args.target.target)?;
    let layers = built.scan_layers(&PackOptions::default(), None)?;
    let row = |layer: &PlannedLayer<'_>| -> [String; 5] {
        let (module, rule) = (layer.module.label.to_string(), layer.module.rule.clone());
        match &layer.scanned {
            Some(Scanned { scan, inputs }) => {
                let (files, size) = (scan.files.to_string(), output::bytes(scan.bytes));
                [module, rule, files, size, inputs.short()]
            }
            None => [module, rule, "-".into(), "-".into(), "not built".into()],
        }
    };
    if args.json {
        let rows: Vec<Row<'_>> = layers
            .iter()
            .map(|layer| {
                let scanned = layer.scanned.as_ref();
                Row {
                    module: &layer.module.label,
                    rule: &layer.module.rule,
                    built: scanned.is_some(),
                    inputs: scanned.map(|scanned| scanned.inputs),
                    files: scanned.map(|scanned| scanned.scan.files),
                    bytes: scanned.map(|scanned| scanned.scan.bytes),
                    deps: &layer.module.deps,
                    root: layer.module.root,
                }
            })
            .collect();
        output::json(&rows)?;
    } else {
        let rows: Vec<_> = layers.iter().map(row).collect();
        output::table(["MODULE", "RULE", "FILES", "SIZE", "INPUTS"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

//! The command line.

use clap::{Parser, Subcommand};

use crate::verbs;

/// Package build outputs in layers, ship what changed, run them without root.
#[derive(Debug, Parser)]
#[command(name = "mica", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Say more of what happens: error, warn, info, debug or trace, as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL", env = "MICA_LOG", hide_env_values = true)]
    pub(crate) log: Option<String>,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)] // only the verb that is meant has its flags looked at
pub(crate) enum Verb {
    /// Build, publish, fetch, mount and run the example monorepo, then change one module
    Demo(verbs::demo::Args),
    /// Build a target, pack its modules into layers and publish the package
    Pack(Box<verbs::pack::Args>),
    /// Show a target's layers in stack order
    Plan(verbs::plan::Args),
    /// Show which module put a path into a package, and whose it hides
    Why(verbs::why::Args),
    /// Show what changed between two versions of a package
    Diff(verbs::diff::Args),
    /// Pack, list and read single images
    Image(verbs::image::Args),
    /// Serve a registry folder over HTTP
    Serve(verbs::serve::Args),
    /// Fetch a package into the cache
    Pull(verbs::pull::Args),
    /// Publish a package of the cache to a registry
    Push(verbs::push::Args),
    /// Make keys to sign packages with
    Key(verbs::key::Args),
    /// Sign a package that was published before
    Sign(verbs::sign::Args),
    /// Keep a name and password for a registry
    Login(verbs::login::Args),
    /// Forget what `mica login` kept
    Logout(verbs::login::LogoutArgs),
    /// List the packages in the cache
    Images(verbs::images::Args),
    /// List the versions of a package in the registry
    History(verbs::history::Args),
    /// Make a tag mean a version
    Tag(verbs::tag::Args),
    /// Write packages of the cache into one file
    Save(verbs::save::Args),
    /// Take the packages of such a file into the cache
    Load(verbs::save::LoadArgs),
    /// Make a package of an image of other tools
    Import(Box<verbs::import::Args>),
    /// Write a package in a form of other tools
    Export(verbs::export::Args),
    /// Show the manifest of a package, or the record of a job
    Inspect(verbs::inspect::Args),
    /// Forget versions of packages, or tags
    #[command(alias = "rmi")]
    RmImage(verbs::rm_image::Args),
    /// Remove images that no package needs
    Prune(verbs::prune::Args),
    /// Show how the cache's bytes are used
    Df(verbs::df::Args),
    /// Look after the node's images
    Cache(verbs::cache::Args),
    /// Mount a package, or image files, as one directory tree
    Mount(verbs::mount::Args),
    /// Unmount what `mica mount` mounted
    #[command(alias = "unmount")]
    Umount(verbs::umount::Args),
    /// Run a package, or image files, as a confined job
    Run(Box<verbs::run::Args>),
    /// Open a shell in a package's stack
    Shell(verbs::shell::Args),
    /// Run a further program in a running job
    Exec(verbs::exec::Args),
    /// Take part in a running job's output and input
    Attach(verbs::attach::Args),
    /// List jobs
    Ps(verbs::ps::Args),
    /// Show what a job printed
    Logs(verbs::logs::Args),
    /// Ask jobs to end, and make them after a while
    Stop(verbs::stop::Args),
    /// Send a signal to jobs
    Kill(verbs::kill::Args),
    /// Wait for jobs to end and print their exit codes
    Wait(verbs::wait::Args),
    /// Start jobs that have ended again, with what they wrote
    Start(verbs::start::Args),
    /// End jobs and start them again
    Restart(verbs::restart::Args),
    /// Stop all processes of jobs where they are
    Pause(verbs::pause::Args),
    /// Let paused jobs go on
    Unpause(verbs::unpause::Args),
    /// Remove ended jobs
    Rm(verbs::rm::Args),
    /// Copy files between a job and the host
    Cp(verbs::cp::Args),
    /// Make a layer of what a job wrote, and a new version of its package
    Commit(Box<verbs::commit::Args>),
    /// Give a job another name
    Rename(verbs::rename::Args),
    /// Change limits and the restart policy of jobs
    Update(verbs::update::Args),
    /// Show what running jobs use
    Stats(verbs::stats::Args),
    /// Show the processes of a job
    Top(verbs::top::Args),
    /// Look after bridge networks
    Network(verbs::network::Args),
    /// Look after named volumes
    Volume(verbs::volume::Args),
    /// Show what happens to jobs
    Events(verbs::events::Args),
    /// Look at, run and verify .xar files
    Xar(verbs::xar::Args),
    /// Look at the settings
    Config(verbs::config::Args),
    /// Show what this host gives to jobs, and what mica keeps here
    Info(verbs::info::Args),
    /// Show which mica this is
    Version(verbs::version::Args),
    /// Print what a shell needs to complete mica's words
    Completion(verbs::completion::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

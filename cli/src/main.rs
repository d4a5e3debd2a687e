//! The command `mica`.

mod app;
mod args;
mod confined;
mod context;
mod error;
mod folders;
mod git;
mod hints;
mod homes;
mod kept;
mod output;
mod places;
mod registries;
mod scratch;
mod shown;
mod signals;
mod stacks;
mod terminal;
mod trust;
mod verbs;

fn main() -> std::process::ExitCode {
    app::run()
}

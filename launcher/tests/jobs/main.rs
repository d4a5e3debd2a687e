//! Jobs, for real. A job's init is the binary that started it, so this one has a `main` of its own.
//!
//! `cargo test -p mica-launcher --test jobs -- limits::` runs a part.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod basics;
mod escapes;
mod limits;
mod runtime_spec;
mod support;
mod surroundings;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == escapes::PRETEND) {
        escapes::pretend_overwrite();
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|argument| argument == escapes::PUSH) {
        support::begin();
        escapes::push_input();
        return ExitCode::SUCCESS;
    }
    let all = [
        basics::TESTS,
        surroundings::TESTS,
        view::TESTS,
        runtime_spec::TESTS,
        limits::TESTS,
        escapes::TESTS,
    ];
    support::run(&all.concat())
}

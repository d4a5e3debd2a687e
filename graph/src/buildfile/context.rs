//! What the functions of a build file work on. A file of its own, for the derive below writes an `unsafe impl` (the marker trait by
//! which the evaluator carries a value of ours); there is no other unsafe code here.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use starlark::any::ProvidesStaticType;

use super::error::BuildFileError;
use super::loader::Loader;
use super::target::Target;

/// One evaluation of one file.
#[derive(ProvidesStaticType)]
pub(super) struct Context<'a> {
    /// Whoever reads, and evaluates other packages
    pub(super) loader: &'a Loader<'a>,
    /// The package whose build file is evaluated; `None` for a `.bzl` file.
    pub(super) package: Option<&'a str>,
    /// The targets declared so far.
    pub(super) targets: RefCell<BTreeMap<String, Target>>,
    /// An error that already knows its place, from an evaluation inside of this one.
    pub(super) nested: RefCell<Option<BuildFileError>>,
}

//! The rules a build file may call, and their attributes: data, read by the evaluator and by the list that people see.

/// What a rule makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// A shared object from C or C++.
    CcLibrary,
    /// An executable from C or C++.
    CcBinary,
    /// Python modules.
    PyLibrary,
    /// Python modules and a program that starts one.
    PyBinary,
    /// A script.
    ShBinary,
    /// Files as they are.
    Filegroup,
    /// Files made by a command.
    Genrule,
    /// Another name of a target.
    Alias,
    /// A key for `select()`.
    ConfigSetting,
    /// A folder as it is, at a place of its own in the tree.
    Tree,
    /// How a package of another target is started.
    Package,
}

/// The type of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    /// `True` or `False` (also 1 and 0).
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A string.
    Str,
    /// A list of strings.
    Strs,
    /// A dict of strings.
    Dict,
    /// A file or target.
    Label,
    /// A list of files and targets.
    Labels,
}

/// An attribute of a rule.
#[derive(Clone, Copy, Debug)]
pub struct AttrDef {
    /// Its name.
    pub name: &'static str,
    /// The type of its value.
    pub kind: AttrKind,
    /// Whether a call without it is refused.
    pub required: bool,
}

/// A rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name in a build file.
    pub name: &'static str,
    /// What it makes.
    pub kind: RuleKind,
    /// Its attributes, besides `name`.
    pub attrs: &'static [AttrDef],
}

const fn attr(name: &'static str, kind: AttrKind) -> AttrDef {
    AttrDef { name, kind, required: false }
}

const fn required(name: &'static str, kind: AttrKind) -> AttrDef {
    AttrDef { name, kind, required: true }
}

use AttrKind::{Bool, Dict, Float, Int, Label, Labels, Str, Strs};

/// Attributes of every rule that say nothing about what is built.
pub(super) const TOLERATED: [&str; 15] = [
    "visibility",
    "within_view",
    "licenses",
    "tags",
    "testonly",
    "deprecation",
    "compatible_with",
    "exec_compatible_with",
    "restricted_to",
    "distribs",
    "contacts",
    "metadata",
    "default_visibility",
    "generator_name",
    "applicable_licenses",
];

const CC_LIBRARY: &[AttrDef] = &[
    attr("srcs", Labels),
    attr("hdrs", Labels),
    attr("headers", Labels),
    attr("exported_headers", Labels),
    attr("deps", Labels),
    attr("exported_deps", Labels),
    attr("data", Labels),
    attr("resources", Labels),
    attr("includes", Strs),
    attr("copts", Strs),
    attr("compiler_flags", Strs),
    attr("preprocessor_flags", Strs),
    attr("exported_preprocessor_flags", Strs),
    attr("defines", Strs),
    attr("local_defines", Strs),
    attr("linkopts", Strs),
    attr("linker_flags", Strs),
    attr("soname", Str),
    attr("linkstatic", Bool),
];

const CC_BINARY: &[AttrDef] = &[
    attr("srcs", Labels),
    attr("headers", Labels),
    attr("deps", Labels),
    attr("data", Labels),
    attr("resources", Labels),
    attr("includes", Strs),
    attr("copts", Strs),
    attr("compiler_flags", Strs),
    attr("preprocessor_flags", Strs),
    attr("defines", Strs),
    attr("local_defines", Strs),
    attr("linkopts", Strs),
    attr("linker_flags", Strs),
    attr("linkstatic", Bool),
    attr("args", Strs),
    attr("env", Dict),
];

const PY_LIBRARY: &[AttrDef] = &[
    attr("srcs", Labels),
    attr("deps", Labels),
    attr("data", Labels),
    attr("resources", Labels),
    attr("imports", Strs),
    attr("srcs_version", Str),
];

const PY_BINARY: &[AttrDef] = &[
    attr("srcs", Labels),
    attr("deps", Labels),
    attr("data", Labels),
    attr("resources", Labels),
    attr("imports", Strs),
    attr("srcs_version", Str),
    attr("python_version", Str),
    attr("main", Label),
    attr("main_module", Str),
    attr("args", Strs),
    attr("env", Dict),
];

const SH_BINARY: &[AttrDef] = &[
    attr("srcs", Labels),
    attr("main", Label),
    attr("deps", Labels),
    attr("data", Labels),
    attr("resources", Labels),
    attr("args", Strs),
    attr("env", Dict),
];

/// Every rule. Bazel's and Buck's names for one thing make the same thing.
pub const RULES: [Rule; 16] = [
    Rule { name: "cc_library", kind: RuleKind::CcLibrary, attrs: CC_LIBRARY },
    Rule { name: "cxx_library", kind: RuleKind::CcLibrary, attrs: CC_LIBRARY },
    Rule { name: "cc_binary", kind: RuleKind::CcBinary, attrs: CC_BINARY },
    Rule { name: "cxx_binary", kind: RuleKind::CcBinary, attrs: CC_BINARY },
    Rule { name: "py_library", kind: RuleKind::PyLibrary, attrs: PY_LIBRARY },
    Rule { name: "python_library", kind: RuleKind::PyLibrary, attrs: PY_LIBRARY },
    Rule { name: "py_binary", kind: RuleKind::PyBinary, attrs: PY_BINARY },
    Rule { name: "python_binary", kind: RuleKind::PyBinary, attrs: PY_BINARY },
    Rule { name: "sh_binary", kind: RuleKind::ShBinary, attrs: SH_BINARY },
    Rule {
        name: "filegroup",
        kind: RuleKind::Filegroup,
        attrs: &[attr("srcs", Labels), attr("data", Labels)],
    },
    Rule {
        name: "genrule",
        kind: RuleKind::Genrule,
        attrs: &[
            attr("srcs", Labels),
            attr("tools", Labels),
            attr("outs", Strs),
            attr("out", Str),
            attr("cmd", Str),
            attr("cmd_bash", Str),
            attr("executable", Bool),
            attr("message", Str),
        ],
    },
    Rule { name: "alias", kind: RuleKind::Alias, attrs: &[required("actual", Label)] },
    Rule {
        name: "config_setting",
        kind: RuleKind::ConfigSetting,
        attrs: &[
            attr("constraint_values", Strs),
            attr("values", Dict),
            attr("define_values", Dict),
        ],
    },
    Rule {
        name: "mica_tree",
        kind: RuleKind::Tree,
        attrs: &[required("dir", Str), attr("at", Str), attr("root", Bool), attr("deps", Labels)],
    },
    Rule { name: "mica_base", kind: RuleKind::Tree, attrs: &[required("dir", Str)] },
    Rule {
        name: "mica_package",
        kind: RuleKind::Package,
        attrs: &[
            required("binary", Label),
            attr("deps", Labels),
            attr("entrypoint", Strs),
            attr("args", Strs),
            attr("env", Dict),
            attr("workdir", Str),
            attr("user", Str),
            attr("labels", Dict),
            attr("memory", Int),
            attr("pids", Int),
            attr("cpus", Float),
            attr("ports", Strs),
            attr("health_cmd", Str),
            attr("health_interval", Float),
            attr("health_timeout", Float),
            attr("health_start_period", Float),
            attr("health_retries", Int),
            attr("stop_signal", Str),
            attr("stop_timeout", Int),
        ],
    },
];

impl Rule {
    /// The rule of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.name == name)
    }

    /// The attribute of this name.
    pub fn attr(&self, name: &str) -> Option<&'static AttrDef> {
        self.attrs.iter().find(|attr| attr.name == name)
    }
}

//! C and C++: a library is a shared object, a binary is linked against those it depends on.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, ActionOutput, Analyzer, Place, Provided, Run, Tool};
use crate::buildfile::{BuildFileError, Dep, RuleKind, Target, join};

/// What a library offers to those that compile and link against it.
#[derive(Clone, Debug, Default)]
pub(super) struct CcInfo {
    /// Headers of this library and of all below it.
    headers: BTreeSet<Place>,
    /// Further include folders, nearest first.
    includes: Vec<String>,
    /// Preprocessor flags for all above.
    flags: Vec<String>,
    /// The shared objects to link: its own, or those below it if it has none.
    link: Vec<String>,
    /// All shared objects of this library and below.
    shared: BTreeSet<String>,
}

const HEADERS: [&str; 7] = ["h", "hh", "hpp", "hxx", "inc", "inl", "def"];
const C_SOURCES: [&str; 2] = ["c", "S"];
const CXX_SOURCES: [&str; 4] = ["cc", "cpp", "cxx", "C"];

fn is(path: &str, extensions: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension))
}

/// What makes the same inputs give the same bytes, whenever and wherever.
const REPRODUCIBLE: [&str; 2] = ["-Wno-builtin-macro-redefined", "-D__TIMESTAMP__=\"redacted\""];

impl Analyzer<'_> {
    pub(super) fn cc_library(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let mut cc = self.cc_deps(target, &["deps", "exported_deps"])?;
        let public = self.files_of(target, &["hdrs", "exported_headers"]);
        let (objects, cxx) = self.compile(target, &cc, &public)?;
        cc.headers.extend(public);
        cc.flags.extend(defines(target, &["defines"]));
        cc.flags.extend(target.strs("exported_preprocessor_flags").iter().cloned());
        let mut files = Vec::new();
        if !objects.is_empty() {
            let name = format!("lib{}.so", target.label.name().replace('/', "_"));
            let name = target.str("soname").unwrap_or(&name).to_owned();
            let path = Self::output_path(target, &name)?;
            let soname = name_of(&path).to_owned();
            let own = vec!["-shared".into(), format!("-Wl,-soname,{soname}"), "-Wl,-z,defs".into()];
            self.link(target, &path, own, objects, &cc, cxx)?;
            cc.link = vec![path.clone()];
            cc.shared.insert(path.clone());
            files.push(Place::Built(path));
        }
        let attrs = ["deps", "exported_deps", "data", "resources"];
        self.modules.push(self.module(target, &attrs, files.clone()));
        Ok(Provided { files, cc, ..Provided::default() })
    }

    pub(super) fn cc_binary(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let cc = self.cc_deps(target, &["deps"])?;
        let (objects, cxx) = self.compile(target, &cc, &[])?;
        if objects.is_empty() && cc.link.is_empty() {
            return Err(target.error(format!("{} has no source to compile", target.label)));
        }
        let path = Self::output_path(target, target.label.name())?;
        self.link(target, &path, Vec::new(), objects, &cc, cxx)?;
        let program = Place::Built(path.clone());
        let mut module = self.module(target, &["deps", "data", "resources"], [program.clone()]);
        self.set_process(target, &mut module.module, &path)?;
        self.modules.push(module);
        Ok(Provided {
            files: vec![program.clone()],
            executable: Some(program),
            ..Provided::default()
        })
    }

    /// What all libraries in `attrs` offer together.
    fn cc_deps(&self, target: &Target, attrs: &[&str]) -> Result<CcInfo, BuildFileError> {
        if target.flag("linkstatic") {
            let message = "linkstatic is not supported: each library is a shared object, and so a layer of its own";
            return Err(target.error(message));
        }
        let mut all = CcInfo::default();
        for include in target.strs("includes") {
            let folder = if include == "." { "" } else { include };
            all.includes.push(join(target.label.package(), folder));
        }
        for dep in target.deps_of(attrs) {
            let label = match dep {
                Dep::Target(label) if self.targets[label].rule.kind == RuleKind::CcLibrary => label,
                Dep::Target(label) => {
                    let rule = self.targets[label].rule.name;
                    let message =
                        format!("{label} is a {rule}, not a library to link (is `data` meant?)");
                    return Err(target.error_at_label(label, message));
                }
                Dep::File(path) | Dep::Output(_, path) => {
                    return Err(target.error(format!("`{path}` in deps is a file, not a library")));
                }
            };
            let cc = &self.provided[label].cc;
            all.headers.extend(cc.headers.iter().cloned());
            all.shared.extend(cc.shared.iter().cloned());
            append(&mut all.includes, &cc.includes);
            append(&mut all.flags, &cc.flags);
            append(&mut all.link, &cc.link);
        }
        Ok(all)
    }

    /// One action for each source. Gives the objects, and whether any source is C++.
    fn compile(
        &mut self,
        target: &Target,
        cc: &CcInfo,
        public: &[Place],
    ) -> Result<(Vec<String>, bool), BuildFileError> {
        let files = self.files_of(target, &["srcs", "headers"]);
        let (headers, sources): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|place| is(place.path(), &HEADERS));
        let visible: BTreeSet<_> =
            cc.headers.iter().chain(&headers).chain(public).cloned().collect();
        let flags = self.compile_flags(target, cc)?;
        let mut objects = Vec::new();
        let mut any_cxx = false;
        for source in sources {
            let path = source.path();
            let cxx = is(path, &CXX_SOURCES);
            if !cxx && !is(path, &C_SOURCES) {
                let message = format!("`{path}` is no C or C++ source or header");
                return Err(target.error_at(path, message));
            }
            any_cxx |= cxx;
            let object = object_path(target, path);
            let mut args = flags.clone();
            args.push(format!("-frandom-seed={object}"));
            args.extend(["-c".into(), path.to_owned(), "-o".into(), object.clone()]);
            let mut inputs = visible.clone();
            inputs.insert(source);
            let action = Action {
                label: target.label.clone(),
                verb: "compile",
                inputs: inputs.into_iter().collect(),
                also: Vec::new(),
                outputs: vec![ActionOutput { path: object.clone(), executable: Some(false) }],
                run: command(if cxx { Tool::Cxx } else { Tool::Cc }, args),
            };
            self.push_action(target, action)?;
            objects.push(object);
        }
        Ok((objects, any_cxx))
    }

    fn compile_flags(&self, target: &Target, cc: &CcInfo) -> Result<Vec<String>, BuildFileError> {
        let mut flags: Vec<String> = vec!["-O2".into(), "-fPIC".into()];
        flags.extend(REPRODUCIBLE.map(str::to_owned));
        flags.push("-I.".into());
        flags.extend(cc.includes.iter().map(|folder| format!("-I{folder}")));
        flags.extend(cc.flags.iter().cloned());
        flags.extend(defines(target, &["defines", "local_defines"]));
        for attr in ["exported_preprocessor_flags", "preprocessor_flags", "copts", "compiler_flags"]
        {
            flags.extend(self.expand_all(target, target.strs(attr))?);
        }
        Ok(flags)
    }

    fn link(
        &mut self,
        target: &Target,
        path: &str,
        own: Vec<String>,
        objects: Vec<String>,
        cc: &CcInfo,
        cxx: bool,
    ) -> Result<(), BuildFileError> {
        check_names(target, path, cc)?;
        let mut args = own;
        args.extend(["-o".into(), path.to_owned()]);
        args.extend(objects.iter().cloned());
        args.extend(["-Wl,--build-id=none".into(), "-Wl,--enable-new-dtags".into()]);
        let folders: BTreeSet<_> = cc.link.iter().map(|library| folder_of(library)).collect();
        for folder in folders {
            args.push(format!("-Wl,-rpath,{}", origin(folder_of(path), folder)));
        }
        // The linker looks for the libraries that libraries need. One folder with all of them, rather than the folders of each:
        // it would try every folder for every library.
        let mut also = Vec::new();
        for library in cc.shared.iter().filter(|library| !cc.link.contains(library)) {
            also.push((format!("{BELOW}/{}", name_of(library)), Place::Built(library.clone())));
        }
        if !also.is_empty() {
            args.push(format!("-Wl,-rpath-link,{BELOW}"));
        }
        // A library may be needed for what its constructors do, whatever this distribution's default is.
        args.push("-Wl,--no-as-needed".into());
        args.extend(cc.link.iter().map(|library| format!("./{library}")));
        for attr in ["linkopts", "linker_flags"] {
            args.extend(self.expand_all(target, target.strs(attr))?);
        }
        let inputs: BTreeSet<_> =
            objects.into_iter().chain(cc.shared.iter().cloned()).map(Place::Built).collect();
        let action = Action {
            label: target.label.clone(),
            verb: "link",
            inputs: inputs.into_iter().collect(),
            also,
            outputs: vec![ActionOutput { path: path.to_owned(), executable: Some(true) }],
            run: command(if cxx { Tool::Cxx } else { Tool::Cc }, args),
        };
        self.push_action(target, action)
    }
}

/// Where a link action has the libraries that are needed by those it links.
const BELOW: &str = "_below";

/// The loader of the machine knows a shared object by its file name: of two with one name in a program, it would load one.
fn check_names(target: &Target, path: &str, cc: &CcInfo) -> Result<(), BuildFileError> {
    let mut by_name = BTreeMap::new();
    for library in cc.shared.iter().map(String::as_str).chain([path]) {
        if let Some(other) = by_name.insert(name_of(library), library) {
            let label = &target.label;
            return Err(target.error(format!(
                "{label} needs both `{other}` and `{library}`, and a program can load only one of a name: give one another `soname`"
            )));
        }
    }
    Ok(())
}

fn command(tool: Tool, args: Vec<String>) -> Run {
    let env = BTreeMap::from([("SOURCE_DATE_EPOCH".to_owned(), "0".to_owned())]);
    Run::Command { tool, args, env }
}

fn append(to: &mut Vec<String>, from: &[String]) {
    for item in from {
        if !to.contains(item) {
            to.push(item.clone());
        }
    }
}

fn defines(target: &Target, attrs: &[&str]) -> Vec<String> {
    let defines = attrs.iter().flat_map(|attr| target.strs(attr));
    defines.map(|define| format!("-D{define}")).collect()
}

/// `lib/d/_objs/D/lib/d/D.c.o`: unique among sources of one name in several folders.
fn object_path(target: &Target, source: &str) -> String {
    let package = target.label.package();
    let inside = source.strip_prefix(package).map(|rest| rest.trim_start_matches('/'));
    let inside = inside.unwrap_or(source);
    join(package, &format!("_objs/{}/{inside}.o", target.label.name()))
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The folder `to` as the loader finds it from a file in the folder `from`.
fn origin(from: &str, to: &str) -> String {
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let (from, to) = (parts(from), parts(to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_owned(), from.len() - common);
    let path: Vec<_> = std::iter::once("$ORIGIN".to_owned())
        .chain(up)
        .chain(to[common..].iter().cloned())
        .collect();
    path.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_paths_are_relative() {
        assert_eq!(origin("app", "lib/b"), "$ORIGIN/../lib/b");
        assert_eq!(origin("lib/b", "lib/d"), "$ORIGIN/../d");
        assert_eq!(origin("lib", "lib"), "$ORIGIN");
        assert_eq!(origin("lib", "lib/d"), "$ORIGIN/d");
        assert_eq!(origin("a/b", ""), "$ORIGIN/../..");
        assert_eq!(origin("", "lib"), "$ORIGIN/lib");
    }
}

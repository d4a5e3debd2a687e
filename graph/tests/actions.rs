//! The actions that targets become: their arguments, inputs and outputs.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod memory;

use std::fmt::Write;
use std::path::PathBuf;

use insta::assert_snapshot;
use memory::Memory;
use mica_graph::actions::{Analysis, Run};

/// Actions as text, one paragraph each.
fn actions(analysis: &Analysis) -> String {
    let mut text = String::new();
    for action in &analysis.actions {
        writeln!(text, "{} {}", action.verb, action.label).unwrap();
        match &action.run {
            Run::Command { tool, args, .. } => writeln!(text, "  {tool:?} {}", args.join(" ")),
            Run::Copy => writeln!(text, "  copy"),
            Run::Write(content) => write!(text, "{content}"),
        }
        .unwrap();
        let inputs = &action.inputs;
        writeln!(text, "  from {inputs:?}").unwrap();
        let outputs: Vec<_> = action.outputs.iter().map(|output| output.path.clone()).collect();
        writeln!(text, "  make {}", outputs.join(" ")).unwrap();
    }
    text
}

/// The stack of the target as text, topmost first.
fn stack(analysis: Analysis) -> String {
    let target = analysis.target.clone();
    let graph = analysis.into_graph(|place| PathBuf::from(format!("{place:?}"))).unwrap();
    let plan = graph.plan(&target).unwrap();
    let mut text = String::new();
    for module in &plan.modules {
        let paths: Vec<_> = module.outputs.iter().map(|output| output.path.as_str()).collect();
        let root = if module.root { " (root)" } else { "" };
        writeln!(text, "{}{root}: {paths:?}", module.label).unwrap();
    }
    writeln!(text, "{:?}", plan.target.process).unwrap();
    text
}

#[test]
fn c() {
    let workspace = Memory::new([
        (
            "app/BUILD",
            "cc_binary(name = 'A', srcs = ['A.c', 'A.h'], deps = ['//lib/b:B'], data = ['A.txt'], args = ['$(location A.txt)'], env = {'K': '$$1'})\n",
        ),
        ("app/A.c", ""),
        ("app/A.h", ""),
        ("app/A.txt", ""),
        (
            "lib/b/BUILD",
            "cc_library(name = 'B', srcs = ['B.cc'], hdrs = ['b.h'], deps = ['//lib/d:D', ':only_headers'], defines = ['B=1'], copts = ['-Wall'])\n\
             cc_library(name = 'only_headers', hdrs = ['o.h'], includes = ['.'])\n",
        ),
        ("lib/b/B.cc", ""),
        ("lib/b/b.h", ""),
        ("lib/b/o.h", ""),
        (
            "lib/d/BUCK",
            "cxx_library(name = 'D', srcs = [':gen'], soname = 'libdee.so.1', linker_flags = ['-lm'])\ngenrule(name = 'gen', out = 'D.c', cmd = 'echo > $OUT')\n",
        ),
    ]);
    let analysis = workspace.analyze("//app:A").unwrap();
    assert_snapshot!(actions(&analysis), @r#"
    generate //lib/d:gen
      Bash --noprofile --norc -e -o pipefail -c echo > $OUT
      from []
      make lib/d/D.c
    compile //lib/d:D
      Cc -O2 -fPIC -Wno-builtin-macro-redefined -D__TIMESTAMP__="redacted" -I. -frandom-seed=lib/d/_objs/D/D.c.o -c lib/d/D.c -o lib/d/_objs/D/D.c.o
      from [Built("lib/d/D.c")]
      make lib/d/_objs/D/D.c.o
    link //lib/d:D
      Cc -shared -Wl,-soname,libdee.so.1 -Wl,-z,defs -o lib/d/libdee.so.1 lib/d/_objs/D/D.c.o -Wl,--build-id=none -Wl,--enable-new-dtags -Wl,--no-as-needed -lm
      from [Built("lib/d/_objs/D/D.c.o")]
      make lib/d/libdee.so.1
    compile //lib/b:B
      Cxx -O2 -fPIC -Wno-builtin-macro-redefined -D__TIMESTAMP__="redacted" -I. -Ilib/b -DB=1 -Wall -frandom-seed=lib/b/_objs/B/B.cc.o -c lib/b/B.cc -o lib/b/_objs/B/B.cc.o
      from [Source("lib/b/B.cc"), Source("lib/b/b.h"), Source("lib/b/o.h")]
      make lib/b/_objs/B/B.cc.o
    link //lib/b:B
      Cxx -shared -Wl,-soname,libB.so -Wl,-z,defs -o lib/b/libB.so lib/b/_objs/B/B.cc.o -Wl,--build-id=none -Wl,--enable-new-dtags -Wl,-rpath,$ORIGIN/../d -Wl,--no-as-needed ./lib/d/libdee.so.1
      from [Built("lib/b/_objs/B/B.cc.o"), Built("lib/d/libdee.so.1")]
      make lib/b/libB.so
    compile //app:A
      Cc -O2 -fPIC -Wno-builtin-macro-redefined -D__TIMESTAMP__="redacted" -I. -Ilib/b -DB=1 -frandom-seed=app/_objs/A/A.c.o -c app/A.c -o app/_objs/A/A.c.o
      from [Source("app/A.c"), Source("app/A.h"), Source("lib/b/b.h"), Source("lib/b/o.h")]
      make app/_objs/A/A.c.o
    link //app:A
      Cc -o app/A app/_objs/A/A.c.o -Wl,--build-id=none -Wl,--enable-new-dtags -Wl,-rpath,$ORIGIN/../lib/b -Wl,-rpath-link,_below -Wl,--no-as-needed ./lib/b/libB.so
      from [Built("app/_objs/A/A.c.o"), Built("lib/b/libB.so"), Built("lib/d/libdee.so.1")]
      make app/A
    "#);
    assert_snapshot!(stack(analysis), @r#"
    //app:A: ["app/A", "app/A.txt"]
    //lib/b:B: ["lib/b/libB.so"]
    //lib/b:only_headers: []
    //lib/d:D: ["lib/d/libdee.so.1"]
    Process { entrypoint: ["app/A"], cmd: ["app/A.txt"], env: {"K": "$1"}, workdir: None, user: None }
    "#);
}

#[test]
fn python_shell_and_files() {
    let workspace = Memory::new([
        (
            "py/BUILD",
            "python_binary(name = 'A', srcs = ['A.py'], deps = [':B'], data = [':files', ':gen'])\n\
             python_library(name = 'B', srcs = ['B.py'], deps = [':D'], imports = ['sub'])\n\
             cxx_library(name = 'D', srcs = ['D.cxx'])\n\
             filegroup(name = 'files', srcs = ['x.txt', '//sh:run'])\n\
             genrule(name = 'gen', srcs = ['x.txt', ':B'], outs = ['one', 'two'], tools = ['//sh:run'], cmd = '$(location //sh:run) $(SRCS) $(location x.txt) > $(@D)/one; cp $(location one) $(RULEDIR)/two; echo $$HOME $(OUTS)')\n",
        ),
        ("py/A.py", ""),
        ("py/B.py", ""),
        ("py/D.cxx", ""),
        ("py/x.txt", ""),
        ("sh/BUILD", "sh_binary(name = 'run', srcs = ['run.sh'], data = ['it\\'s.txt'])\n"),
        ("sh/run.sh", ""),
        ("sh/it's.txt", ""),
    ]);
    let analysis = workspace.analyze("//py:A").unwrap();
    assert_snapshot!(actions(&analysis), @r#"
    compile //py:D
      Cxx -O2 -fPIC -Wno-builtin-macro-redefined -D__TIMESTAMP__="redacted" -I. -frandom-seed=py/_objs/D/D.cxx.o -c py/D.cxx -o py/_objs/D/D.cxx.o
      from [Source("py/D.cxx")]
      make py/_objs/D/D.cxx.o
    link //py:D
      Cxx -shared -Wl,-soname,libD.so -Wl,-z,defs -o py/libD.so py/_objs/D/D.cxx.o -Wl,--build-id=none -Wl,--enable-new-dtags -Wl,--no-as-needed
      from [Built("py/_objs/D/D.cxx.o")]
      make py/libD.so
    copy //sh:run
      copy
      from [Source("sh/run.sh")]
      make sh/run
    generate //py:gen
      Bash --noprofile --norc -e -o pipefail -c sh/run py/x.txt py/B.py py/x.txt > py/one; cp py/one py/two; echo $HOME py/one py/two
      from [Source("py/B.py"), Source("py/x.txt"), Source("sh/it's.txt"), Source("sh/run.sh"), Built("sh/run")]
      make py/one py/two
    write //py:A
    #!/usr/bin/env python3
    import os
    import runpy
    import sys

    root = os.path.dirname(os.path.abspath(__file__))
    for _ in range(1):
        root = os.path.dirname(root)
    imports = [os.path.join(root, folder) for folder in ["py/sub"]]
    main = os.path.join(root, "py/A.py")
    sys.argv[0] = main
    sys.path[0:1] = [os.path.dirname(main), root] + imports
    runpy.run_path(main, run_name="__main__")
      from []
      make py/A
    "#);
    assert_snapshot!(stack(analysis), @r#"
    //py:A: ["py/A", "py/A.py"]
    //py:B: ["py/B.py"]
    //py:D: ["py/libD.so"]
    //py:files: ["py/x.txt"]
    //py:gen: ["py/one", "py/two"]
    //sh:run: ["sh/run", "sh/run.sh", "sh/it's.txt"]
    Process { entrypoint: ["py/A"], cmd: [], env: {}, workdir: None, user: None }
    "#);
}

#[test]
fn bases_and_packages() {
    let workspace = Memory::new([
        (
            "BUILD",
            "mica_base(name = 'debian', dir = '/srv/debian')\n\
             mica_tree(name = 'site', dir = 'site', at = 'usr/lib/python3')\n\
             mica_tree(name = 'here', dir = 'site', deps = [':debian'])\n\
             sh_binary(name = 'run', srcs = ['run.sh'], env = {'A': '1', 'B': '2'}, args = ['x'])\n\
             mica_package(name = 'pkg', binary = ':run', deps = [':here', ':site'], env = {'B': '3'}, labels = {'k': 'v'}, memory = 64 << 20, pids = 10, cpus = 0.5, user = '1000', workdir = '/tmp')\n",
        ),
        ("run.sh", ""),
        ("site/x.py", ""),
    ]);
    let analysis = workspace.analyze("//:pkg").unwrap();
    let module = &analysis.modules.last().unwrap().module;
    assert_eq!(module.limits.memory, Some(64 << 20));
    assert_eq!((module.limits.pids, module.limits.cpus), (Some(10), Some(0.5)));
    assert_eq!(module.labels["k"], "v");
    assert_snapshot!(stack(analysis), @r#"
    //:pkg: []
    //:here: ["here"]
    //:debian (root): [""]
    //:run: ["run", "run.sh"]
    //:site: ["usr/lib/python3"]
    Process { entrypoint: ["./run"], cmd: ["x"], env: {"A": "1", "B": "3"}, workdir: Some("/tmp"), user: Some("1000") }
    "#);
}

#[test]
fn a_package_says_how_its_jobs_live() {
    let analyze = |attributes: &str| {
        let build = format!(
            "genrule(name = 'g', outs = ['o'], cmd = 'echo >$@')\n\
             mica_package(name = 'pkg', binary = ':g', {attributes})"
        );
        let workspace = Memory::new([("BUILD", build.as_str())]);
        let analysis = workspace.analyze("//:pkg").map_err(|error| error.to_string())?;
        Ok::<_, String>(analysis.modules.last().unwrap().module.service.clone())
    };
    let service = analyze(
        "ports = [\"8080\", \"53/udp\"], health_cmd = \"true\", health_interval = 0.5, \
         health_retries = 2, stop_signal = \"INT\", stop_timeout = 3",
    )
    .unwrap();
    let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["53/udp", "8080/tcp"]);
    let health = service.health.unwrap();
    assert_eq!((health.interval_ms, health.retries, health.timeout_ms), (Some(500), Some(2), None));
    assert_eq!((service.stop_signal.as_deref(), service.stop_timeout), (Some("INT"), Some(3)));
    for (wrong, says) in [
        ("ports = [\"0\"]", "not a port"),
        ("health_interval = 1", "without `health_cmd`"),
        ("stop_timeout = 0", "positive"),
    ] {
        assert!(analyze(wrong).unwrap_err().contains(says), "{wrong}");
    }
}

//! The order of a stack, compared with a slow and obvious one.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mica_graph::build::BuildGraphError;
use mica_graph::{BuildGraph, Label, Module, Output};
use proptest::prelude::*;

fn label(name: &str) -> Label {
    format!("//{name}:{name}").parse().unwrap()
}

fn module(name: &str, deps: &[&str]) -> Module {
    let output = Output { path: format!("{name}/{name}"), source: name.into() };
    Module {
        outputs: vec![output],
        deps: deps.iter().map(|dep| label(dep)).collect(),
        ..Module::new(label(name))
    }
}

fn order(graph: &BuildGraph, target: &str) -> Vec<String> {
    let plan = graph.plan(&label(target)).unwrap();
    plan.layers().map(|module| module.label.name().to_owned()).collect()
}

#[test]
fn the_example_of_the_design() {
    let graph = BuildGraph::new([
        module("F", &[]),
        module("A", &["B", "C"]),
        module("unrelated", &["F"]),
        module("B", &["D"]),
        module("D", &["F"]),
        module("E", &["F"]),
        module("C", &["E"]),
    ])
    .unwrap();
    assert_eq!(order(&graph, "A"), ["A", "B", "C", "D", "E", "F"]);
    assert_eq!(order(&graph, "C"), ["C", "E", "F"]);
    assert_eq!(order(&graph, "F"), ["F"]);
}

#[test]
fn the_way_to_a_dependency() {
    let modules = [
        module("a", &["b", "c"]),
        module("b", &["d"]),
        module("c", &["e"]),
        module("d", &["e"]),
        module("e", &[]),
    ];
    let graph = BuildGraph::new(modules).unwrap();
    let path = |from: &str, to: &str| -> Option<Vec<&str>> {
        let path = graph.path(&label(from), &label(to)).unwrap()?;
        Some(path.into_iter().map(Label::name).collect())
    };
    assert_eq!(path("a", "e").unwrap(), ["a", "c", "e"], "the shortest");
    assert_eq!(path("a", "d").unwrap(), ["a", "b", "d"]);
    assert_eq!(path("a", "a").unwrap(), ["a"]);
    assert_eq!(path("c", "d"), None);
    assert!(graph.path(&label("a"), &label("f")).is_err());
}

#[test]
fn modules_without_outputs_make_no_layer() {
    let mut middle = module("b", &["c"]);
    middle.outputs.clear();
    let graph = BuildGraph::new([module("a", &["b"]), middle, module("c", &[])]).unwrap();
    assert_eq!(order(&graph, "a"), ["a", "c"]);
    assert_eq!(graph.plan(&label("a")).unwrap().modules.len(), 3);
}

#[test]
fn shared_paths_are_named() {
    let mut a = module("a", &["b"]);
    let mut b = module("b", &[]);
    for (module, source) in [(&mut a, "x"), (&mut b, "y")] {
        let both = Output { path: "same".into(), source: source.into() };
        let equal = Output { path: "equal".into(), source: "z".into() };
        module.outputs.extend([both, equal]);
    }
    let graph = BuildGraph::new([a, b]).unwrap();
    let plan = graph.plan(&label("a")).unwrap();
    let shared = plan.shared_paths();
    assert_eq!(shared.len(), 1);
    assert_eq!(shared[0].path, "same");
    assert_eq!(shared[0].modules, [&label("a"), &label("b")]);
}

#[test]
fn errors() {
    let error = |modules: Vec<Module>| BuildGraph::new(modules).unwrap_err().to_string();
    insta::assert_snapshot!(
        error(vec![module("a", &["b"]), module("b", &["c"]), module("c", &["b"])]),
        @"dependency cycle: //b:b -> //c:c -> //b:b"
    );
    insta::assert_snapshot!(
        error(vec![module("a", &["a"])]),
        @"dependency cycle: //a:a -> //a:a"
    );
    insta::assert_snapshot!(
        error(vec![module("a", &["lib"]), module("libs", &[])]),
        @"//a:a depends on //lib:lib, which does not exist (did you mean `//libs:libs`?)"
    );
    insta::assert_snapshot!(
        error(vec![module("a", &[]), module("a", &[])]),
        @"module //a:a is listed twice"
    );
    let with_path = |path: &str| {
        let mut module = module("a", &[]);
        module.outputs.push(Output { path: path.into(), source: "x".into() });
        error(vec![module])
    };
    insta::assert_snapshot!(
        with_path("/etc/passwd"),
        @"//a:a has the output `/etc/passwd`, which is no place in the tree: it is absolute"
    );
    insta::assert_snapshot!(
        with_path("../x"),
        @"//a:a has the output `../x`, which is no place in the tree: a part of it is empty, `.` or `..`"
    );
    insta::assert_snapshot!(with_path("a/a"), @"//a:a puts two different files at `a/a`");
    let graph = BuildGraph::new([module("app", &[])]).unwrap();
    insta::assert_snapshot!(
        graph.plan(&label("ap")).unwrap_err(),
        @"there is no target //ap:ap (did you mean `//app:app`?)"
    );
}

#[test]
fn a_cycle_through_a_hundred_thousand_modules_is_found() {
    let names: Vec<_> = (0..100_000).map(|n| format!("m{n:06}")).collect();
    let next = |n: usize| names[(n + 1) % names.len()].as_str();
    let modules = names.iter().enumerate().map(|(n, name)| module(name, &[next(n)]));
    let Err(BuildGraphError::Cycle(cycle)) = BuildGraph::new(modules) else {
        panic!("a cycle was not found")
    };
    assert_eq!(cycle.len(), names.len() + 1);
}

#[test]
fn json() {
    let text = r#"{"modules": [
        {"label": "//app:A", "rule": "cc_binary", "deps": ["//lib:B"], "entrypoint": ["app/A"], "env": {"K": "v"},
         "outputs": [{"path": "app/A", "source": "out/A"}], "limits": {"memory": 1048576}},
        {"label": "//lib:B", "outputs": [{"path": "", "source": "/srv/base"}], "root": true}
    ]}"#;
    let graph = BuildGraph::from_json(text, Path::new("/ws")).unwrap();
    let top = graph.module(&"//app:A".parse().unwrap()).unwrap();
    assert_eq!(top.outputs[0].source, Path::new("/ws/out/A"));
    assert_eq!(top.process.entrypoint, ["app/A"]);
    assert_eq!(top.limits.memory, Some(1 << 20));
    let base = graph.module(&"//lib:B".parse().unwrap()).unwrap();
    assert!(base.root);
    assert_eq!(base.outputs[0].source, Path::new("/srv/base"));

    let again = BuildGraph::from_json(&graph.to_json().unwrap(), Path::new("/elsewhere")).unwrap();
    assert_eq!(again.to_json().unwrap(), graph.to_json().unwrap());
}

#[test]
fn json_that_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"modules": [], "extra": 1}"#,
        r#"{"modules": [{"label": "//a:a", "dep": []}]}"#,
        r#"{"modules": [{"label": "a:a"}]}"#,
        r#"{"modules": [{"label": "//a:a", "outputs": [{"path": "x"}]}]}"#,
        r#"{"modules": [{"label": "//a:a", "outputs": [{"path": "x", "source": "y", "mode": 1}]}]}"#,
        r#"{"modules": [{"label": "//a:a", "limits": {"memory": -1}}]}"#,
        r#"{"modules": [{"label": "//a:a", "limits": {"memroy": 1}}]}"#,
    ] {
        let error = BuildGraph::from_json(text, Path::new("")).unwrap_err();
        assert!(matches!(error, BuildGraphError::Json(_)), "{text}: {error}");
    }
    let error =
        BuildGraph::from_json(r#"{"schema": 2, "modules": []}"#, Path::new("")).unwrap_err();
    insta::assert_snapshot!(error, @"the build graph has schema 2; this mica reads schema 1");
}

/// Edges from lower to higher numbers only, so that there is no cycle; names in any order.
fn graphs() -> impl Strategy<Value = BTreeMap<String, Vec<String>>> {
    (1_usize..14).prop_flat_map(|size| {
        let names = Just((0..size).map(|n| format!("m{n:02}")).collect::<Vec<_>>()).prop_shuffle();
        let edges =
            prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..40);
        (names, edges).prop_map(|(names, edges)| {
            let mut graph: BTreeMap<_, Vec<_>> =
                names.iter().map(|name| (name.clone(), Vec::new())).collect();
            for (a, b) in edges {
                let (a, b) = (a.index(names.len()), b.index(names.len()));
                if a < b {
                    graph.get_mut(&names[a]).unwrap().push(names[b].clone());
                }
            }
            graph
        })
    })
}

/// The slow and obvious order: again and again the smallest module that no other one still to come depends on.
fn reference(graph: &BTreeMap<String, Vec<String>>, target: &str) -> Vec<String> {
    let mut left = BTreeSet::from([target.to_owned()]);
    while let Some(dep) = left.iter().flat_map(|name| &graph[name]).find(|dep| !left.contains(*dep))
    {
        left.insert(dep.clone());
    }
    let mut order = Vec::new();
    while !left.is_empty() {
        let free = |name: &&String| left.iter().all(|other| !graph[other].contains(name));
        let next = left.iter().find(free).unwrap().clone();
        left.remove(&next);
        order.push(next);
    }
    order
}

fn build(graph: &BTreeMap<String, Vec<String>>, reversed: bool) -> BuildGraph {
    let mut modules: Vec<_> = graph
        .iter()
        .map(|(name, deps)| module(name, &deps.iter().map(String::as_str).collect::<Vec<_>>()))
        .collect();
    if reversed {
        modules.reverse();
        modules.iter_mut().for_each(|module| module.deps.reverse());
    }
    BuildGraph::new(modules).unwrap()
}

proptest! {
    #[test]
    fn the_order_is_the_obvious_one(graph in graphs()) {
        let built = build(&graph, false);
        for target in graph.keys() {
            let got = order(&built, target);
            prop_assert_eq!(&got, &reference(&graph, target));
            let place = |name: &String| got.iter().position(|other| other == name).unwrap();
            for name in &got {
                for dep in &graph[name] {
                    prop_assert!(place(name) < place(dep));
                }
            }
        }
    }

    #[test]
    fn neither_the_input_s_order_nor_a_new_module_moves_the_others(graph in graphs(), at in any::<prop::sample::Index>()) {
        let target = graph.keys().next().unwrap();
        let before = order(&build(&graph, false), target);
        prop_assert_eq!(&order(&build(&graph, true), target), &before);
        // A new leaf below any module, and one that nobody needs.
        let mut more = graph.clone();
        let parent = graph.keys().nth(at.index(graph.len())).unwrap();
        more.insert("m05x".into(), Vec::new());
        more.get_mut(parent).unwrap().push("m05x".into());
        more.insert("alone".into(), graph.keys().cloned().collect());
        let mut after = order(&build(&more, false), target);
        after.retain(|name| name != "m05x");
        prop_assert_eq!(after, before);
    }
}

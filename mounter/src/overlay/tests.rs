use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// A layer in memory: node 0 is the root.
#[derive(Debug, Default, Clone)]
struct Toy {
    dirs: Vec<BTreeMap<Vec<u8>, (usize, Class)>>,
    marks: BTreeMap<usize, Marks>,
}

struct Toys(Vec<Toy>);

impl Layers for Toys {
    type Node = usize;
    type Error = Infallible;

    fn count(&self) -> usize {
        self.0.len()
    }
    fn root(&self, _: usize) -> Result<usize, Infallible> {
        Ok(0)
    }
    fn list(&self, layer: usize, dir: usize) -> Result<Vec<Entry<usize>>, Infallible> {
        Ok(self.0[layer].dirs[dir]
            .iter()
            .map(|(name, &(node, class))| Entry { name: name.as_slice().into(), node, class })
            .collect())
    }
    fn get(
        &self,
        layer: usize,
        dir: usize,
        name: &[u8],
    ) -> Result<Option<(usize, Class)>, Infallible> {
        Ok(self.0[layer].dirs[dir].get(name).copied())
    }
    fn marks(&self, layer: usize, dir: usize) -> Result<Marks, Infallible> {
        Ok(self.0[layer].marks.get(&dir).cloned().unwrap_or_default())
    }
}

impl Toy {
    fn new() -> Toy {
        Toy { dirs: vec![BTreeMap::new()], ..Toy::default() }
    }
    /// `path/` is a directory, `path` a file, `!path` a whiteout, `path/@` marks an opaque directory.
    fn of(paths: &[&str]) -> Toy {
        let mut toy = Toy::new();
        for path in paths {
            toy.add(path);
        }
        toy
    }
    fn add(&mut self, path: &str) {
        let (path, class) = match path.strip_prefix('!') {
            Some(path) => (path, Class::Whiteout),
            None => (path, Class::Other),
        };
        let mut dir = 0;
        let mut rest = path;
        while let Some((first, more)) = rest.split_once('/') {
            dir = self.dir(dir, first);
            rest = more;
        }
        match rest {
            "" => {}
            "@" => self.marks.entry(dir).or_default().opaque = true,
            name => {
                let node = 1000 + self.dirs.iter().map(BTreeMap::len).sum::<usize>();
                self.dirs[dir].entry(name.into()).or_insert((node, class));
            }
        }
    }
    fn dir(&mut self, parent: usize, name: &str) -> usize {
        match self.dirs[parent].get(name.as_bytes()) {
            Some(&(node, Class::Directory)) => node,
            _ => {
                self.dirs.push(BTreeMap::new());
                let node = self.dirs.len() - 1;
                self.dirs[parent].insert(name.into(), (node, Class::Directory));
                node
            }
        }
    }
}

/// The visible tree as `path -> layer` (directories: all their layers), by `find` alone.
fn by_find(toys: &Toys, names: &[&str]) -> BTreeMap<String, Vec<usize>> {
    fn walk(
        toys: &Toys,
        stack: &[Part<usize>],
        at: &str,
        names: &[&str],
        out: &mut BTreeMap<String, Vec<usize>>,
    ) {
        for name in names {
            let path = format!("{at}/{name}");
            match find(toys, stack, name.as_bytes()).unwrap() {
                Found::Nothing => {}
                Found::Single(part) => drop(out.insert(path, vec![part.layer])),
                Found::Directory(parts) => {
                    out.insert(format!("{path}/"), parts.iter().map(|p| p.layer).collect());
                    walk(toys, &parts, &path, names, out);
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(toys, &root(toys).unwrap(), "", names, &mut out);
    out
}

/// The same by listing every directory once.
fn by_merge(toys: &Toys) -> BTreeMap<String, Vec<usize>> {
    fn walk(toys: &Toys, stack: &[Part<usize>], at: &str, out: &mut BTreeMap<String, Vec<usize>>) {
        let merged = Merged::new(toys, stack).unwrap();
        for item in merged.items() {
            let path = format!("{at}/{}", String::from_utf8_lossy(&item.name));
            assert!(merged.get(&item.name).is_some());
            if item.is_dir {
                let parts = resolve(toys, stack, &item.name, &item.candidates()).unwrap();
                out.insert(format!("{path}/"), parts.iter().map(|p| p.layer).collect());
                walk(toys, &parts, &path, out);
            } else {
                out.insert(path, vec![item.top.layer]);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(toys, &root(toys).unwrap(), "", &mut out);
    out
}

fn seen(layers: &[&[&str]]) -> Vec<String> {
    let toys = Toys(layers.iter().map(|paths| Toy::of(paths)).collect());
    by_merge(&toys).into_iter().map(|(path, layers)| format!("{path} {layers:?}")).collect()
}

#[test]
fn the_topmost_layer_wins_and_directories_merge() {
    assert_eq!(seen(&[&["d/a"], &["d/a", "d/b"]]), ["/d/ [0, 1]", "/d/a [0]", "/d/b [1]"]);
}

#[test]
fn whiteouts_of_both_kinds_hide_what_is_below_them() {
    assert_eq!(seen(&[&["!a"], &["a", "b"]]), ["/b [1]"]);
    assert_eq!(seen(&[&[".wh.a"], &["a", "b"]]), ["/b [1]"]);
    // OCI's does not hide its own layer.
    assert_eq!(seen(&[&[".wh.a", "a"], &["a"]]), ["/a [0]"]);
    // Names that lead out of the directory, or to it, hide nothing.
    assert_eq!(
        seen(&[&["d/.wh..", "d/.wh..."], &["d/a", "b"]]),
        ["/b [1]", "/d/ [0, 1]", "/d/a [1]"]
    );
    assert_eq!(seen(&[&[".wh.d", "d/x"], &["d/y"]]), ["/d/ [0]", "/d/x [0]"]);
}

#[test]
fn opaque_directories_of_both_kinds_cut() {
    assert_eq!(seen(&[&["d/@", "d/x"], &["d/y"]]), ["/d/ [0]", "/d/x [0]"]);
    assert_eq!(seen(&[&["d/.wh..wh..opq", "d/x"], &["d/y"]]), ["/d/ [0]", "/d/x [0]"]);
    assert_eq!(seen(&[&[".wh..wh..opq", "x"], &["y"]]), ["/x [0]"]);
}

#[test]
fn a_file_between_two_directories_ends_the_merge() {
    assert_eq!(seen(&[&["d/x"], &["d"], &["d/y"]]), ["/d/ [0]", "/d/x [0]"]);
    assert_eq!(seen(&[&["d"], &["d/x"]]), ["/d [0]"]);
}

#[test]
fn a_redirect_leads_to_the_old_place() {
    let mut top = Toy::of(&["new/x", "!old"]);
    let new = top.dirs[0][b"new".as_slice()].0;
    top.marks.insert(new, Marks { opaque: false, redirect: Some(b"/old".as_slice().into()) });
    let toys = Toys(vec![top, Toy::of(&["old/y"])]);
    let tree = by_merge(&toys);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["/new/", "/new/x", "/new/y"]);
    assert_eq!(tree, by_find(&toys, &["new", "old", "x", "y"]));
}

fn paths() -> impl Strategy<Value = Vec<String>> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let leaf = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "a/",
        "b/",
        "c/",
        "!a",
        "!b",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "@",
    ]);
    let path = (prop::collection::vec(name, 0..3), leaf).prop_map(|(dirs, leaf)| {
        let (mark, leaf) = match leaf.strip_prefix('!') {
            Some(leaf) => ("!", leaf),
            None => ("", leaf),
        };
        format!("{mark}{}{leaf}", dirs.iter().map(|d| format!("{d}/")).collect::<String>())
    });
    prop::collection::vec(path, 0..12)
}

proptest! {
    #[test]
    fn listing_agrees_with_asking_every_layer(
        layers in prop::collection::vec(paths(), 1..5),
        redirects in prop::collection::vec((0usize..4, 0usize..6, prop::sample::select(vec!["a", "/b", "/a/b"])), 0..3),
    ) {
        let mut toys: Vec<Toy> = layers
            .iter()
            .map(|paths| Toy::of(&paths.iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        for (layer, dir, to) in redirects {
            let Some(toy) = toys.get_mut(layer) else { continue };
            if dir > 0 && dir < toy.dirs.len() {
                toy.marks.entry(dir).or_default().redirect = Some(to.as_bytes().into());
            }
        }
        let toys = Toys(toys);
        prop_assert_eq!(by_merge(&toys), by_find(&toys, &["a", "b", "c"]));
    }
}

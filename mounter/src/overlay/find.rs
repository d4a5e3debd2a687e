//! The rules for one name, asked of every layer in turn: slow and obvious.

use super::{Class, Found, Layers, OPAQUE_NAME, Part, WHITEOUT_PREFIX, is_reserved};

/// What is seen under `name` in the directory merged from `stack`.
pub(crate) fn find<L: Layers>(
    layers: &L,
    stack: &[Part<L::Node>],
    name: &[u8],
) -> Result<Found<L::Node>, L::Error> {
    if is_reserved(name) {
        return Ok(Found::Nothing);
    }
    let mut want: Box<[u8]> = name.into();
    let mut scan: Vec<Part<L::Node>> = stack.to_vec();
    let mut next = 0;
    let mut parts = Vec::new();
    while let Some(&dir) = scan.get(next) {
        next += 1;
        match layers.get(dir.layer, dir.node, &want)? {
            Some((_, Class::Whiteout)) => break,
            Some((node, Class::Other)) if parts.is_empty() => {
                return Ok(Found::Single(Part { layer: dir.layer, node }));
            }
            Some((_, Class::Other)) => break,
            Some((node, Class::Directory)) => {
                let part = Part { layer: dir.layer, node };
                parts.push(part);
                if part.layer + 1 == layers.count() {
                    break;
                }
                let marks = layers.marks(part.layer, part.node)?;
                if marks.opaque || has_opaque_name(layers, part)? {
                    break;
                }
                match marks.redirect {
                    Some(path) if path.starts_with(b"/") => {
                        (scan, want) = redirected(layers, &path, dir.layer)?;
                        next = 0;
                        continue; // a `.wh.` name here speaks of the old name
                    }
                    Some(name) if !name.is_empty() => want = name,
                    _ => {}
                }
            }
            None => {}
        }
        if next < scan.len() && has_whiteout_name(layers, dir, &want)? {
            break;
        }
    }
    Ok(if parts.is_empty() { Found::Nothing } else { Found::Directory(parts) })
}

/// Where the layers below `layer` hold the absolute `path`: the directories to search, and the name.
#[allow(clippy::type_complexity)]
fn redirected<L: Layers>(
    layers: &L,
    path: &[u8],
    layer: usize,
) -> Result<(Vec<Part<L::Node>>, Box<[u8]>), L::Error> {
    let mut components = path.split(|&b| b == b'/').filter(|c| !c.is_empty());
    let Some(last) = components.next_back() else { return Ok((Vec::new(), Box::default())) };
    let mut stack = Vec::new();
    for below in layer + 1..layers.count() {
        stack.push(Part { layer: below, node: layers.root(below)? });
    }
    stack = cut(layers, stack)?;
    for component in components {
        stack = match find(layers, &stack, component)? {
            Found::Directory(parts) => parts,
            _ => Vec::new(),
        };
    }
    Ok((stack, last.into()))
}

/// The parts down to the first opaque one.
pub(super) fn cut<L: Layers>(
    layers: &L,
    mut parts: Vec<Part<L::Node>>,
) -> Result<Vec<Part<L::Node>>, L::Error> {
    for (index, &part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        if !last && (layers.marks(part.layer, part.node)?.opaque || has_opaque_name(layers, part)?)
        {
            parts.truncate(index + 1);
            break;
        }
    }
    Ok(parts)
}

/// The directory `name` of `stack`, given the candidates that a listing of the stack found for it:
/// the marks of the directories themselves, which a listing doesn't show, are applied here.
pub(crate) fn resolve<L: Layers>(
    layers: &L,
    stack: &[Part<L::Node>],
    name: &[u8],
    candidates: &[Part<L::Node>],
) -> Result<Vec<Part<L::Node>>, L::Error> {
    for &part in candidates {
        // Only here do the layers below know the directory by another name: ask them one by one.
        if part.layer + 1 < layers.count()
            && layers.marks(part.layer, part.node)?.redirect.is_some()
        {
            return Ok(match find(layers, stack, name)? {
                Found::Directory(parts) => parts,
                _ => candidates.to_vec(),
            });
        }
    }
    cut(layers, candidates.to_vec())
}

fn has_opaque_name<L: Layers>(layers: &L, dir: Part<L::Node>) -> Result<bool, L::Error> {
    Ok(layers.get(dir.layer, dir.node, OPAQUE_NAME)?.is_some())
}

fn has_whiteout_name<L: Layers>(
    layers: &L,
    dir: Part<L::Node>,
    name: &[u8],
) -> Result<bool, L::Error> {
    let mut mark = WHITEOUT_PREFIX.to_vec();
    mark.extend_from_slice(name);
    Ok(layers.get(dir.layer, dir.node, &mark)?.is_some())
}

//! Names inside a registry, relative to its root: the only place that knows them.

use mica_graph::{Digest, PackageName};

/// The file that says this is a registry.
pub(crate) const VERSION_FILE: &str = "mica-registry.json";
/// Its content.
pub(crate) const VERSION: &[u8] = b"{\"mica-registry\":1}\n";
/// The list of packages.
pub(crate) const PACKAGES: &str = "packages.json";

pub(crate) fn index(name: &PackageName) -> String {
    format!("packages/{name}/index.json")
}

pub(crate) fn blob(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/blake3/{}/{hex}", &hex[..2])
}

pub(crate) fn layer(inputs: &Digest) -> String {
    format!("layers/{}.json", inputs.hex())
}

pub(crate) fn patches(image: &Digest) -> String {
    format!("patches/{}.json", image.hex())
}

pub(crate) fn signatures(manifest: &Digest) -> String {
    format!("signatures/{}.minisig", manifest.hex())
}

/// What a path in a registry is; `None` if it is nothing that a reader may see. Because every part is parsed into a
/// typed value, and a path is only ever built from those again, no request can name a file outside the registry.
pub(crate) fn parse(path: &str) -> Option<Item> {
    match path.split('/').collect::<Vec<_>>()[..] {
        [VERSION_FILE] => Some(Item::Version),
        [PACKAGES] => Some(Item::Packages),
        ["packages", name, "index.json"] => Some(Item::Index(name.parse().ok()?)),
        ["blobs", "blake3", start, hex] if hex.starts_with(start) && start.len() == 2 => {
            Some(Item::Blob(parse_hex(hex)?))
        }
        ["patches", file] => Some(Item::Patches(parse_hex(file.strip_suffix(".json")?)?)),
        ["layers", file] => Some(Item::Layer(parse_hex(file.strip_suffix(".json")?)?)),
        ["signatures", file] => Some(Item::Signatures(parse_hex(file.strip_suffix(".minisig")?)?)),
        _ => None,
    }
}

/// A digest from its 64 hex digits.
pub(crate) fn parse_hex(hex: &str) -> Option<Digest> {
    format!("blake3:{hex}").parse().ok()
}

/// Something a reader may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Version,
    Packages,
    Index(PackageName),
    Blob(Digest),
    Layer(Digest),
    Patches(Digest),
    Signatures(Digest),
}

impl Item {
    /// Its path, relative to the root.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Version => VERSION_FILE.to_owned(),
            Self::Packages => PACKAGES.to_owned(),
            Self::Index(name) => index(name),
            Self::Blob(digest) => blob(digest),
            Self::Layer(inputs) => layer(inputs),
            Self::Patches(image) => patches(image),
            Self::Signatures(manifest) => signatures(manifest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_parse_to_what_they_were_made_from() {
        let digest = Digest::of(b"x");
        for item in [
            Item::Version,
            Item::Packages,
            Item::Index("A".parse().unwrap()),
            Item::Blob(digest),
            Item::Layer(digest),
            Item::Patches(digest),
            Item::Signatures(digest),
        ] {
            assert_eq!(parse(&item.path()), Some(item));
        }
    }

    #[test]
    fn nothing_else_is_a_path() {
        let hex = Digest::of(b"x").hex();
        for bad in [
            "",
            "/",
            "..",
            "packages/../index.json",
            "packages/.hidden/index.json",
            "packages/A/index.json/",
            "packages//index.json",
            "locks/A",
            &format!("blobs/blake3/{}/{hex}", "zz"),
            &format!("blobs/blake3/{}/{}", &hex[..2], hex.to_uppercase()),
            &format!("blobs/blake3//{hex}"),
            &format!("layers/{hex}"),
            "layers/../../etc/passwd.json",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

//! Tokens of the environment, each for one registry.
//!
//! - `MICA_TOKEN_<HOST>` is for the registry of that host; in its name every character but letters and digits is `_`, and a
//!   port belongs to it: `MICA_TOKEN_REG_EXAMPLE_COM_5080`.
//! - `MICA_TOKEN="HOST[:PORT]=TOKEN …"` has tokens of several, separated by spaces.
//! - `MICA_TOKEN=TOKEN` is for the registry that the user named: by a flag, the environment or settings of his own. One
//!   that a workspace names doesn't get it: whoever wrote the workspace chose where it goes.

use super::Access;

/// What the environment has for a registry on `host`, `host[:port]`; `named` says whether the user himself named it.
pub(super) fn access(host: &str, named: bool, variable: &dyn Fn(&str) -> Option<String>) -> Access {
    let said = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    if let Some(token) = said(&format!("MICA_TOKEN_{}", mangled(host))) {
        return Access::Bearer(token.trim().to_owned());
    }
    let Some(all) = said("MICA_TOKEN") else { return Access::Anonymous };
    let mut words = all.split_whitespace().map(|word| (word, scoped(word)));
    let ours = words.clone().find_map(|(_, scoped)| scoped.filter(|(of, _)| *of == host));
    match (ours, words.next()) {
        (Some((_, token)), _) => Access::Bearer(token.to_owned()),
        (None, Some((_, None))) if named => Access::Bearer(all.trim().to_owned()),
        _ => Access::Anonymous,
    }
}

/// `HOST[:PORT]=TOKEN`. A host has a dot or a port, or is `localhost`: tokens may have a `=` as well.
fn scoped(word: &str) -> Option<(&str, &str)> {
    let (host, token) = word.split_once('=')?;
    let is_host = host == "localhost" || host.contains(['.', ':']);
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    (is_host && host.chars().all(fits) && !token.is_empty()).then_some((host, token))
}

fn mangled(host: &str) -> String {
    let one = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    host.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(host: &str, named: bool, set: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        match access(host, named, &variable) {
            Access::Bearer(token) => Some(token),
            _ => None,
        }
    }

    #[test]
    fn a_bare_token_is_for_the_registry_that_the_user_named() {
        for bare in ["secret", "YWJj=", "a=b", "abc.def/x=y"] {
            assert_eq!(token("reg.example:5080", true, &[("MICA_TOKEN", bare)]).unwrap(), bare);
            assert_eq!(token("reg.example:5080", false, &[("MICA_TOKEN", bare)]), None);
        }
        assert_eq!(token("reg.example", true, &[("MICA_TOKEN", " ")]), None);
        assert_eq!(token("reg.example", true, &[]), None);
    }

    #[test]
    fn a_token_with_a_host_is_for_that_host() {
        let set = [("MICA_TOKEN", "reg.example:5080=one other.example=two")];
        for named in [true, false] {
            assert_eq!(token("reg.example:5080", named, &set).unwrap(), "one");
            assert_eq!(token("other.example", named, &set).unwrap(), "two");
            assert_eq!(token("reg.example", named, &set), None);
            assert_eq!(token("evil.example", named, &set), None);
        }
        let set = [("MICA_TOKEN_REG_EXAMPLE_5080", "three"), ("MICA_TOKEN", "bare")];
        assert_eq!(token("reg.example:5080", false, &set).unwrap(), "three");
        assert_eq!(token("reg.example", false, &set), None);
    }
}

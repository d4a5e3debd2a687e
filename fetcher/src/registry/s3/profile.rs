//! Profiles of the files that AWS's own tools read: `~/.aws/credentials` and `~/.aws/config`, or those that
//! `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name. Of a profile come keys, region and endpoint; whatever the environment
//! says goes first. How a profile gets keys from elsewhere (a role, single sign-on, a program) is left to AWS's tools.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use configparser::ini::{Ini, IniDefault};

/// The name in the environment, and in the files.
const SETTINGS: [(&str, &str); 5] = [
    ("AWS_ACCESS_KEY_ID", "aws_access_key_id"),
    ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key"),
    ("AWS_SESSION_TOKEN", "aws_session_token"),
    ("AWS_REGION", "region"),
    ("AWS_ENDPOINT_URL", "endpoint_url"),
];
/// The first of these is a key of its own, the rest belong to it.
const KEYS: usize = 3;
/// Files larger than this are something else.
const LIMIT: usize = 1 << 20;

/// What a profile adds to the settings of an environment, as names and values; the reason if it cannot be used.
pub(super) fn settings(env: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    let of_env = |name: &str| env.iter().find(|(have, _)| have == name).map(|(_, value)| value);
    let files = [of_env("AWS_SHARED_CREDENTIALS_FILE"), of_env("AWS_CONFIG_FILE")];
    let files: Vec<PathBuf> = files.into_iter().flatten().map(PathBuf::from).collect();
    let named = of_env("AWS_PROFILE").or_else(|| of_env("AWS_DEFAULT_PROFILE"));
    let profile = named.map_or("default", String::as_str);
    let mut found: Option<HashMap<String, String>> = None;
    for file in &files {
        let Some(of_file) = read(file, profile)? else { continue };
        for (name, value) in of_file {
            // Credentials come first, and keep what the other file says too.
            found.get_or_insert_default().entry(name).or_insert(value);
        }
    }
    let Some(found) = found else {
        let shown: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        return match named {
            Some(profile) => Err(format!("no profile `{profile}` in {}", shown.join(" or "))),
            None => Ok(Vec::new()),
        };
    };
    let has_keys = of_env(SETTINGS[0].0).is_some();
    if let Some(profile) = named.filter(|_| !has_keys && !found.contains_key(SETTINGS[0].1)) {
        return Err(format!(
            "profile `{profile}` holds no keys; `aws configure export-credentials --profile {profile} --format env` prints those it \
             stands for, as variables"
        ));
    }
    // The keys of one place belong together.
    let wanted = SETTINGS.iter().skip(if has_keys { KEYS } else { 0 });
    let missing = wanted.filter(|(name, _)| {
        of_env(name).is_none() && (*name != "AWS_REGION" || of_env("AWS_DEFAULT_REGION").is_none())
    });
    Ok(missing
        .filter_map(|(name, key)| Some(((*name).to_owned(), found.get(*key)?.clone())))
        .collect())
}

/// A profile of a file, if the file and the profile are there.
fn read(file: &Path, profile: &str) -> Result<Option<HashMap<String, String>>, String> {
    let failed = |reason: String| format!("cannot read {}: {reason}", file.display());
    let text = match crate::file::read_given(file, LIMIT as u64) {
        Ok(Some(text)) => {
            String::from_utf8(text).map_err(|_| failed("it is no text".to_owned()))?
        }
        Ok(None) => return Ok(None),
        Err(error) => return Err(failed(error.source.to_string())),
    };
    let mut rules = IniDefault::default();
    (rules.case_sensitive, rules.delimiters) = (true, vec!['=']);
    // Settings of settings are indented; ours are not among them.
    let own: Vec<&str> = text.lines().filter(|line| !line.starts_with([' ', '\t'])).collect();
    let sections = Ini::new_from_defaults(rules).read(own.join("\n")).map_err(failed)?;
    let names = [profile.to_owned(), format!("profile {profile}")];
    let section = names.iter().find_map(|name| sections.get(name));
    Ok(section.map(|section| {
        let values = section.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
        values.filter(|(_, value)| !value.is_empty()).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "
# by hand
[default]
aws_access_key_id = AK1
aws_secret_access_key = a/b+c=d==

[Work]
aws_access_key_id=AK2
aws_secret_access_key=two
aws_session_token=token
";
    const CONFIG: &str = "
[default]
region = eu-central-1
s3 =
  region = not-this
  max_concurrent_requests = 20

[profile Work]
region = us-east-2
endpoint_url = http://minio:9000

[profile role]
role_arn = arn:aws:iam::1:role/x
source_profile = default
";

    fn found(env: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let mut all: Vec<(String, String)> = vec![
            ("AWS_SHARED_CREDENTIALS_FILE".into(), path("credentials", CREDENTIALS)),
            ("AWS_CONFIG_FILE".into(), path("config", CONFIG)),
        ];
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings(&all)
    }

    fn pairs(found: &[(String, String)]) -> Vec<(&str, &str)> {
        found.iter().map(|(name, value)| (&**name, &**value)).collect()
    }

    #[test]
    fn profiles_fill_in_what_the_environment_leaves_open() {
        let by_default = found(&[]).unwrap();
        let keys = [("AWS_ACCESS_KEY_ID", "AK1"), ("AWS_SECRET_ACCESS_KEY", "a/b+c=d==")];
        let region = [("AWS_REGION", "eu-central-1")];
        assert_eq!(pairs(&by_default), [keys.as_slice(), &region].concat());
        let work = found(&[("AWS_PROFILE", "Work"), ("AWS_DEFAULT_REGION", "here")]).unwrap();
        let expected = [
            ("AWS_ACCESS_KEY_ID", "AK2"),
            ("AWS_SECRET_ACCESS_KEY", "two"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_ENDPOINT_URL", "http://minio:9000"),
        ];
        assert_eq!(pairs(&work), expected);
        // Keys of two places don't mix.
        let own = found(&[("AWS_ACCESS_KEY_ID", "K"), ("AWS_PROFILE", "Work")]).unwrap();
        let rest = [("AWS_REGION", "us-east-2"), ("AWS_ENDPOINT_URL", "http://minio:9000")];
        assert_eq!(pairs(&own), rest);
    }

    #[test]
    fn profiles_that_cannot_be_used_are_named() {
        let error = found(&[("AWS_PROFILE", "work")]).unwrap_err();
        assert!(error.contains("no profile `work` in") && error.contains("config"), "{error}");
        let error = found(&[("AWS_PROFILE", "role")]).unwrap_err();
        assert!(error.contains("export-credentials --profile role"), "{error}");
        assert!(found(&[("AWS_PROFILE", "role"), ("AWS_ACCESS_KEY_ID", "K")]).is_ok());
        assert_eq!(settings(&[]), Ok(Vec::new()));
        let folder = tempfile::tempdir().unwrap().keep();
        let away = ("AWS_CONFIG_FILE".to_owned(), folder.join("none").display().to_string());
        assert_eq!(settings(std::slice::from_ref(&away)), Ok(Vec::new()));
        std::fs::write(folder.join("none"), b"[x]\nregion = \xff\n").unwrap();
        assert!(settings(&[away]).unwrap_err().contains("cannot read"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

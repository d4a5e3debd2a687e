//! Addresses of buckets: `s3://bucket/prefix`, and behind a `?` what is not AWS's own: `endpoint=URL` and `region=NAME`.

use std::fmt;

use reqwest::Url;

/// A place in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(super) bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub(super) prefix: String,
    /// A URL; where it is not given, `AWS_ENDPOINT_URL` is used, or AWS itself.
    pub(super) endpoint: Option<Url>,
    pub(super) region: Option<String>,
}

impl Location {
    /// Reads an address that starts with `s3://`; the reason if it is wrong.
    pub(crate) fn parse(address: &str) -> Result<Self, String> {
        let url = Url::parse(address).map_err(|error| error.to_string())?;
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() || url.port().is_some() || url.fragment().is_some() {
            return Err("it should be s3://BUCKET/PREFIX".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "keys are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY alone";
            return Err(reason.to_owned());
        }
        let prefix = url.path().trim_matches('/').to_owned();
        let mut location = Self { bucket, prefix, endpoint: None, region: None };
        for (key, value) in url.query_pairs() {
            match &*key {
                "endpoint" => {
                    let endpoint = Url::parse(&value).ok();
                    let endpoint = endpoint.filter(|url| matches!(url.scheme(), "http" | "https"));
                    location.endpoint = Some(endpoint.ok_or("its endpoint is not a URL")?);
                }
                "region" => location.region = Some(value.into_owned()),
                other => return Err(format!("`{other}` is neither `endpoint` nor `region`")),
            }
        }
        Ok(location)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |address| Location::parse(address).map(|found| found.to_string());
        assert_eq!(parse("s3://b").unwrap(), "s3://b");
        assert_eq!(parse("s3://my.bucket/a/b/").unwrap(), "s3://my.bucket/a/b");
        let found = Location::parse("s3://b/p?endpoint=http://minio:9000&region=eu").unwrap();
        assert_eq!(found.endpoint.unwrap().as_str(), "http://minio:9000/");
        assert_eq!(found.region.as_deref(), Some("eu"));
        for bad in [
            "s3://",
            "s3:///p",
            "s3://b:80/p",
            "s3://key:secret@b/p",
            "s3://b?endpoint=minio",
            "s3://b?x=1",
        ] {
            let reason = Location::parse(bad).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}

//! Fields of queries and forms, in their order. A name may occur several times.

use super::shell::Failure;
use crate::api::{PageQuery, Problem};
use axum::{extract::FromRequestParts, http::request::Parts};
use form_urlencoded::Serializer;
use std::str::FromStr;

/// Fields of a query or form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses fields. Omits those without a value. Fails on NUL, which Postgres does not store.
    pub fn parse(encoded: &[u8]) -> Result<Self, Problem> {
        let pairs = form_urlencoded::parse(encoded).into_owned();
        let pairs: Vec<_> = pairs.filter(|(_, value)| !value.trim().is_empty()).collect();
        match pairs.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
            true => Err(Problem::bad_request("a field contains NUL")),
            false => Ok(Self(pairs)),
        }
    }

    /// Returns the first value of a field, without spaces around it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.trim())
    }

    /// Returns all values of a field.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect()
    }

    /// Parses a field.
    pub fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parse = |value: &str| {
            let wrong = |_| Problem::bad_request(format!("{name} is malformed: {value}"));
            value.parse().map_err(wrong)
        };
        self.get(name).map(parse).transpose()
    }

    /// Returns the fields except those with the given names.
    pub fn without(&self, names: &[&str]) -> Self {
        Self(self.0.iter().filter(|(n, _)| !names.contains(&n.as_str())).cloned().collect())
    }

    /// Returns the fields with one added.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// Returns the pairs.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Returns `path` with the fields as its query.
    pub fn url(&self, path: &str) -> String {
        if self.0.is_empty() {
            return path.to_owned();
        }
        format!("{path}?{}", Serializer::new(String::new()).extend_pairs(&self.0).finish())
    }

    /// Returns the cursor of a page.
    pub fn page(&self) -> PageQuery {
        PageQuery { cursor: self.get("cursor").map(str::to_owned), limit: None }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Fields {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default().as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repetitions() {
        let fields = Fields::parse(b"item=1&text=a+b&item=2&empty=").expect("fields");
        assert_eq!(fields.all("item"), ["1", "2"]);
        assert_eq!((fields.get("text"), fields.get("empty")), (Some("a b"), None));
        assert_eq!(fields.without(&["item"]).with("n", "ä&").url("/x"), "/x?text=a+b&n=%C3%A4%26");
        assert_eq!(Fields::default().url("/x"), "/x");
    }

    #[test]
    fn rejects_nul() {
        assert!(Fields::parse(b"a=%00").is_err());
    }
}

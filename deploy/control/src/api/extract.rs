//! Extractors whose rejections are [`Problem`]s.

use super::Problem;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error};

/// Parameters of the path. A malformed id is rejected like an unknown one.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::not_found("the path has a malformed id")),
        }
    }
}

/// Parameters of the query.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

/// Returns the value of an integer, which may be written as `1.0`.
fn integer(number: &serde_json::Number) -> Option<i64> {
    /// Maximum up to which `f64` represents all integers.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let float = || number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= EXACT_MAX);
    number.as_i64().or_else(|| float().map(|f| f as i64))
}

/// Deserializes an optional integer.
pub fn optional_integer<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    let Some(number) = number else { return Ok(None) };
    let value = integer(&number).and_then(|value| value.try_into().ok());
    value.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is out of range")))
}

/// Deserializes a field that is present, so that null differs from a missing field.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Deserializes integers.
pub fn integers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    let numbers = Vec::<serde_json::Number>::deserialize(deserializer)?;
    let wrong =
        |number: &serde_json::Number| D::Error::custom(format!("{number} is not an integer"));
    numbers.iter().map(|number| integer(number).ok_or_else(|| wrong(number))).collect()
}

/// JSON body of a request or response.
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(Problem::unsupported_media_type("expected application/json"));
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|_| Problem::bad_request("failed to read the body"))?;
        // Postgres does not store NUL in text.
        if has_escaped_nul(&bytes) {
            return Err(Problem::bad_request("texts must not contain NUL"));
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self(value)),
            Err(error) if error.is_data() => Err(Problem::invalid(error.to_string())),
            Err(error) => Err(Problem::bad_request(error.to_string())),
        }
    }
}

/// Returns whether a JSON text contains `\u0000`, with an odd number of backslashes. An escaped
/// backslash before `u0000` is no NUL.
fn has_escaped_nul(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = &rest[at + 1..];
        if rest.starts_with(b"u0000") {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Input {
        #[serde(deserialize_with = "integers")]
        ids: Vec<i64>,
        #[serde(default, deserialize_with = "optional_integer")]
        ttl: Option<u16>,
    }

    #[test]
    fn reads_integers_with_zero_fraction() {
        let read = serde_json::from_str::<Input>;
        let input = read(r#"{"ids": [1, 2.0, -3e2], "ttl": 9.0}"#).expect("integers");
        assert_eq!((input.ids, input.ttl), (vec![1, 2, -300], Some(9)));
        assert_eq!(read(r#"{"ids": [], "ttl": null}"#).expect("integers").ttl, None);
        for wrong in [r#"{"ids": [1.5]}"#, r#"{"ids": [1e300]}"#, r#"{"ids": [], "ttl": 65536}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn finds_escaped_nul() {
        for nul in [r#"{"a": "\u0000"}"#, r#"{"a": "\\\u0000"}"#, r#"{"a": "x\n\u0000"}"#] {
            assert!(has_escaped_nul(nul.as_bytes()), "{nul}");
        }
        for text in [r#"{"a": "\\u0000"}"#, r#"{"a": "\u0001"}"#, r"\", ""] {
            assert!(!has_escaped_nul(text.as_bytes()), "{text}");
        }
    }
}

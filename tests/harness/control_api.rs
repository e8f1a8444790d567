//! Callers of the control API.

use crate::test_env::TestEnv;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// A caller of the API.
pub struct Caller {
    /// Client without a key.
    pub http: reqwest::Client,
    /// Address of the API.
    pub base: String,
    /// Key.
    pub key: String,
}

impl Caller {
    /// Creates a key with the command line. Without an organization the key is for all
    /// organizations.
    pub fn create(env: &TestEnv, role: &str, org: Option<&str>) -> Self {
        let mut args = vec!["api-keys", "create", "--role", role];
        match org {
            Some(org) => args.extend(["--org", org]),
            None => args.push("--all-orgs"),
        }
        let key = env.tidegate(&args).expect("a key").trim().to_owned();
        assert!(key.starts_with("tgk_"), "{}", key.len());
        let base = env.controls[0].path("");
        Self { http: reqwest::Client::new(), base, key }
    }

    /// Returns a request with the key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    /// Sends a GET request. Returns status and body.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    /// Sends a request with a JSON body. Returns status and body.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.request(method, path).json(body)).await
    }

    /// Sends a POST request. Returns status and body.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, body).await
    }
}

/// Sends a request. Returns status and body. Panics if an error is not a problem of RFC 9457.
pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("a response");
    let status = response.status();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text"));
    let kind = kind.unwrap_or_default().to_owned();
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(kind, "application/problem+json", "{status}: {text}");
        assert_eq!(body["status"], status.as_u16(), "{text}");
        let word =
            body["type"].as_str().and_then(|kind| kind.strip_prefix("urn:tidegate:problem:"));
        assert!(word.is_some() && body["detail"].is_string(), "{text}");
    }
    (status, body)
}

//! One webhook of every sort, as the files in `fixtures/slack` have them.
//!
//! In: those files, read when a test runs (the README beside them says where each is from). Out: [`Fixture`]s, ready to
//! be signed and sent. They name the app `A0001APP` and the team `T0001TEAM`: a test that needs them routed makes
//! a connection with these ids.

use crate::slack::webhook::Webhook;
use anyhow::{Context, ensure};
use serde_json::Value;
use shared::codec::envelope::DedupeKey;
use std::{fs, path::Path};

/// A webhook out of a file.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The file's name, without its ending.
    pub name: String,
    /// What the file holds, for tests that change it.
    pub content: Value,
    /// The webhook. Its dedupe key is empty, since that depends on the connection it is sent to.
    pub webhook: Webhook,
}

impl Fixture {
    /// Whether it goes into the stream: the two handshakes are answered and forgotten.
    pub fn is_stored(&self) -> bool {
        self.content["type"] != "url_verification" && !self.is_ssl_check()
    }

    /// Whether it is the one webhook that is answered without looking at its signature.
    pub fn is_ssl_check(&self) -> bool {
        self.content["_form"]["ssl_check"] == "1"
    }
}

/// All of them, in the order of their names.
///
/// # Errors
/// When a file can't be read.
pub fn all() -> anyhow::Result<Vec<Fixture>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/slack");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a name in UTF-8")?;
        let content: Value =
            serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("{name}.json"))?;
        let webhook = webhook(name, &content);
        found.push(Fixture { name: name.to_owned(), content, webhook });
    }
    ensure!(!found.is_empty(), "{} holds no fixtures", dir.display());
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// A file's content in the shape in which Slack sends it.
pub fn webhook(name: &str, content: &Value) -> Webhook {
    let form = |fields: &mut dyn Iterator<Item = (&str, String)>| {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (content_type, body) = if let Some(fields) = content["_form"].as_object() {
        let mut fields = fields.iter().map(|(name, value)| (name.as_str(), text(value)));
        ("application/x-www-form-urlencoded", form(&mut fields))
    } else if let Some(payload) = content.get("_payload") {
        let mut fields = [("payload", payload.to_string())].into_iter();
        ("application/x-www-form-urlencoded", form(&mut fields))
    } else {
        ("application/json", content.to_string())
    };
    Webhook {
        what: name.to_owned(),
        content_type,
        body: body.into_bytes(),
        dedupe: DedupeKey::stored(String::new()),
        response_url: String::new(),
    }
}

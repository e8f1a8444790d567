//! Reader of installations from Bolt's file stores, JSON dumps and CSV.
//!
//! | Source | Form |
//! |---|---|
//! | Bolt for JavaScript, `FileInstallationStore` | files `app-latest`: an object with `bot`, `team`, `enterprise` |
//! | Bolt for Python, `FileInstallationStore` | files `bot-latest`: an object with `bot_token`, `team_id`, … |
//! | dump of a database | an array of such objects, or one per line |
//! | CSV | a header with the names of Bolt for Python; required: `bot_token` and `team_id` or `enterprise_id` |

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use shared::{
    domain::{AppId, EnterpriseId, TeamId},
    secrets::Secret,
};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
};

/// Maximum bytes of all files together: 100,000 installations of 2 KiB.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Maximum depth of subfolders.
const DEPTH_MAX: usize = 3;
/// Maximum number of files.
const FILES_MAX: usize = 200_000;
/// Names of the files in which Bolt's stores keep the newest installation.
const NEWEST: [&str; 2] = ["app-latest", "bot-latest"];

/// Installation in a file.
#[derive(Debug)]
pub struct Row {
    pub app: Option<AppId>,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub bot_token: Secret,
    pub refresh_token: Option<Secret>,
    /// Seconds since 1970.
    pub expires_at: Option<i64>,
}

/// Row of a file, or the reason why it is unusable. The reason never contains a token.
pub struct ReadRow {
    /// Number of the row, or path of its file.
    pub place: String,
    pub row: Result<Row, String>,
}

/// Reads a file, or the newest installations of a folder of Bolt's file stores.
pub fn read(path: &Path) -> anyhow::Result<Vec<ReadRow>> {
    let message = || format!("failed to read {}", path.display());
    if !fs::metadata(path).with_context(message)?.is_dir() {
        return parse(&read_text(path, BYTES_MAX)?);
    }
    let (mut rows, mut budget) = (Vec::new(), BYTES_MAX);
    for file in newest_files(path)? {
        let text = read_text(&file, budget)?;
        budget = budget.saturating_sub(text.len() as u64);
        let place = file.strip_prefix(path).unwrap_or(&file).display().to_string();
        let parsed = parse(&text).with_context(|| format!("failed to parse {place}"))?;
        rows.extend(parsed.into_iter().map(|row| ReadRow { place: place.clone(), ..row }));
    }
    Ok(rows)
}

fn read_text(path: &Path, max: u64) -> anyhow::Result<String> {
    let size = fs::metadata(path).map_or(0, |found| found.len());
    ensure!(size <= max, "{} is too large; split the import", path.display());
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

/// Returns the files with the newest installations below a folder, sorted.
fn newest_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), VecDeque::from([(folder.to_owned(), 0)]));
    while let Some((folder, depth)) = folders.pop_front() {
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("failed to read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && depth < DEPTH_MAX {
                folders.push_back((path, depth + 1));
            } else if NEWEST.contains(&name) {
                files.push(path);
            }
            ensure!(
                files.len() + folders.len() <= FILES_MAX,
                "the folder has over {FILES_MAX} installations; split the import"
            );
        }
    }
    files.sort();
    Ok(files)
}

/// Parses JSON or CSV.
fn parse(text: &str) -> anyhow::Result<Vec<ReadRow>> {
    match text.trim_start().chars().next() {
        Some('[') => {
            let values: Vec<Value> = serde_json::from_str(text).map_err(redacted)?;
            Ok(numbered(values.into_iter().map(from_json)))
        }
        Some('{') => {
            let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
            let values: Result<Vec<_>, _> = values.collect();
            Ok(numbered(values.map_err(redacted)?.into_iter().map(from_json)))
        }
        Some(_) => {
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            ensure!(
                reader.headers().is_ok_and(|names| names.iter().any(|name| name == "bot_token")),
                "the file is not JSON, and its first line has no column bot_token"
            );
            // The error of the reader may quote the row.
            let rows = reader.deserialize::<PythonRow>();
            Ok(numbered(rows.map(|row| row.map_err(|_| "malformed row".into()).and_then(checked))))
        }
        None => bail!("the file is empty"),
    }
}

/// Returns an error that quotes no text of the file.
fn redacted(error: serde_json::Error) -> anyhow::Error {
    anyhow::anyhow!("malformed JSON in line {}, column {}", error.line(), error.column())
}

fn numbered(rows: impl Iterator<Item = Result<Row, String>>) -> Vec<ReadRow> {
    rows.enumerate().map(|(n, row)| ReadRow { place: (n + 1).to_string(), row }).collect()
}

/// Installation as stored by Bolt for Python.
#[derive(Deserialize)]
struct PythonRow {
    #[serde(default)]
    app_id: Option<String>,
    #[serde(default)]
    enterprise_id: Option<String>,
    #[serde(default)]
    team_id: Option<String>,
    bot_token: Option<String>,
    #[serde(default)]
    bot_refresh_token: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    bot_token_expires_at: Option<f64>,
    #[serde(default, deserialize_with = "flag")]
    is_enterprise_install: bool,
}

/// Deserializes a number that may be a string.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Number(f64),
        Text(String),
    }
    Ok(match Option::<Number>::deserialize(deserializer)? {
        Some(Number::Number(number)) => Some(number),
        Some(Number::Text(text)) => text.trim().parse().ok(),
        None => None,
    })
}

/// Deserializes a boolean that may be a number or a string. Null is false.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(i64),
        Text(String),
    }
    Ok(match Option::<Flag>::deserialize(deserializer)? {
        Some(Flag::Bool(flag)) => flag,
        Some(Flag::Number(number)) => number != 0,
        Some(Flag::Text(text)) => ["true", "1", "t"].contains(&text.to_lowercase().as_str()),
        None => false,
    })
}

/// Parses an installation as stored by Bolt for JavaScript or for Python.
fn from_json(value: Value) -> Result<Row, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = if value["bot"].is_object() {
        let bot = &value["bot"];
        PythonRow {
            app_id: text(&value["appId"]),
            enterprise_id: text(&value["enterprise"]["id"]),
            team_id: text(&value["team"]["id"]),
            bot_token: text(&bot["token"]),
            bot_refresh_token: text(&bot["refreshToken"]),
            bot_token_expires_at: bot["expiresAt"].as_f64(),
            is_enterprise_install: value["isEnterpriseInstall"] == true,
        }
    } else {
        // The error of serde may quote the value.
        serde_json::from_value(value).map_err(|_| "not an installation of Bolt".to_owned())?
    };
    checked(row)
}

fn checked(row: PythonRow) -> Result<Row, String> {
    fn id<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<Option<T>, String> {
        // Bolt for Python writes a missing enterprise id as `none`.
        let text = text.filter(|text| !text.is_empty() && text != "none");
        let malformed = |_| format!("{name} is malformed");
        text.map(|text| text.parse().map_err(malformed)).transpose()
    }
    let secret = |text: Option<String>| text.and_then(|text| Secret::new(text).ok());
    let enterprise = id("enterprise_id", row.enterprise_id)?;
    let team: Option<TeamId> = id("team_id", row.team_id)?;
    let team = team.filter(|_| !row.is_enterprise_install);
    if team.is_none() && enterprise.is_none() {
        return Err("neither team_id nor enterprise_id".into());
    }
    Ok(Row {
        app: id("app_id", row.app_id)?,
        enterprise,
        team,
        bot_token: secret(row.bot_token).ok_or("no bot token")?,
        refresh_token: secret(row.bot_refresh_token),
        expires_at: row.bot_token_expires_at.map(|seconds| seconds as i64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<String> {
        let shown = |row: ReadRow| match row.row {
            Ok(row) => format!(
                "row: {} {} {} {} {} {}",
                row.app.map_or("-".into(), |id| id.to_string()),
                row.enterprise.as_ref().map_or("-".into(), ToString::to_string),
                row.team.as_ref().map_or("-".into(), ToString::to_string),
                row.refresh_token.as_ref().map_or("-", Secret::expose),
                row.expires_at.map_or("-".into(), |at| at.to_string()),
                row.bot_token.expose(),
            ),
            Err(why) => format!("{}: {why}", row.place),
        };
        parse(text).expect("rows").into_iter().map(shown).collect()
    }

    #[test]
    fn parses_bolt_stores() {
        let javascript = r#"{
            "team": {"id": "T1", "name": "One"}, "enterprise": {"id": "E1"},
            "user": {"id": "U1", "token": "xoxp-no"}, "tokenType": "bot", "appId": "A1",
            "isEnterpriseInstall": false, "authVersion": "v2",
            "bot": {"scopes": ["chat:write"], "token": "xoxb-1", "userId": "UB", "id": "B1",
                    "refreshToken": "xoxe-1", "expiresAt": 1700000000}
        }
        {"enterprise": {"id": "E2"}, "isEnterpriseInstall": true, "bot": {"token": "xoxb-2"}}"#;
        assert_eq!(
            rows(javascript),
            ["row: A1 E1 T1 xoxe-1 1700000000 xoxb-1", "row: - E2 - - - xoxb-2"]
        );
        let python = r#"[
            {"app_id": "A1", "enterprise_id": null, "team_id": "T1", "bot_token": "xoxb-1",
             "bot_scopes": ["chat:write"], "bot_refresh_token": null, "bot_token_expires_at": null,
             "is_enterprise_install": false, "installed_at": 1700000000.5, "custom_values": {}},
            {"app_id": "A1", "enterprise_id": "E1", "team_id": "T1", "bot_token": "xoxb-2",
             "is_enterprise_install": true, "bot_token_expires_at": 1700000000},
            {"team_id": "T2", "bot_token": null}, {"bot_token": "xoxb-3"}, 7
        ]"#;
        assert_eq!(
            rows(python),
            [
                "row: A1 - T1 - - xoxb-1",
                "row: A1 E1 - - 1700000000 xoxb-2",
                "3: no bot token",
                "4: neither team_id nor enterprise_id",
                "5: not an installation of Bolt",
            ]
        );
    }

    #[test]
    fn parses_csv() {
        let text = "team_id,note,bot_token,is_enterprise_install,enterprise_id,bot_token_expires_at\n\
                    T1,\"a, b\",xoxb-1,False,none,\n,,xoxb-2,True,E1,1700000000.0\nT 3,,xoxb-3,,,\nT4,,,,,\n";
        assert_eq!(
            rows(text),
            [
                "row: - - T1 - - xoxb-1",
                "row: - E1 - - 1700000000 xoxb-2",
                "3: team_id is malformed",
                "4: no bot token",
            ]
        );
    }

    #[test]
    fn omits_tokens_from_errors() {
        for wrong in ["[{\"bot_token\": \"xoxb-secret\"", "xoxb-secret", "", "a,b\nxoxb-secret,1"] {
            let error = parse(wrong).err().expect(wrong);
            assert!(!format!("{error:#}").contains("secret"), "{error:#}");
        }
    }
}

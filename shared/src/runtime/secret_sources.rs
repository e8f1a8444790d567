//! Sources of secret settings: the text itself, a file, and for keyrings the output of a command.

use super::command_output;
use crate::secrets::{self, InvalidKeyRingError, KeyRing, Secret};

/// Parses a secret setting: the text itself, or `file:<path>` for the content of a file.
pub(super) fn read_secret(setting: &str) -> Result<String, String> {
    match setting.strip_prefix("file:") {
        None => Ok(setting.to_owned()),
        Some(path) => std::fs::read_to_string(path)
            .map(|text| text.trim_end().to_owned())
            .map_err(|error| format!("failed to read the file: {error}")),
    }
}

/// Parses a keyring: `k2:<base64>,k1:<base64>`, `file:<path>`, or `exec:<command>`.
pub fn parse_key_ring(setting: &str) -> Result<KeyRing, String> {
    let text = match setting.strip_prefix("exec:") {
        Some(command) => command_output::read(command)?,
        None => read_secret(setting)?,
    };
    text.parse().map_err(|error: InvalidKeyRingError| error.to_string())
}

/// Parses the id of a new key of a keyring.
pub fn key_id(text: &str) -> Result<String, secrets::KeyIdError> {
    secrets::key_id(text)
}

/// Parses a secret: its text, or `file:<path>`.
pub fn parse_secret(setting: &str) -> Result<Secret, String> {
    Secret::new(read_secret(setting)?).map_err(|error| error.to_string())
}

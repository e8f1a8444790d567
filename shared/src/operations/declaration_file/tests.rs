//! Tests of valid and invalid files.

use super::*;

/// Returns a line per problem. Two references to secrets are valid.
fn problems(text: &str) -> String {
    let mut source = |reference: &str| match reference {
        "file:a.secret" | "env:A_SECRET" => Ok("clear".to_owned()),
        _ => Err(format!("no {reference}")),
    };
    let problems = read_declarations(text, &mut source).err().unwrap_or_default();
    problems.iter().map(|p| format!("{}: {}\n", p.line, p.text)).collect()
}

const GOOD: &str = r#"
[[organization]]
id = "acme"

[[agent]]
organization = "acme"
id = "helper"
url = "https://helper.example/"
secret = "file:a.secret"

[[connection]]
organization = "acme"
app = "A1"
team = "T1"
signing_secret = "file:a.secret"
"#;

/// The documented example is valid, except that its secrets do not exist.
#[test]
fn reads_documented_example() {
    let found = problems(include_str!("../../../../deploy/tidegate.example.toml"));
    let about: Vec<&str> = [
        "no env:HELPER_SECRET",
        "no env:HELPER_KEY",
        "no file:acme.signing",
        "no env:ACME_BOT_TOKEN",
        "no file:helper.client",
        "no file:helper.signing",
        "no env:NOTIFICATION_SECRET",
    ]
    .into();
    assert_eq!(found.lines().count(), about.len(), "{found}");
    assert!(about.iter().all(|about| found.contains(about)), "{found}");
}

/// Every field of the schema is a key of the example.
#[test]
fn documents_every_key() {
    let text_of_example = include_str!("../../../../deploy/tidegate.example.toml");
    let example: toml::Table = toml::from_str(text_of_example).expect("TOML");
    let schema = include_str!("schema.rs");
    let mut keys = 0;
    let structs = schema.split("\npub struct ").skip(1);
    for text in structs {
        let (name, fields) = text.split_once(" {\n").expect("a struct");
        let table = match name {
            "File" => Some(&example),
            "SettingsTable" => example["connection"][0]["settings"].as_table(),
            other => {
                let table = &example[&other.to_lowercase()];
                table.get(0).unwrap_or(table).as_table()
            }
        };
        let table = table.expect("a table");
        let fields = fields.lines().take_while(|line| *line != "}");
        for field in fields.filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':')) {
            // Keys that exclude others are comments.
            let is_comment = text_of_example.contains(&format!("\n# {} = ", field.0));
            assert!(table.contains_key(field.0) || is_comment, "{name}: {}", field.0);
            keys += 1;
        }
    }
    assert!(keys > 40, "{keys}");
}

#[test]
fn reports_line_and_remedy() {
    assert_eq!(problems(GOOD), "");
    let with = |old: &str, new: &str| problems(&GOOD.replacen(old, new, 1));
    let long_url = format!("https://helper.example/{}", "a".repeat(2_048));
    let with_name = |id: &str| format!("id = \"{id}\"\nname = \"{}\"", "n".repeat(257));
    for (found, line, expected) in [
        (with("app = \"A1\"", "aps = \"A1\""), 13, "unknown field `aps`"),
        (with("team = \"T1\"", "team = 7"), 14, "invalid type"),
        (with("app = \"A1\"", "app = \"my-app\""), 13, "malformed app; write its id"),
        (with("team = \"T1\"", "team = \"T1\"\nbot_user = \"steve\""), 13, "malformed bot_user"),
        (
            with("team = \"T1\"", "team = \"T1\"\nbot_token = \"file:a.secret\""),
            15,
            "the bot token does not begin with xoxb-",
        ),
        (with("team = \"T1\"", "preview_mode = \"yes\""), 14, "invalid type"),
        (with("team = \"T1\"\n", ""), 13, "add one, or preview_mode = true"),
        (with("id = \"acme\"", "id = \"a.b\""), 3, "an organization id"),
        (
            with("\"acme\"\nid = \"helper\"", "\"other\"\nid = \"helper\""),
            6,
            "add [[organization]]",
        ),
        (with("https://helper.example/", "helper"), 8, "write https://host/path"),
        (with("https://helper", "https://u:hunter2@helper"), 8, "user or password in url"),
        (with("https://helper", "https://hunter2@helper"), 8, "user or password in url"),
        (with("https://helper.example/", &long_url), 8, "write 2048 characters at most"),
        (with("id = \"helper\"", &with_name("helper")), 7, "write 256 characters at most"),
        (with("id = \"acme\"", &with_name("acme")), 3, "write 256 characters at most"),
        (with("[[connection]]", "keep_for = \"15days\"\n[[connection]]"), 11, "1s to 14days"),
        (
            with("team = \"T1\"", "team = \"T1\"\nsettings = { link_by = \"nobody\" }"),
            15,
            "unknown variant `nobody`",
        ),
        (with("file:a.secret", "xoxb-hunter2"), 9, "write env:<name> or file:<path>"),
        (with("file:a.secret", "env:NO_SUCH_NAME"), 9, "no env:NO_SUCH_NAME"),
        (with("file:a.secret", "file:nowhere"), 9, "no file:nowhere"),
        (with("[[connection]]", "timeout = \"11m\"\n[[connection]]"), 11, "1s to 10m"),
        (with("[[connection]]", "keep_for = \"soon\"\n[[connection]]"), 11, "1s to 14days"),
        (with("[[connection]]", "max_per_user = 0\n[[connection]]"), 11, "1 to 1000000"),
        (with("[[connection]]", "max_concurrent = 0\n[[connection]]"), 11, "1 to 1000"),
        (
            with("team = \"T1\"", "team = \"T1\"\nsettings = { surface = [] }"),
            15,
            "unknown field `surface`",
        ),
        (with("[[agent]]", "[[organization]]\nid = \"acme\"\n[[agent]]"), 6, "in line 3 already"),
        (
            with(
                "[[agent]]",
                "[[member]]\norganization = \"acme\"\nuser = \"a\"\nslack = [\"T1/U1\"]\n\
                 [[member]]\norganization = \"acme\"\nuser = \"b\"\nslack = [\"T1/U1\"]\n[[agent]]",
            ),
            12,
            "is user a already",
        ),
        (with("[[agent]]", "[[agents]]"), 5, "unknown field `agents`"),
        (with("[[agent]]", "[[agent]"), 5, ""),
    ] {
        let start = format!("{line}: ");
        let is_found = found.starts_with(&start) && found.contains(expected);
        assert!(is_found, "{line} {expected}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
    let several =
        problems("[[connection]]\norganization = \"a\"\napp = \"A1\"\nsigning_secret = \"x\"\n");
    assert_eq!(several.lines().count(), 2, "all problems at once: {several}");
}

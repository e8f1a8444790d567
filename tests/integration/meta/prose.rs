//! Limits on the language and the form of the product's sources. `.github/CONTRIBUTING.md` has the
//! rules.

use crate::meta::architecture::{root, sources};
use crate::meta::rust_source::{Token, tokens};
use std::path::PathBuf;
use tests::test_env::{SMALL, TestEnv};

/// Folders of the product. Programs that only tests run, and examples, are not part of it.
const PRODUCT: [&str; 6] = [
    "ingest/src",
    "worker/src",
    "shared/src",
    "deploy/cli/src",
    "deploy/control/src",
    "deploy/dev/src",
];
/// First words of doc comments that are noun clauses. Others begin like "Returns …" or "Limits of
/// …".
const CLAUSE_OPENERS: [&str; 8] =
    ["what", "whose", "who", "how", "whether", "where", "nobody", "somebody"];
/// Words and phrases that have a plain counterpart.
const MANNERED: [&str; 17] = [
    "anew",
    "nobody",
    "somebody",
    "whoever",
    "whatever",
    "told",
    "tells",
    "said",
    "says",
    "say",
    "aloud",
    "any more",
    "in vain",
    "set aside",
    "looked at",
    "grave",
    "bury",
];
/// Maximum doc comments that are noun clauses, of a hundred.
const CLAUSES_MAX: f64 = 4.0;
/// Maximum mannered words, of a thousand words of comments.
const MANNERED_MAX: f64 = 1.0;
const COLUMNS: usize = 100;
/// Maximum lines with more columns, of a hundred.
const WIDE_LINES_MAX: f64 = 0.5;
/// Maximum lines of a file, including unit tests.
const FILE_LINES_MAX: usize = 400;
/// Maximum public modules of the worker, whose interface is the names that `lib.rs` exports.
const WORKER_MODULES_MAX: usize = 3;

/// Source file of the product.
struct Source {
    path: PathBuf,
    whole: String,
}

impl Source {
    /// Returns the text up to the module of unit tests, which comes last.
    fn product(&self) -> &str {
        let mut end = 0;
        let mut lines = self.whole.split_inclusive('\n');
        while let Some(line) = lines.next() {
            let opens_tests = line.trim_end() == "#[cfg(test)]"
                && lines.clone().find(|line| !line.starts_with("#[")).is_some_and(|line| {
                    line.split_whitespace().any(|word| word == "mod")
                        && line.trim_end().ends_with('{')
                });
            if opens_tests {
                break;
            }
            end += line.len();
        }
        &self.whole[..end]
    }
}

fn product() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in PRODUCT.map(|folder| root().join(folder)) {
        for path in sources(&folder) {
            let below = path.strip_prefix(&folder).expect("below it");
            if !below.iter().any(|part| part == "tests") {
                let whole = std::fs::read_to_string(&path).expect("a source file");
                found.push(Source { path, whole });
            }
        }
    }
    assert!(found.len() > 100, "{}", found.len());
    found
}

/// Returns the first line of each doc comment. Lines in a row with the same mark are one comment.
fn summaries(text: &str) -> Vec<&str> {
    let (mut found, mut previous) = (Vec::new(), None);
    for line in text.lines() {
        let line = line.trim_start();
        let mark = ["//!", "///"].into_iter().find(|mark| line.starts_with(mark));
        if mark.is_some() && mark != previous {
            found.extend(mark.and_then(|mark| line.strip_prefix(mark)).map(str::trim));
        }
        previous = mark;
    }
    found
}

/// Returns the words of all comments in lower case, separated and surrounded by single spaces.
fn prose(text: &str) -> String {
    let comments = tokens(text).into_iter().filter_map(|token| match token {
        Token::Comment(comment) => Some(comment),
        _ => None,
    });
    let is_part = |c: char| c.is_alphabetic() || c == '\'' || c == '’';
    let mut words = String::from(" ");
    for comment in comments {
        for word in comment.split(|c| !is_part(c)).filter(|word| !word.is_empty()) {
            words += &word.to_lowercase();
            words.push(' ');
        }
    }
    words
}

/// Fails with the places if there are more than `most` for each `per` of `all`.
fn assert_rare(what: &str, places: &[String], all: usize, per: f64, most: f64) {
    let share = places.len() as f64 * per / all.max(1) as f64;
    assert!(share <= most, "{what}: {share:.2} of {per}, at most {most}:\n{}", places.join("\n"));
}

/// Few doc comments begin with a noun clause instead of a verb or a noun.
#[test]
fn bounds_noun_clause_summaries() {
    let (mut all, mut clauses) = (0, Vec::new());
    for source in product() {
        for summary in summaries(source.product()).into_iter().filter(|line| !line.is_empty()) {
            let first = summary.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
            if CLAUSE_OPENERS.contains(&first.to_lowercase().as_str()) {
                clauses.push(format!("{}: {summary}", source.path.display()));
            }
            all += 1;
        }
    }
    assert!(all > 1_000, "{all}");
    assert_rare("doc comments that are noun clauses", &clauses, all, 100.0, CLAUSES_MAX);
}

/// Comments have few words of [`MANNERED`].
#[test]
fn bounds_mannered_words() {
    let (mut all, mut mannered) = (0, Vec::new());
    for source in product() {
        let prose = prose(source.product());
        all += prose.split_whitespace().count();
        for word in MANNERED {
            let count = prose.match_indices(&format!(" {word} ")).count();
            mannered.extend((0..count).map(|_| format!("{}: {word}", source.path.display())));
        }
    }
    assert!(all > 5_000, "{all}");
    assert_rare("mannered words", &mannered, all, 1_000.0, MANNERED_MAX);
}

/// Few lines have over 100 columns, and no file over 400 lines.
#[test]
fn bounds_lines_and_files() {
    let (mut all, mut wide) = (0, Vec::new());
    for source in product() {
        let (path, lines) = (source.path.display(), source.whole.lines().count());
        assert!(lines <= FILE_LINES_MAX, "{path}: {lines} lines, at most {FILE_LINES_MAX}");
        for line in source.product().lines() {
            if line.chars().count() > COLUMNS {
                wide.push(format!("{path}: {line}"));
            }
            all += 1;
        }
    }
    assert_rare("lines over 100 columns", &wide, all, 100.0, WIDE_LINES_MAX);
}

/// The worker has few public modules.
#[test]
fn bounds_public_modules_of_worker() {
    let text = std::fs::read_to_string(root().join("worker/src/lib.rs")).expect("a source file");
    let public: Vec<&str> =
        text.lines().filter(|line| line.trim().starts_with("pub mod ")).collect();
    assert!(public.len() <= WORKER_MODULES_MAX, "{public:?}");
}

/// Metrics begin with `tidegate_`. The registry adds the prefix to every name, so that metrics
/// without labels are a sufficient sample.
#[tokio::test]
async fn prefixes_metric_names() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    for url in [env.ingests[0].admin("/metrics"), env.workers[0].admin("/metrics")] {
        let page = reqwest::get(&url).await.expect("an answer").text().await.expect("a page");
        let names: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(names.len() > 5, "{page}");
        for name in names {
            assert!(name.starts_with("tidegate_"), "{url}: {name}");
        }
    }
}

/// Summaries and words of comments are found, without unit tests and literals.
#[test]
fn finds_summaries_and_prose() {
    let text = "//! What a module is.\n//! Second line.\n\n/// Returns.\n///\n/// Reason.\nfn f() {} // told\n\
                #[cfg(test)]\nconst A: u8 = 1;\n#[cfg(test)]\n#[allow(unused)]\nmod tests {\n/// Whose.\n}\n";
    let source = Source { path: PathBuf::new(), whole: text.to_owned() };
    assert_eq!(summaries(source.product()), ["What a module is.", "Returns."]);
    assert!(source.product().ends_with("const A: u8 = 1;\n"));
    assert_eq!(prose("/// Set  aside,\n//it's\nlet a = \"// said\";"), " set aside it's ");
}

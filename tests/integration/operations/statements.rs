//! Statements of the store: Postgres prepares each with the migrated schema.
//!
//! They are read from the sources: literals, or texts that `concat!`, `format!` and the macros of
//! the store make of literals, that begin with a comment such as `-- outbox.claim`.

use crate::meta::architecture::{root, sources};
use crate::meta::rust_source::{Token, tokens};
use shared::store::CAPPED_TABLES;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use std::collections::{BTreeMap, BTreeSet};
use tests::test_env::{Size, TestEnv};

/// Values of `{table}` in statements on several tables, with a slot of each rotating table.
const TABLES: [(&str, &[&str]); 4] = [
    ("connections.delete_traffic", &["dead_letters", "delivery_log_0"]),
    ("retention.is_filled", &["processed_keys_0"]),
    ("retention.count_capped", &CAPPED_TABLES),
    ("retention.delete_capped", &CAPPED_TABLES),
];

/// Named statement of the store.
#[derive(Debug)]
struct Statement {
    name: String,
    file: String,
    sql: String,
}

/// Returns the name in the first line of a statement: `outbox.claim` of `-- outbox.claim (…)`.
fn name_of(sql: &str) -> Option<&str> {
    let name = sql.strip_prefix("-- ")?.split_whitespace().next()?;
    let (table, verb) = name.split_once('.')?;
    let is_word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_lowercase() || c == '_');
    (is_word(table) && is_word(verb)).then_some(name)
}

/// Macro of the store with one rule, which expands to a literal.
#[derive(Debug, Clone)]
struct Macro {
    parameters: Vec<String>,
    body: Vec<Token>,
}

/// Tokens of a file without comments, with the macros and text constants that it defines.
struct File {
    name: String,
    tokens: Vec<Token>,
    macros: BTreeMap<String, Macro>,
    /// Macros that other files may use.
    exported: BTreeSet<String>,
}

fn is_sign(tokens: &[Token], at: usize, sign: char) -> bool {
    tokens.get(at) == Some(&Token::Sign(sign))
}

fn word(tokens: &[Token], at: usize) -> Option<&str> {
    match tokens.get(at) {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    }
}

/// Returns the index after the bracket that closes the one at `at`.
fn after_group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    panic!("a bracket is not closed")
}

impl File {
    fn read(name: String, source: &str) -> Self {
        let all = tokens(source).into_iter().filter(|token| !matches!(token, Token::Comment(_)));
        let all: Vec<Token> = all.collect();
        let mut file =
            Self { name, tokens: Vec::new(), macros: BTreeMap::new(), exported: BTreeSet::new() };
        let mut at = 0;
        while at < all.len() {
            if word(&all, at) == Some("macro_rules") {
                let (end, name) = (after_group(&all, at + 3), word(&all, at + 2).expect("a name"));
                let made = Self::read_macro(&all[at + 4..end - 1]);
                file.macros.insert(name.to_owned(), made);
                at = end;
                continue;
            }
            // `pub(super) use interval;`
            if word(&all, at) == Some("use") && at > 0 && is_sign(&all, at - 1, ')') {
                file.exported.extend(word(&all, at + 1).map(str::to_owned));
            }
            file.tokens.push(all[at].clone());
            at += 1;
        }
        file
    }

    /// Reads `($name:literal, …) => { body }`.
    fn read_macro(rule: &[Token]) -> Macro {
        let end = after_group(rule, 0);
        let dollars = (0..end).filter(|at| is_sign(rule, *at, '$'));
        let parameters = dollars.filter_map(|at| word(rule, at + 1)).map(str::to_owned).collect();
        // `=` and `>` are before the body.
        let body = rule[end + 3..after_group(rule, end + 2) - 1].to_vec();
        Macro { parameters, body }
    }

    /// Returns the value of `const <name>: &str = …`.
    fn constant(&self, name: &str, all: &[Self]) -> Option<String> {
        let mut places = 1..self.tokens.len();
        let at = places.find(|at| {
            word(&self.tokens, *at) == Some(name) && word(&self.tokens, *at - 1) == Some("const")
        })?;
        let equals = (at..self.tokens.len()).find(|at| is_sign(&self.tokens, *at, '='))?;
        Some(self.evaluate(&self.tokens, equals + 1, &BTreeMap::new(), all)?.0)
    }

    /// Returns the macro of a name: the file's own, or the only one that another file exports.
    fn find_macro<'f>(&'f self, name: &str, all: &'f [Self]) -> Option<&'f Macro> {
        let own = self.macros.get(name);
        own.or_else(|| {
            let others = all.iter().filter(|file| file.exported.contains(name));
            let others: Vec<_> = others.filter_map(|file| file.macros.get(name)).collect();
            assert!(others.len() <= 1, "{}: which {name}! it uses is not clear", self.name);
            others.first().copied()
        })
    }

    /// Returns the text of an expression and the index after it, or `None` if the expression is not
    /// made of literals.
    fn evaluate(
        &self,
        tokens: &[Token],
        at: usize,
        parameters: &BTreeMap<String, String>,
        all: &[Self],
    ) -> Option<(String, usize)> {
        match tokens.get(at)? {
            Token::Text(text) => Some((text.clone(), at + 1)),
            Token::Sign('$') => Some((parameters.get(word(tokens, at + 1)?)?.clone(), at + 2)),
            Token::Word(name) if is_sign(tokens, at + 1, '!') && is_sign(tokens, at + 2, '(') => {
                let end = after_group(tokens, at + 2);
                let (mut arguments, mut next) = (Vec::new(), at + 3);
                while next < end - 1 {
                    let (argument, after) = self.evaluate(tokens, next, parameters, all)?;
                    arguments.push(argument);
                    next = after + usize::from(is_sign(tokens, after, ','));
                }
                let text = match name.as_str() {
                    "concat" => arguments.concat(),
                    "format" => match &arguments[..] {
                        [text] if name_of(text).is_some() => self.interpolate(text, all),
                        _ => return None,
                    },
                    name => {
                        let made = self.find_macro(name, all)?;
                        let names = made.parameters.iter().cloned();
                        let parameters = names.zip(arguments).collect();
                        self.evaluate(&made.body, 0, &parameters, all)?.0
                    }
                };
                Some((text, end))
            }
            _ => None,
        }
    }

    /// Replaces `{NAME}` by the value of a constant. `{table}` stays.
    fn interpolate(&self, text: &str, all: &[Self]) -> String {
        let mut made = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("a closed placeholder");
            made += before;
            match self.constant(name, all) {
                Some(value) => made += &value,
                None => made += &format!("{{{name}}}"),
            }
            rest = after;
        }
        made + rest
    }

    fn statements(&self, all: &[Self]) -> Vec<Statement> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.tokens.len() {
            let made = self.evaluate(&self.tokens, at, &BTreeMap::new(), all);
            let named = made.as_ref().and_then(|(sql, _)| name_of(sql)).map(str::to_owned);
            match (made, named) {
                (Some((sql, next)), Some(name)) => {
                    found.push(Statement { name, file: self.name.clone(), sql });
                    at = next;
                }
                _ => at += 1,
            }
        }
        found
    }

    /// Returns the literals that are passed to sqlx without a name.
    fn unnamed(&self) -> Vec<&str> {
        const CALLS: [&str; 4] = ["query", "query_as", "query_scalar", "raw_sql"];
        let calls = (0..self.tokens.len())
            .filter(|at| word(&self.tokens, *at).is_some_and(|call| CALLS.contains(&call)));
        // The parenthesis follows the name, or the types: `query_as::<_, (i32, i32)>(`.
        let opened = calls.filter_map(|at| {
            if is_sign(&self.tokens, at + 1, '(') {
                return Some(at + 1);
            }
            let typed = "::<".chars().zip(at + 1..).all(|(c, at)| is_sign(&self.tokens, at, c));
            let mut after = at + 1..self.tokens.len();
            let closed =
                |at: &usize| is_sign(&self.tokens, *at - 1, '>') && is_sign(&self.tokens, *at, '(');
            typed.then(|| after.find(closed)).flatten()
        });
        let texts = opened.filter_map(|at| match self.tokens.get(at + 1) {
            Some(Token::Text(text)) if name_of(text).is_none() => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }
}

/// Returns the files of the store.
fn store() -> Vec<File> {
    let folder = root().join("shared/src/store");
    let files = sources(&folder).into_iter().map(|path| {
        let name = path.strip_prefix(&folder).expect("below it").display().to_string();
        File::read(name, &std::fs::read_to_string(&path).expect("a source file"))
    });
    files.collect()
}

/// Returns all statements. One on several tables is returned for each of [`TABLES`].
fn statements() -> Vec<Statement> {
    let files = store();
    let mut found = Vec::new();
    for statement in files.iter().flat_map(|file| file.statements(&files)) {
        match TABLES.iter().find(|(name, _)| *name == statement.name) {
            None => found.push(statement),
            Some((_, tables)) => found.extend(tables.iter().map(|table| Statement {
                name: statement.name.clone(),
                file: statement.file.clone(),
                sql: statement.sql.replace("{table}", table),
            })),
        }
    }
    found
}

async fn prepare(env: &TestEnv, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = env.pool.acquire().await?;
    (&mut *connection).prepare(AssertSqlSafe(sql).into_sql_str()).await.map(drop)
}

/// Postgres prepares each statement with the migrated schema.
#[tokio::test]
async fn prepares_every_statement() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let env = TestEnv::without_processes(size).await.expect("servers");
    let statements = statements();
    assert!(statements.len() >= 190, "{}", statements.len());
    for expected in
        ["deliveries.claim", "deliveries.end_by_operator", "intake.commit", "outbox.claim"]
    {
        assert!(statements.iter().any(|statement| statement.name == expected), "{expected}");
    }
    let mut wrong = Vec::new();
    for Statement { name, file, sql } in statements {
        if let Err(error) = prepare(&env, sql).await {
            wrong.push(format!("{file}: {name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Unknown columns and tables and wrong types are errors.
    for sql in [
        "select no_such_column from connections",
        "delete from no_such_table",
        "select id from connections where version = $1 || 'x'",
    ] {
        assert!(prepare(&env, sql.to_owned()).await.is_err(), "{sql}");
    }
}

/// Each statement of the store has a name of its own.
#[test]
fn names_every_statement_once() {
    let files = store();
    for file in &files {
        assert_eq!(file.unnamed(), [""; 0], "{}", file.name);
    }
    let mut names = BTreeMap::new();
    for Statement { name, file, .. } in files.iter().flat_map(|file| file.statements(&files)) {
        if let Some(other) = names.insert(name.clone(), file.clone()) {
            panic!("{name} is in {other} and in {file}");
        }
    }
}

/// Statements of literals, `concat!`, `format!` and macros are found with their text, and unnamed
/// ones are reported.
#[test]
fn evaluates_macros_of_statements() {
    let library = r#"
        macro_rules! tail { () => { concat!(" where ", "id = $1") }; }
        pub(super) use tail;
    "#;
    let source = r#"
        const COLUMNS: &str = "id, name";
        macro_rules! ended { ($name:literal, $rows:literal) => { concat!("-- ", $name, "\n", $rows, tail!()) }; }
        const END: &str = ended!("t.end", "delete from t");
        fn f() {
            run("-- t.list\n select '{}' from t"); // "-- t.comment"
            run(concat!("-- t.get (a note)\n select * from t", tail!()));
            run(format!("-- t.columns\n select {COLUMNS} from {table}"));
            run(format!("{} of {}", a, b), "no statement", "--flag");
            sqlx::query("select 1");
            sqlx::query_as::<_, (i32, i32)>("select 2");
            sqlx::query_scalar("-- t.three\n select 3");
        }
    "#;
    let files = [File::read("a".into(), library), File::read("b".into(), source)];
    let found: Vec<(String, String)> =
        files[1].statements(&files).into_iter().map(|found| (found.name, found.sql)).collect();
    let expected = [
        ("t.end", "-- t.end\ndelete from t where id = $1"),
        ("t.list", "-- t.list\n select '{}' from t"),
        ("t.get", "-- t.get (a note)\n select * from t where id = $1"),
        ("t.columns", "-- t.columns\n select id, name from {table}"),
        ("t.three", "-- t.three\n select 3"),
    ];
    assert_eq!(found, expected.map(|(name, sql)| (name.to_owned(), sql.to_owned())));
    assert_eq!(files[1].unnamed(), ["select 1", "select 2"]);
}

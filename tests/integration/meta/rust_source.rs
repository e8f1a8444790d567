//! Scanner of Rust sources: comments, string literals and other tokens.

use std::{iter::Peekable, str::Chars};

/// Token of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// Comment, with its marks.
    Comment(String),
    /// Value of a string literal.
    Text(String),
    /// Identifier, keyword or number.
    Word(String),
    /// Any other character but white space.
    Sign(char),
}

/// Returns the tokens of a source, without character literals and lifetimes.
pub fn tokens(source: &str) -> Vec<Token> {
    let (mut found, mut rest) = (Vec::new(), source.chars().peekable());
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => found.push(line_comment(&mut rest)),
            '/' if rest.peek() == Some(&'*') => found.push(block_comment(&mut rest)),
            '"' => found.push(Token::Text(text(&mut rest))),
            '\'' => quote(&mut rest),
            c if c.is_alphanumeric() || c == '_' => {
                let word = word(c, &mut rest);
                let prefix = ["r", "b", "c", "br", "cr"].contains(&word.as_str());
                match rest.peek() {
                    Some('"' | '#') if prefix && word.ends_with('r') => {
                        found.extend(raw_text(&mut rest));
                    }
                    Some('"') if prefix => {
                        rest.next();
                        found.push(Token::Text(text(&mut rest)));
                    }
                    _ => found.push(Token::Word(word)),
                }
            }
            c if c.is_whitespace() => {}
            c => found.push(Token::Sign(c)),
        }
    }
    found
}

fn word(first: char, rest: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::from(first);
    while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
        word.push(c);
    }
    word
}

fn line_comment(rest: &mut Peekable<Chars<'_>>) -> Token {
    let mut comment = String::from('/');
    while let Some(c) = rest.next_if(|c| *c != '\n') {
        comment.push(c);
    }
    Token::Comment(comment)
}

/// Reads a block comment, which may nest.
fn block_comment(rest: &mut Peekable<Chars<'_>>) -> Token {
    let (mut comment, mut depth, mut before) = (String::from('/'), 0, '/');
    for c in rest.by_ref() {
        comment.push(c);
        match (before, c) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                before = c;
                continue;
            }
        }
        before = ' ';
        if depth == 0 {
            break;
        }
    }
    Token::Comment(comment)
}

/// Reads a literal up to its end, and resolves its escapes.
fn text(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut value = String::new();
    while let Some(c) = rest.next() {
        match c {
            '"' => break,
            '\\' => match rest.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some('0') => value.push('\0'),
                // The literal continues after the white space of the next line.
                Some('\n') => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                Some('x') => value.extend(code(rest.by_ref().take(2).collect())),
                Some('u') => {
                    value.extend(code(rest.by_ref().skip(1).take_while(|c| *c != '}').collect()));
                }
                Some(c) => value.push(c),
                None => {}
            },
            c => value.push(c),
        }
    }
    value
}

fn code(hex: String) -> Option<char> {
    u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32)
}

/// Reads a raw literal after its `r`. Returns `None` for a raw identifier such as `r#type`.
fn raw_text(rest: &mut Peekable<Chars<'_>>) -> Option<Token> {
    let mut hashes = String::new();
    while let Some(c) = rest.next_if_eq(&'#') {
        hashes.push(c);
    }
    rest.next_if_eq(&'"')?;
    let (mut value, end) = (String::new(), format!("\"{hashes}"));
    while !value.ends_with(&end) {
        value.push(rest.next()?);
    }
    value.truncate(value.len() - end.len());
    Some(Token::Text(value))
}

/// Skips a character literal; a lifetime has no second quote.
fn quote(rest: &mut Peekable<Chars<'_>>) {
    let mut ahead = rest.clone();
    match ahead.next() {
        Some('\\') => {
            ahead.next();
            while ahead.next_if(|c| *c != '\'').is_some() {}
            ahead.next();
            *rest = ahead;
        }
        Some(_) if ahead.next() == Some('\'') => *rest = ahead,
        _ => {}
    }
}

/// Comments, literals of each kind and code are separated.
#[test]
fn separates_comments_and_literals() {
    let source = r####"
        //! Module. "no literal"
        /* outer /* inner */ 'still' */
        let a: &'static str = "one // \"two\" \
             \x41\u{42}\n"; // end
        let b = ('"', '\'', '\\', b'\n', r#"raw "x" // y"#, br"z\", c"w", r#type);
    "####;
    let (mut comments, mut texts) = (Vec::new(), Vec::new());
    let mut code = String::new();
    for token in tokens(source) {
        match token {
            Token::Comment(comment) => comments.push(comment),
            Token::Text(text) => texts.push(text),
            Token::Word(word) => code += &format!("{word} "),
            Token::Sign(sign) => code.push(sign),
        }
    }
    assert_eq!(
        comments,
        ["//! Module. \"no literal\"", "/* outer /* inner */ 'still' */", "// end"]
    );
    assert_eq!(texts, ["one // \"two\" AB\n", "raw \"x\" // y", "z\\", "w"]);
    assert_eq!(code, "let a :&static str =;let b =(,,,b ,,,,type );");
}

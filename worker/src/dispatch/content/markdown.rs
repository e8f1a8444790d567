//! Converter of Markdown that arrives in pieces. Pure.
//!
//! Text is not changed, since Slack renders Markdown, with three exceptions. Tables become blocks,
//! so their lines are held back until the table ends. Tables that Slack would refuse become code
//! blocks. Broadcasts become plain text. Only lines that begin with `|` belong to tables: a header
//! without it is recognized by the next line, when it may have been sent.

use super::{
    broadcasts::Broadcasts,
    chunks::{Chunk, push},
    fences::Fences,
    tables::{Rows, code_block, convert},
};

/// Bytes of an unfinished table above which its lines are converted before it ends.
const KEPT_BYTES_MAX: usize = 6_000;
/// Maximum number of table blocks of an answer, since each needs its own message. Further tables
/// become code blocks.
const TABLES_MAX: usize = 10;

/// State of the conversion between two pieces.
#[derive(Debug, Clone, Default)]
pub struct Markdown {
    fences: Fences,
    /// `None` if broadcasts are allowed.
    broadcasts: Option<Broadcasts>,
    /// Header of an unfinished table whose first lines were converted.
    header: Option<String>,
    /// Number of table blocks so far.
    tables: usize,
}

impl Markdown {
    /// Returns the state at the beginning of an answer.
    pub fn new(allows_broadcasts: bool) -> Self {
        let broadcasts = (!allows_broadcasts).then(Broadcasts::default);
        Self { broadcasts, ..Self::default() }
    }

    /// Sets the state to the end of a text that was sent.
    pub fn resume(&mut self, sent: &str) {
        self.fences.push(sent);
        if let Some(broadcasts) = &mut self.broadcasts {
            broadcasts.remove(sent);
        }
    }

    /// Restarts the answer in another message.
    pub fn reset(&mut self) {
        self.fences = Fences::default();
        self.header = None;
    }

    /// Returns the length in bytes of the text that can be read. The rest may belong to an
    /// unfinished table.
    pub fn readable_len(&self, text: &str) -> usize {
        let mut fences = self.fences.clone();
        let (mut table, mut at) = (None, 0);
        for line in text.split_inclusive('\n') {
            let is_row = is_row(&fences, line, table.is_some());
            table = if is_row { table.or(Some(at)) } else { None };
            fences.push(line);
            at += line.len();
        }
        let from = table.unwrap_or(text.len());
        match text.len() - from > KEPT_BYTES_MAX {
            // Whole lines of the unfinished table.
            true => {
                text.rfind('\n').map(|end| end + 1).filter(|end| *end > from).unwrap_or(text.len())
            }
            false => from,
        }
    }

    /// Converts the next piece of text. A table at its end may continue in the next piece.
    pub fn read(&mut self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let (mut plain, mut rows) = (String::new(), String::new());
        for line in text.split_inclusive('\n') {
            if is_row(&self.fences, line, !rows.is_empty()) {
                rows.push_str(line.trim_start());
                continue;
            }
            self.end_table(&mut rows, &mut plain, &mut chunks);
            self.header = None;
            self.fences.push(line);
            plain.push_str(line);
        }
        self.end_table(&mut rows, &mut plain, &mut chunks);
        self.add_text(&mut plain, &mut chunks);
        chunks
    }

    fn end_table(&mut self, rows: &mut String, plain: &mut String, chunks: &mut Vec<Chunk>) {
        if rows.is_empty() {
            return;
        }
        let rows = std::mem::take(rows);
        let source = self.header.as_deref().filter(|_| plain.is_empty()).unwrap_or_default();
        let source = format!("{source}{rows}");
        let converted = match convert(&source) {
            Rows::Tables(tables) if self.tables + tables.len() > TABLES_MAX => Rows::Code,
            converted => converted,
        };
        self.header = match &converted {
            Rows::Text => None,
            Rows::Code | Rows::Tables(_) => Some(source.split_inclusive('\n').take(2).collect()),
        };
        match converted {
            Rows::Text => {
                self.fences.push(&rows);
                plain.push_str(&rows);
            }
            Rows::Code => plain.push_str(&code_block(&source)),
            Rows::Tables(tables) => {
                self.add_text(plain, chunks);
                self.tables += tables.len();
                let blocks = |table| Chunk::Blocks { blocks: vec![table] };
                chunks.extend(tables.into_iter().map(blocks));
            }
        }
    }

    fn add_text(&mut self, plain: &mut String, chunks: &mut Vec<Chunk>) {
        let text = std::mem::take(plain);
        if !text.is_empty() {
            let text = match &mut self.broadcasts {
                Some(broadcasts) => broadcasts.remove(&text),
                None => text,
            };
            push(chunks, Chunk::MarkdownText { text });
        }
    }
}

/// Returns whether a line at the position of `fences` may be a row of a table.
fn is_row(fences: &Fences, line: &str, is_in_table: bool) -> bool {
    let begins = line.trim_start();
    let may_begin_row = is_in_table && begins.is_empty() && !line.ends_with('\n');
    fences.is_at_line_start() && !fences.is_open() && (begins.starts_with('|') || may_begin_row)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "| a | b |\n|---|---|\n| 1 | 2 |\n";

    /// Returns the text of each chunk, or `T<number of rows>` for a table.
    fn shape(chunks: &[Chunk]) -> Vec<String> {
        let shape = |chunk: &Chunk| match chunk {
            Chunk::Blocks { blocks } => {
                format!("T{}", blocks[0]["rows"].as_array().map_or(0, Vec::len))
            }
            other => other.text().to_owned(),
        };
        chunks.iter().map(shape).collect()
    }

    fn read(text: &str) -> Vec<String> {
        shape(&Markdown::new(false).read(text))
    }

    #[test]
    fn converts_tables_to_blocks() {
        assert_eq!(read(&format!("Look:\n{TABLE}\nDone")), ["Look:\n", "T2", "\nDone"]);
        assert_eq!(read(&format!("- x\n  {}", TABLE.replace('\n', "\n  "))), ["- x\n", "T2"]);
        for text in ["a | b", "| a |\n| b |", &format!("```\n{TABLE}```"), &format!("x {TABLE}")] {
            assert_eq!(read(text).concat(), text, "{text}");
        }
        let wide = format!("|{}\n|{}\n", "a|".repeat(21), "-|".repeat(21));
        assert_eq!(read(&wide), [format!("```\n{wide}```\n")]);
        let many = read(&format!("{TABLE}\n").repeat(TABLES_MAX + 1));
        assert_eq!(many.iter().filter(|shape| *shape == "T2").count(), TABLES_MAX);
        assert!(many.last().is_some_and(|last| last.contains("```")), "{many:?}");
    }

    /// A table that arrives in pieces becomes one block.
    #[test]
    fn keeps_table_until_it_ends() {
        let text = format!("Look:\n{TABLE}\nDone");
        for size in 1..text.len() {
            let (mut markdown, mut kept, mut chunks) =
                (Markdown::new(false), String::new(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                kept.push_str(std::str::from_utf8(piece).expect("ASCII"));
                let end = markdown.readable_len(&kept);
                markdown.read(&kept[..end]).into_iter().for_each(|chunk| push(&mut chunks, chunk));
                kept.drain(..end);
            }
            markdown.read(&kept).into_iter().for_each(|chunk| push(&mut chunks, chunk));
            assert_eq!(shape(&chunks), ["Look:\n", "T2", "\nDone"], "{size}");
        }
    }

    /// A long table is split, each part with its header.
    #[test]
    fn sends_long_table_in_pieces() {
        let mut markdown = Markdown::new(false);
        let row = format!("| {} | x |\n", "y".repeat(100));
        let text = format!("{TABLE}{}", row.repeat(80));
        let end = markdown.readable_len(&text);
        assert!(end > 0 && text[..end].ends_with('\n'));
        let first = markdown.read(&text[..end]);
        let second = markdown.read("| 3 | 4 |\n\n");
        let Chunk::Blocks { blocks } = &second[0] else { panic!("{second:?}") };
        assert_eq!((shape(&first).len(), shape(&second)[0].as_str()), (2, "T2"));
        assert_eq!(blocks[0]["rows"][0][0]["text"], "a");
    }
}

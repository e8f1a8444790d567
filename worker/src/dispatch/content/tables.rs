//! Conversion of Markdown tables, which Slack does not render, to Slack's table blocks. Pure.

use super::broadcasts::plain_markdown;
use pulldown_cmark::{Alignment, Event, Options, Parser, Tag, TagEnd};
use reqwest::Url;
use serde_json::{Value, json};

/// Slack's limit of rows in a table.
const ROWS_MAX: usize = 100;
/// Slack's limit of cells in a row.
const CELLS_MAX: usize = 20;
/// Maximum bytes of the rows of a table, as JSON. Slack's limit is 10,000 characters for all tables
/// of a message.
const ROWS_BYTES_MAX: usize = 8_000;
/// Maximum bytes of a link in a cell.
const LINK_BYTES_MAX: usize = 2_000;

/// Conversion of lines that look like a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// The lines are no table.
    Text,
    /// The table exceeds Slack's limits, and is shown as a code block.
    Code,
    /// Table blocks: one, or several with the same header if Slack's limits require it.
    Tables(Vec<Value>),
}

/// Style and link of a piece of text.
#[derive(Debug, Clone, Default)]
struct Style {
    bold: usize,
    italic: usize,
    strike: usize,
    link: Option<String>,
}

/// Converts lines that look like a table.
pub fn convert(source: &str) -> Rows {
    let Some((rows, settings)) = parse_table(source) else { return Rows::Text };
    let Some((header, body)) = rows.split_first().filter(|_| settings.len() <= CELLS_MAX) else {
        return Rows::Code;
    };
    let size = |row: &Value| row.to_string().len();
    let table = |rows: &[Value]| {
        let rows: Vec<&Value> = std::iter::once(header).chain(rows).collect();
        json!({ "type": "table", "rows": rows, "column_settings": settings })
    };
    let (mut tables, mut from, mut bytes) = (Vec::new(), 0, size(header));
    for (at, row) in body.iter().enumerate() {
        if size(header) + size(row) > ROWS_BYTES_MAX {
            return Rows::Code;
        }
        if at - from == ROWS_MAX - 1 || bytes + size(row) > ROWS_BYTES_MAX {
            tables.push(table(&body[from..at]));
            (from, bytes) = (at, size(header));
        }
        bytes += size(row);
    }
    if bytes > ROWS_BYTES_MAX {
        return Rows::Code; // the header alone is too large
    }
    tables.push(table(&body[from..]));
    Rows::Tables(tables)
}

/// Parses a table. Returns its rows and the settings of its columns, `None` if the source is not
/// exactly one table.
fn parse_table(source: &str) -> Option<(Vec<Value>, Vec<Value>)> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), Vec::new());
    let (mut settings, mut style, mut is_in_table) = (None, Style::default(), false);
    for event in Parser::new_ext(source, options) {
        match event {
            Event::Start(Tag::Table(alignments)) if settings.is_none() => {
                settings = Some(alignments.iter().map(column_setting).collect());
                is_in_table = true;
            }
            Event::End(TagEnd::Table) => is_in_table = false,
            _ if !is_in_table => return None,
            Event::End(TagEnd::TableHead | TagEnd::TableRow) => {
                rows.push(Value::Array(std::mem::take(&mut row)));
            }
            Event::End(TagEnd::TableCell) => row.push(finish_cell(std::mem::take(&mut cell))),
            Event::Start(Tag::Strong) => style.bold += 1,
            Event::End(TagEnd::Strong) => style.bold -= 1,
            Event::Start(Tag::Emphasis) => style.italic += 1,
            Event::End(TagEnd::Emphasis) => style.italic -= 1,
            Event::Start(Tag::Strikethrough) => style.strike += 1,
            Event::End(TagEnd::Strikethrough) => style.strike -= 1,
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                style.link = accepted_url(&dest_url);
            }
            Event::End(TagEnd::Link | TagEnd::Image) => style.link = None,
            Event::Text(text) => cell.push(element(&text, &style, false)),
            Event::Code(text) => cell.push(element(&text, &style, true)),
            Event::InlineHtml(html) if is_line_break(&html) => {
                cell.push(element("\n", &Style::default(), false));
            }
            Event::InlineHtml(html) => cell.push(element(&html, &style, false)),
            Event::SoftBreak | Event::HardBreak => {
                cell.push(element(" ", &Style::default(), false));
            }
            _ => {}
        }
    }
    settings.map(|settings| (rows, settings))
}

fn is_line_break(html: &str) -> bool {
    let name = html.trim_matches(['<', '>', '/', ' ']);
    name.eq_ignore_ascii_case("br")
}

/// Returns the URL of a link, `None` if Slack would refuse it.
fn accepted_url(address: &str) -> Option<String> {
    let url = Url::parse(address).ok()?;
    let is_known = matches!(url.scheme(), "http" | "https" | "mailto");
    (is_known && url.as_str().len() <= LINK_BYTES_MAX).then(|| url.to_string())
}

fn column_setting(alignment: &Alignment) -> Value {
    let align = match alignment {
        Alignment::None | Alignment::Left => "left",
        Alignment::Center => "center",
        Alignment::Right => "right",
    };
    json!({ "align": align, "is_wrapped": true })
}

fn element(text: &str, style: &Style, is_code: bool) -> Value {
    let mut element = json!({ "type": "text", "text": plain_markdown(text) });
    if let Some(url) = &style.link {
        element["type"] = "link".into();
        element["url"] = url.as_str().into();
    }
    for (name, is_set) in [
        ("bold", style.bold > 0),
        ("italic", style.italic > 0),
        ("strike", style.strike > 0),
        ("code", is_code),
    ] {
        if is_set {
            element["style"][name] = true.into();
        }
    }
    element
}

/// Returns a cell: plain text if it has no styles and links, otherwise rich text. Never empty,
/// since Slack refuses empty cells.
fn finish_cell(elements: Vec<Value>) -> Value {
    let text_of = |element: &Value| element["text"].as_str().unwrap_or_default().to_owned();
    let is_plain = |element: &Value| element["type"] == "text" && element["style"].is_null();
    let elements: Vec<Value> =
        elements.into_iter().filter(|element| !text_of(element).is_empty()).collect();
    if !elements.is_empty() && !elements.iter().all(is_plain) {
        let section = json!({ "type": "rich_text_section", "elements": elements });
        return json!({ "type": "rich_text", "elements": [section] });
    }
    let text: String = elements.iter().map(text_of).collect();
    let text = plain_markdown(&text); // mentions that span several elements
    json!({ "type": "raw_text", "text": if text.trim().is_empty() { " ".to_owned() } else { text } })
}

/// Returns the cells of a table block as lines of text. Empty for other blocks.
pub fn text_of_table(block: &Value) -> String {
    let cell_text = |cell: &Value| match cell["text"].as_str() {
        Some(text) => text.to_owned(),
        None => {
            let sections = cell["elements"].as_array().into_iter().flatten();
            let elements =
                sections.flat_map(|section| section["elements"].as_array().into_iter().flatten());
            elements.filter_map(|element| element["text"].as_str()).collect()
        }
    };
    let rows = block["rows"].as_array().into_iter().flatten().filter(|_| block["type"] == "table");
    let line = |row: &Value| {
        let cells: Vec<String> = row
            .as_array()
            .into_iter()
            .flatten()
            .map(|cell| cell_text(cell).replace('\n', " "))
            .collect();
        cells.join(" | ") + "\n"
    };
    rows.map(line).collect()
}

/// Returns a Markdown code block. Its fence is longer than any run of backticks in the text.
pub fn code_block(text: &str) -> String {
    let (mut longest, mut length) = (0, 0);
    for c in text.chars() {
        length = if c == '`' { length + 1 } else { 0 };
        longest = longest.max(length);
    }
    let fence = "`".repeat(longest.max(2) + 1);
    let line_end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}\n{text}{line_end}{fence}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(source: &str) -> Vec<Value> {
        match convert(source) {
            Rows::Tables(tables) => tables,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn converts_cells() {
        let source =
            "| a | **b** x | `c` |\n|:--|--:|---|\n| [d](https://d.example/) | | 1<br>2 |\n| e |";
        let raw = |text: &str| json!({ "type": "raw_text", "text": text });
        let rich = |elements: Value| json!({ "type": "rich_text", "elements": [{ "type": "rich_text_section", "elements": elements }] });
        let bold = json!({ "type": "text", "text": "b", "style": { "bold": true } });
        let code = json!({ "type": "text", "text": "c", "style": { "code": true } });
        let link = json!({ "type": "link", "text": "d", "url": "https://d.example/" });
        let plain = json!({ "type": "text", "text": " x" });
        let table = &tables(source)[0];
        assert_eq!(
            table["rows"],
            json!([
                [raw("a"), rich(json!([bold, plain])), rich(json!([code]))],
                [rich(json!([link])), raw(" "), raw("1\n2")],
                [raw("e"), raw(" "), raw(" ")],
            ])
        );
        let aligns: Vec<&Value> = table["column_settings"]
            .as_array()
            .expect("columns")
            .iter()
            .map(|c| &c["align"])
            .collect();
        assert_eq!(aligns, ["left", "right", "left"]);
        assert_eq!(text_of_table(table), "a | b x | c\nd |   | 1 2\ne |   |  \n");
        assert_eq!(text_of_table(&json!({ "type": "section" })), "");
    }

    #[test]
    fn recognizes_tables_only() {
        for source in ["| a |", "| a |\n| b |\n", "a\n\n| a |\n|---|\n", "| a |\n|---|\n\nb"] {
            assert_eq!(convert(source), Rows::Text, "{source}");
        }
        let wide = |n: usize| format!("|{}\n|{}\n", "a|".repeat(n), "-|".repeat(n));
        assert_eq!(tables(&wide(CELLS_MAX)).len(), 1);
        assert_eq!(convert(&wide(CELLS_MAX + 1)), Rows::Code);
        let long = format!("|a|\n|-|\n|{}|\n", "x".repeat(ROWS_BYTES_MAX));
        assert_eq!(convert(&long), Rows::Code);
    }

    #[test]
    fn repeats_header_above_limits() {
        let source = format!("|n|\n|-|\n{}", "|1|\n".repeat(150));
        let tables = tables(&source);
        let rows: Vec<usize> =
            tables.iter().map(|t| t["rows"].as_array().map_or(0, Vec::len)).collect();
        assert_eq!(rows, [ROWS_MAX, 52]);
        assert!(tables.iter().all(|table| table["rows"][0][0]["text"] == "n"));
    }

    #[test]
    fn encloses_code() {
        assert_eq!(code_block("a"), "```\na\n```\n");
        assert_eq!(code_block("a ```` b\n"), "`````\na ```` b\n`````\n");
    }
}

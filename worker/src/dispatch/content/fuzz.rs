//! Fuzz targets: any Markdown becomes messages within Slack's limits and without broadcasts.

use super::{
    Chunk, Markdown, SegmentPlan, broadcasts::tests::notifies, closing_of, messages, push, render,
};
use serde_json::Value;

/// Pieces of documents, besides single characters.
const PIECES: [&str; 32] = [
    "\n",
    "\n\n",
    "| a | b |\n|---|---|\n",
    "| 1 | **2** |\n",
    "|",
    "|-|\n",
    "```",
    "```rust\n",
    "~~~~\n",
    "`",
    "**",
    "_",
    "~~",
    "# ",
    "- ",
    "1. ",
    "> ",
    "[x](https://x.example/)",
    "![y](z)",
    "<b>",
    "<!channel>",
    "<!here|here>",
    "<!subteam^S1|@team>",
    "@here",
    "@every",
    "one",
    "&#64;",
    "&excl;",
    "\\",
    "<!",
    "channel>",
    "word word word ",
];

fn document(steps: &[(u8, u8, char)]) -> String {
    let mut text = String::new();
    for (piece, times, c) in steps.iter().take(60) {
        match PIECES.get(usize::from(*piece % 40)) {
            // A few pieces are long.
            Some(piece) if *times > 252 => text.push_str(&piece.repeat(1_000)),
            Some(piece) => text.push_str(&piece.repeat(usize::from(*times % 4) + 1)),
            None => text.push(*c),
        }
    }
    text
}

fn chars(value: &Value) -> usize {
    match value {
        Value::String(text) => text.chars().count(),
        Value::Array(items) => items.iter().map(chars).sum(),
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| *name != "type").map(|(_, value)| chars(value)).sum()
        }
        _ => 0,
    }
}

/// Checks a message against Slack's limits.
fn check(message: &Value) {
    let blocks: Vec<&Value> = message["blocks"].as_array().into_iter().flatten().collect();
    assert!(!message["text"].as_str().unwrap_or_default().trim().is_empty(), "{message}");
    assert!(blocks.len() <= 50, "{} blocks", blocks.len());
    let of = |kind: &str| blocks.iter().filter(|b| b["type"] == kind).copied().collect::<Vec<_>>();
    let markdown: Vec<&str> = of("markdown").iter().filter_map(|b| b["text"].as_str()).collect();
    assert!(markdown.iter().all(|text| !text.trim().is_empty()), "{message}");
    assert!(markdown.iter().map(|text| text.chars().count()).sum::<usize>() <= 12_000);
    assert!(of("table").len() <= 1, "{message}");
    for table in of("table") {
        let rows = table["rows"].as_array().expect("rows");
        assert!((1..=100).contains(&rows.len()));
        assert!(chars(&table["rows"]) <= 10_000);
        for cell in rows.iter().flat_map(|row| row.as_array().expect("cells")) {
            assert!(chars(cell) > 0, "{cell}");
        }
        assert!(rows.iter().all(|row| row.as_array().is_some_and(|row| row.len() <= 20)));
    }
    for text in markdown.into_iter().chain(message["text"].as_str()) {
        assert!(!notifies(text), "{text}");
    }
}

#[test]
fn renders_any_markdown() {
    bolero::check!().with_iterations(1_500).with_type::<Vec<(u8, u8, char)>>().for_each(|steps| {
        messages(&document(steps), &[], false).iter().for_each(check);
    });
}

/// Documents split at any position, and segments ended at any time.
#[test]
fn renders_any_pieces() {
    type Piece = (Vec<(u8, u8, char)>, bool);
    bolero::check!().with_iterations(200).with_type::<Vec<Piece>>().for_each(|pieces| {
        let (mut markdown, mut plan) = (Markdown::new(false), SegmentPlan::new());
        let (mut kept, mut content) = (String::new(), Vec::<Chunk>::new());
        let show = |content: &[Chunk]| {
            if !content.is_empty() {
                check(&render(content, &closing_of(content), None));
            }
        };
        let count = pieces.len().min(20);
        for (i, (steps, ends)) in pieces.iter().take(count).enumerate() {
            kept.push_str(&document(steps));
            let end = if i + 1 == count { kept.len() } else { markdown.readable_len(&kept) };
            let chunks = markdown.read(&kept[..end]);
            kept.drain(..end);
            if *ends {
                plan.end_segment();
            }
            for part in plan.add(chunks) {
                if part.begins {
                    show(&std::mem::take(&mut content));
                }
                part.chunks.into_iter().for_each(|chunk| push(&mut content, chunk));
            }
            show(&content);
        }
    });
}

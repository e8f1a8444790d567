//! Generated Markdown documents with constructs that a split, a limit or a mention may break in
//! Slack.

use crate::fault::Random;

/// Pieces of which documents consist.
const PIECES: [&str; 38] = [
    "\n",
    "\n\n",
    "\n\n",
    "word ",
    "word word word ",
    "é",
    "𝒳",
    "\n| a | b |\n|---|---|\n",
    "\n| a |\n|:-:|\n| 1 |\n\n",
    "| 1 | **2** `3` [4](https://x.example) |\n",
    "|",
    "\n```\n",
    "\n```rust\nfn main() {}\n",
    "\n~~~~\n",
    "`",
    "**",
    "_",
    "~~",
    "\n# ",
    "\n- ",
    "\n  1. ",
    "\n> ",
    "[x](https://x.example/)",
    "![y](z)",
    "<b>",
    "<!DOCTYPE html>",
    "<!channel>",
    "<!here|here>",
    "<!subteam^S1|@team>",
    "<@U1>",
    "@here",
    "@every",
    "one",
    "&#64;",
    "&excl;",
    "\\",
    "<!",
    "channel>",
];

/// Returns the document of a seed. One of 16 is long.
pub fn document(seed: u64) -> String {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(1));
    let mut text = "Document\n".to_owned();
    let pieces = 1 + random.below(60);
    let is_long = random.below(16) == 0;
    for _ in 0..pieces {
        let times = if is_long && random.below(8) == 0 { 400 } else { 1 + random.below(3) };
        text.push_str(&PIECES[random.below(PIECES.len())].repeat(times));
    }
    text
}

/// Returns the document of a seed in pieces, as an agent streams it.
pub fn pieces(seed: u64) -> Vec<String> {
    let mut random = Random::new(seed.wrapping_add(1));
    let chars: Vec<char> = document(seed).chars().collect();
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let end = (at + 1 + random.below(400)).min(chars.len());
        pieces.push(chars[at..end].iter().collect());
        at = end;
    }
    pieces
}

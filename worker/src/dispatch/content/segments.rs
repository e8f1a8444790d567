//! Plan of segments: splits an answer into messages within Slack's limits. Pure.
//!
//! Slack limits the size of a message, but does not document the limit for streams. It ends a
//! stream after about 300 seconds, even while text arrives; `runs` ends a segment before that.

use super::{
    chunks::{Chunk, is_table, push},
    fences::Fences,
};
use std::collections::HashSet;

/// Maximum bytes of a segment.
pub const SEGMENT_BYTES_MAX: usize = 9_000;
/// Maximum number of cards (tasks and blocks) of a segment.
pub const SEGMENT_CARDS_MAX: usize = 40;
/// Maximum number of cards and texts of a segment. Slack's limit is 50 blocks in a message; each
/// text between cards counts as one.
const SEGMENT_BLOCKS_MAX: usize = 48;
/// Bytes reserved for the text that closes a code fence.
const CLOSING_BYTES: usize = 120;

/// Part of an answer: the content of one call to Slack.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedPart {
    /// True if the part begins a segment.
    pub begins: bool,
    pub chunks: Vec<Chunk>,
}

/// Usage of the current segment.
#[derive(Debug, Clone, Default)]
pub struct SegmentPlan {
    bytes: usize,
    cards: usize,
    /// Number of texts between cards.
    texts: usize,
    /// True if the last block is a text.
    is_in_text: bool,
    /// True if a block is a table. Slack refuses a second one in a message.
    has_table: bool,
    tasks: HashSet<String>,
    fences: Fences,
    /// True if the next part begins a segment.
    begins: bool,
}

impl SegmentPlan {
    /// Returns the plan of an empty answer.
    pub fn new() -> Self {
        Self { begins: true, ..Self::default() }
    }

    /// Returns the plan after the content of a segment. The next part continues it if it is open.
    pub fn resume(chunks: &[Chunk], is_open: bool) -> Self {
        let mut plan = Self::new();
        chunks.iter().for_each(|chunk| plan.count(chunk));
        plan.begins = !is_open;
        plan
    }

    /// Ends the segment. The next part begins another one.
    pub fn end_segment(&mut self) {
        self.begins = true;
    }

    /// Resets an open code fence, when the answer restarts.
    pub fn reset_fences(&mut self) {
        self.fences = Fences::default();
    }

    /// Returns the text that closes an open code fence at the end of the segment.
    pub fn closing(&self) -> String {
        self.fences.closing()
    }

    /// Adds content. Returns its parts: at most one that continues the current segment, and one for
    /// each new segment.
    pub fn add(&mut self, chunks: Vec<Chunk>) -> Vec<PlannedPart> {
        let mut parts = Vec::new();
        for chunk in chunks {
            match chunk {
                Chunk::MarkdownText { text } => self.add_text(&text, &mut parts),
                Chunk::Blocks { blocks } => {
                    for blocks in blocks.chunks(SEGMENT_CARDS_MAX) {
                        let groups = blocks.chunk_by(|_, next| !is_table(next));
                        for blocks in groups {
                            self.add_unsplit(Chunk::Blocks { blocks: blocks.to_vec() }, &mut parts);
                        }
                    }
                }
                task @ Chunk::TaskUpdate { .. } => self.add_unsplit(task, &mut parts),
            }
        }
        parts
    }

    fn add_text(&mut self, mut text: &str, parts: &mut Vec<PlannedPart>) {
        if !self.is_in_text && self.cards + self.texts >= SEGMENT_BLOCKS_MAX {
            self.end_segment();
        }
        while !text.is_empty() {
            let used = if self.begins { self.fences.clone().reopen().len() } else { self.bytes };
            let room = (SEGMENT_BYTES_MAX - CLOSING_BYTES).saturating_sub(used);
            let cut = cut(text, room);
            if cut == 0 && !self.begins {
                self.end_segment();
                continue;
            }
            // At least one character, which fits into a new segment.
            let (now, rest) = text.split_at(cut.max(text.chars().next().map_or(0, char::len_utf8)));
            self.append(Chunk::MarkdownText { text: now.to_owned() }, parts);
            text = rest;
            if !text.is_empty() {
                self.end_segment();
            }
        }
    }

    fn add_unsplit(&mut self, chunk: Chunk, parts: &mut Vec<PlannedPart>) {
        let cards = self.new_cards(&chunk);
        let fits = self.bytes + chunk.size() + CLOSING_BYTES <= SEGMENT_BYTES_MAX
            && self.cards + cards <= SEGMENT_CARDS_MAX
            && self.cards + self.texts + cards <= SEGMENT_BLOCKS_MAX
            && !(self.has_table && chunk.has_table());
        if !fits && !self.begins && self.bytes + self.cards > 0 {
            self.end_segment();
        }
        self.append(chunk, parts);
    }

    fn append(&mut self, chunk: Chunk, parts: &mut Vec<PlannedPart>) {
        if std::mem::take(&mut self.begins) {
            let opening = self.fences.reopen();
            let fences = std::mem::take(&mut self.fences);
            *self = Self { bytes: opening.len(), fences, ..Self::default() };
            let mut chunks = Vec::new();
            if !opening.is_empty() {
                (self.texts, self.is_in_text) = (1, true);
                chunks.push(Chunk::MarkdownText { text: opening });
            }
            parts.push(PlannedPart { begins: true, chunks });
        } else if parts.is_empty() {
            parts.push(PlannedPart { begins: false, chunks: Vec::new() });
        }
        self.count(&chunk);
        if let Some(part) = parts.last_mut() {
            push(&mut part.chunks, chunk);
        }
    }

    fn count(&mut self, chunk: &Chunk) {
        self.bytes += chunk.size();
        let new_cards = self.new_cards(chunk);
        self.cards += new_cards;
        if !chunk.text().is_empty() && !std::mem::replace(&mut self.is_in_text, true) {
            self.texts += 1;
        }
        self.is_in_text &= new_cards == 0;
        self.has_table |= chunk.has_table();
        self.fences.push(chunk.text());
        if let Chunk::TaskUpdate { id, .. } = chunk {
            self.tasks.insert(id.clone());
        }
    }

    fn new_cards(&self, chunk: &Chunk) -> usize {
        match chunk {
            Chunk::MarkdownText { .. } => 0,
            Chunk::TaskUpdate { id, .. } => usize::from(!self.tasks.contains(id)),
            Chunk::Blocks { blocks } => blocks.len(),
        }
    }
}

/// Returns the text that closes an open code fence at the end of a message with this content.
pub fn closing_of(content: &[Chunk]) -> String {
    SegmentPlan::resume(content, true).closing()
}

/// Returns the length of the prefix that fits into `room` bytes. It ends at a paragraph if
/// possible, else at a line, a space, or any character.
fn cut(text: &str, room: usize) -> usize {
    if text.len() <= room {
        return text.len();
    }
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let fits = &text[..end];
    let after =
        |border: &str| fits.rfind(border).map(|at| at + border.len()).filter(|at| *at > end / 2);
    after("\n\n").or_else(|| after("\n")).or_else(|| after(" ")).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<Chunk> {
        vec![Chunk::MarkdownText { text: text.into() }]
    }

    fn task(n: usize) -> Chunk {
        Chunk::TaskUpdate {
            id: n.to_string(),
            title: "x".repeat(200),
            status: "complete".into(),
            details: String::new(),
        }
    }

    #[test]
    fn continues_code_in_next_segment() {
        let mut plan = SegmentPlan::new();
        let code = "let x = 1;\n".repeat(1_000);
        let mut parts = plan.add(text(&format!("Look:\n```rust\n{code}")));
        assert_eq!(parts.len(), 2);
        let second = parts.pop().expect("two").chunks.remove(0);
        assert!(second.text().starts_with("```rust\nlet x = 1;\n"), "{:?}", second.text());
        assert_eq!(plan.closing(), "```");
        let more = plan.add(text("```\ndone"));
        assert_eq!(more, [PlannedPart { begins: false, chunks: text("```\ndone") }]);
        assert_eq!(plan.closing(), "");
    }

    #[test]
    fn begins_segment_above_limit_of_cards() {
        let mut plan = SegmentPlan::new();
        let parts: Vec<PlannedPart> = (0..45).flat_map(|n| plan.add(vec![task(n)])).collect();
        let begins: Vec<usize> = (0..45).filter(|n| parts[*n].begins).collect();
        assert_eq!(begins, [0, SEGMENT_CARDS_MAX]);
        // An update of a task adds no card.
        assert!(!plan.add(vec![task(44)])[0].begins);
    }

    /// The parts have all text that was added, and each segment is within the limits.
    #[test]
    fn keeps_all_text_within_limits() {
        type Step = (u8, u16, bool);
        bolero::check!().with_iterations(60).with_type::<Vec<Step>>().for_each(|steps| {
            let (mut plan, mut added, mut shown) =
                (SegmentPlan::new(), String::new(), String::new());
            let (mut bytes, mut cards) = (0, 0);
            for (kind, length, ends) in steps.iter().take(40) {
                if *ends {
                    plan.end_segment();
                }
                let chunks = match kind % 4 {
                    0 => vec![task(usize::from(*length))],
                    1 => text(&"é".repeat(usize::from(*length % 12_000))),
                    2 => text(&"word \n".repeat(usize::from(*length % 3_000))),
                    _ => text(&"x".repeat(usize::from(*length % 300))),
                };
                added.extend(chunks.iter().map(Chunk::text));
                let parts = plan.add(chunks);
                for (i, part) in parts.iter().enumerate() {
                    assert!(part.begins || i == 0);
                    if part.begins {
                        (bytes, cards) = (0, 0);
                    }
                    for chunk in &part.chunks {
                        bytes += chunk.size();
                        cards += usize::from(matches!(chunk, Chunk::TaskUpdate { .. }));
                        shown.push_str(chunk.text());
                    }
                    assert!(bytes <= SEGMENT_BYTES_MAX && cards <= SEGMENT_CARDS_MAX);
                }
            }
            assert_eq!(shown, added);
        });
    }
}

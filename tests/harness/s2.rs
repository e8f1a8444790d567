//! Decompression of S2, the format in which JetStream compresses complete blocks of a stream.
//!
//! No crate reads S2: it extends Snappy with repeated offsets, which Snappy's readers reject.

use anyhow::{Context, ensure};

/// Beginning of a compressed block of JetStream. The next byte names the algorithm.
const MAGIC: &[u8] = b"cmp";
/// Bytes of the checksum at the end of a block.
const CHECKSUM_BYTES: usize = 8;
/// Bytes of the checksum at the beginning of a chunk.
const CRC_BYTES: usize = 4;

/// Returns true if a block of JetStream is compressed.
#[must_use]
pub fn is_compressed(block: &[u8]) -> bool {
    block.starts_with(MAGIC)
}

/// Decompresses a block of JetStream.
///
/// # Errors
/// If the block is not compressed, or is truncated.
pub fn decompress(block: &[u8]) -> anyhow::Result<Vec<u8>> {
    ensure!(is_compressed(block), "the block is not compressed");
    let end = block.len().checked_sub(CHECKSUM_BYTES).context("the block is truncated")?;
    let (_, mut at) = uvarint(block, MAGIC.len() + 1)?;
    let mut out = Vec::new();
    while at < end {
        let head = block.get(at..at + 4).context("a chunk is truncated")?;
        let length = usize::from(head[1]) | usize::from(head[2]) << 8 | usize::from(head[3]) << 16;
        let data = block.get(at + 4..at + 4 + length).context("a chunk is truncated")?;
        match head[0] {
            0x00 => decode(data.get(CRC_BYTES..).context("a chunk is truncated")?, &mut out)?,
            0x01 => out.extend_from_slice(data.get(CRC_BYTES..).context("a chunk is truncated")?),
            // Stream identifier, padding, and skippable chunks.
            0x80.. => {}
            kind => anyhow::bail!("unknown chunk {kind}"),
        }
        at += 4 + length;
    }
    Ok(out)
}

/// Returns a variable-length integer and the position after it.
fn uvarint(bytes: &[u8], mut at: usize) -> anyhow::Result<(usize, usize)> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = *bytes.get(at).context("a number is truncated")?;
        at += 1;
        ensure!(shift < 63, "a number is too long");
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((value, at));
        }
        shift += 7;
    }
}

/// Returns a little-endian number of `length` bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> anyhow::Result<usize> {
    let bytes = bytes.get(at..at + length).context("a number is truncated")?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// Decompresses one chunk and appends it to `out`.
fn decode(chunk: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
    let (size, mut at) = uvarint(chunk, 0)?;
    let (start, mut offset) = (out.len(), 0);
    while at < chunk.len() {
        let tag = usize::from(chunk[at]);
        at += 1;
        let length = match tag & 3 {
            0 => {
                let extra = (tag >> 2).saturating_sub(59);
                let length = match extra {
                    0 => tag >> 2,
                    extra => number(chunk, at, extra)?,
                };
                at += extra;
                let literal = chunk.get(at..=at + length).context("a literal is truncated")?;
                out.extend_from_slice(literal);
                at += length + 1;
                continue;
            }
            1 => {
                let copied = (tag & 0xe0) << 3 | number(chunk, at, 1)?;
                at += 1;
                let mut length = tag >> 2 & 7;
                if copied == 0 {
                    // Repeats the previous offset. Length codes from 5 are followed by 1 to 3
                    // bytes.
                    let extra = length.saturating_sub(4);
                    if extra > 0 {
                        length = number(chunk, at, extra)? + [4, 1 << 8, 1 << 16][extra - 1];
                        at += extra;
                    }
                } else {
                    offset = copied;
                }
                length + 4
            }
            kind => {
                let bytes = if kind == 2 { 2 } else { 4 };
                offset = number(chunk, at, bytes)?;
                at += bytes;
                (tag >> 2) + 1
            }
        };
        ensure!(offset > 0 && offset <= out.len() - start, "a copy starts before its chunk");
        for _ in 0..length {
            out.push(out[out.len() - offset]);
        }
    }
    ensure!(
        out.len() - start == size,
        "the chunk has {} bytes instead of {size}",
        out.len() - start
    );
    Ok(())
}

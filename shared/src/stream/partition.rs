//! Partitions and lanes of webhooks.
//!
//! Ingest derives a partition below 64 and a lane from a webhook's connection and conversation. The
//! partition depends on connection and channel alone, so that a change of the lanes moves no
//! conversation to another partition. The hash is implemented here because ordering depends on it:
//! every release, process and machine must compute the same values.

use crate::domain::ConnectionId;
use std::{fmt, str::FromStr};

/// Number of partitions. Fixed: a change moves conversations between partitions (see the runbook).
pub const PARTITIONS: u16 = 64;
/// Maximum number of partitions of one connection.
pub const PARTITIONS_PER_CONNECTION: u16 = 8;

/// Partition of the stream: a number below [`PARTITIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u16);

impl Partition {
    /// Returns the partition of a channel, or of webhooks without a channel. A connection uses at
    /// most [`PARTITIONS_PER_CONNECTION`] partitions (shuffle sharding), which bounds the subjects
    /// of the stream and the effect of one connection on others.
    pub fn of(connection: ConnectionId, channel: Option<&str>) -> Self {
        let channel = Fnv::new().add(channel.unwrap_or("_").as_bytes()).finish();
        let share = (channel % u64::from(PARTITIONS_PER_CONNECTION)) as u8;
        let hash = Fnv::new().add(&connection.to_bytes()).add(&[share]);
        Self((hash.finish() % u64::from(PARTITIONS)) as u16)
    }

    /// Returns the number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Returns all partitions.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }
}

impl TryFrom<u16> for Partition {
    type Error = PartitionRangeError;
    fn try_from(number: u16) -> Result<Self, PartitionRangeError> {
        if number < PARTITIONS { Ok(Self(number)) } else { Err(PartitionRangeError) }
    }
}

/// Failure to convert a number of [`PARTITIONS`] or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("partition is not below 64")]
pub struct PartitionRangeError;

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Ordering key of a conversation, 64 bits. Conversations with the same lane wait for each other. A
/// collision has no other effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(u64);

/// Identity of a conversation within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversation<'a> {
    /// Direct message: one conversation for the whole channel.
    DirectMessage(&'a str),
    /// Thread: channel, and `ts` of the parent message. The parent message belongs to it.
    Thread(&'a str, &'a str),
    /// Event about a channel: a person joined, the channel was renamed.
    Channel(&'a str),
    /// Commands and clicks of a person, by channel and user.
    Person(&'a str, &'a str),
    /// View, by its root.
    View(&'a str),
    /// Webhook without a channel, by subject: a user, the team, or an empty text.
    WithoutChannel(&'a str),
}

impl Lane {
    /// Returns the lane of a conversation, equal in every process and release.
    pub fn of(connection: ConnectionId, conversation: Conversation<'_>) -> Self {
        let hash = Fnv::new().add(&connection.to_bytes());
        let hash = match conversation {
            Conversation::DirectMessage(channel) => hash.add(b"dm\0").add(channel.as_bytes()),
            Conversation::Thread(channel, ts) => {
                hash.add(b"thread\0").add(channel.as_bytes()).add(b"\0").add(ts.as_bytes())
            }
            Conversation::Channel(channel) => hash.add(b"channel\0").add(channel.as_bytes()),
            Conversation::Person(channel, user) => {
                hash.add(b"person\0").add(channel.as_bytes()).add(b"\0").add(user.as_bytes())
            }
            Conversation::View(root) => hash.add(b"view\0").add(root.as_bytes()),
            Conversation::WithoutChannel(subject) => hash.add(b"else\0").add(subject.as_bytes()),
        };
        Self(hash.finish())
    }

    /// Returns the lane of the same conversation in a replay, independent of live deliveries.
    pub fn of_replay(self, replay: &str) -> Self {
        Self(Fnv::new().add(&self.0.to_be_bytes()).add(replay.as_bytes()).finish())
    }

    /// Returns the lane as stored in Postgres: the same bits, signed.
    pub fn to_bits(self) -> i64 {
        self.0 as i64
    }

    /// Converts the value of a column.
    pub fn from_bits(bits: i64) -> Self {
        Self(bits as u64)
    }
}

impl FromStr for Lane {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(lower_hex) {
            return Err(());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| ())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// FNV-1a, 64 bit (draft-eastlake-fnv), with the finalizer of MurmurHash3: the low bits of FNV
/// alone, which select the partition, depend on too little of the input.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    fn finish(self) -> u64 {
        let mut h = self.0;
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(n: u8) -> ConnectionId {
        format!("{n:032x}").parse().expect("an id")
    }

    /// A change of these values moves live conversations to other partitions and lanes and breaks
    /// their order.
    #[test]
    fn keeps_partitions_and_lanes() {
        let known = [(1, "C1"), (1, "C2"), (2, "C1"), (2, "D9")].map(|(n, channel)| {
            let lane = Lane::of(connection(n), Conversation::Thread(channel, "1700000000.000100"));
            (Partition::of(connection(n), Some(channel)).number(), lane.to_string())
        });
        let expected = KNOWN.map(|(partition, lane)| (partition, lane.to_owned()));
        assert_eq!(known, expected);
        assert_eq!(Partition::of(connection(1), None).number(), KNOWN_WITHOUT_CHANNEL);
    }
    const KNOWN: [(u16, &str); 4] = [
        (32, "3b8adb661afc7383"),
        (0, "4c605b88a7282745"),
        (29, "1513106d6e073962"),
        (1, "ef12430aed66ea6e"),
    ];
    const KNOWN_WITHOUT_CHANNEL: u16 = 5;

    #[test]
    fn spreads_over_few_partitions() {
        let mut counts = [0_u32; PARTITIONS as usize];
        for n in 0..8_000_u32 {
            let id: ConnectionId = format!("{:032x}", n + 1).parse().expect("an id");
            let of_one: std::collections::BTreeSet<u16> = (0..100)
                .map(|channel| Partition::of(id, Some(&format!("C{channel:09}"))).number())
                .collect();
            assert!(of_one.len() <= usize::from(PARTITIONS_PER_CONNECTION));
            assert!(of_one.len() >= 4, "the channels of one connection spread: {of_one:?}");
            for partition in of_one {
                counts[usize::from(partition)] += 1;
            }
        }
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least > Some(&750) && most < Some(&1100), "{least:?} {most:?}");
    }

    #[test]
    fn round_trips_lanes() {
        let lane = Lane::of(connection(1), Conversation::View("V1"));
        assert_eq!(lane.to_string().parse(), Ok(lane));
        assert_eq!(Lane::from_bits(lane.to_bits()), lane);
        assert_eq!("XYZ".parse::<Lane>(), Err(()));
    }
}

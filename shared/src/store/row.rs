//! Conversion of columns to domain types.

use super::StoreError;
use crate::stream::Partition;
use sqlx::{Row, postgres::PgRow};
use std::{borrow::Cow, str::FromStr};

/// Parses a column. An invalid value is [`StoreError::Inconsistent`].
pub(super) fn column<T>(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<T, StoreError>
where
    T: FromStr<Err: ToString>,
{
    let text: String = row.try_get(column)?;
    parse(&text, table, key, column)
}

/// Parses a nullable column.
pub(super) fn nullable<T>(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<Option<T>, StoreError>
where
    T: FromStr<Err: ToString>,
{
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| parse(&text, table, key, column)).transpose()
}

/// Formats a nullable timestamp as RFC 3339 in UTC.
pub(super) fn timestamp(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<Option<String>, StoreError> {
    let at: Option<time::OffsetDateTime> = row.try_get(column)?;
    let text = at.map(|at| at.format(&time::format_description::well_known::Rfc3339)).transpose();
    text.map_err(|error| inconsistent(table, column, key, error))
}

fn parse<T>(
    text: &str,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<T, StoreError>
where
    T: FromStr<Err: ToString>,
{
    text.parse().map_err(|error: T::Err| inconsistent(table, column, key, error))
}

pub(super) fn inconsistent(
    table: &'static str,
    column: &'static str,
    row: &str,
    why: impl ToString,
) -> StoreError {
    StoreError::Inconsistent { table, column, row: row.to_owned(), why: why.to_string() }
}

/// Replaces NUL characters, which no column of Postgres accepts.
pub fn replace_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// Converts the number of a partition.
pub(super) fn partition_of(number: i16) -> Result<Partition, StoreError> {
    u16::try_from(number).ok().and_then(|n| Partition::try_from(n).ok()).ok_or_else(|| {
        inconsistent("partition_leases", "partition", &number.to_string(), "not below 64")
    })
}

//! Lenient field types for Slack's JSON.
//!
//! Slack sends one field in several shapes: `event.channel` and `event.user` are ids, or objects
//! with one. Each type accepts the known shape and yields no value for any other, so that one odd
//! field never makes a webhook unreadable. Text is copied only where JSON escapes require it.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::{borrow::Cow, fmt, marker::PhantomData};

/// Text, or none for any other shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Option<Cow<'a, str>>);

/// Id as a text, or as the `id` of an object. None for any other shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Id<'a>(pub Option<Cow<'a, str>>);

/// True for `true` and `"true"`, which Slack both sends. False for any other value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flag(pub bool);

/// Non-negative integer, or none for any other value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Number(pub Option<u64>);

/// Object of a known shape, or none for any other value (usually `null`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<T>(pub Option<T>);

/// First element of a list, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First<T>(pub Option<T>);

/// Texts of a list without its other elements. Empty if the value is no list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

// Written by hand: deriving would require `T: Default`.
impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Default for First<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl Text<'_> {
    /// Returns the text.
    pub fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl Id<'_> {
    /// Returns the id.
    pub fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// Conversion from any JSON value. Unexpected shapes give the default.
trait FromAny<'de>: Default {
    fn from_str(_: Cow<'de, str>) -> Self {
        Self::default()
    }
    fn from_bool(_: bool) -> Self {
        Self::default()
    }
    fn from_u64(_: u64) -> Self {
        Self::default()
    }
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
    fn from_seq<A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

struct AnyVisitor<T>(PhantomData<T>);

impl<'de, T: FromAny<'de>> Visitor<'de> for AnyVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<T, E> {
        Ok(T::from_str(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::from_str(Cow::Owned(text.to_owned())))
    }
    fn visit_bool<E>(self, value: bool) -> Result<T, E> {
        Ok(T::from_bool(value))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        T::from_seq(seq)
    }
    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_i64<E>(self, _: i64) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_u64<E>(self, value: u64) -> Result<T, E> {
        Ok(T::from_u64(value))
    }
    fn visit_f64<E>(self, _: f64) -> Result<T, E> {
        Ok(T::default())
    }
}

macro_rules! deserialize_any {
    ([$($generics:tt)*] $type:ty $(where $($bound:tt)*)?) => {
        impl<'de, $($generics)*> Deserialize<'de> for $type $(where $($bound)*)? {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_any(AnyVisitor(PhantomData))
            }
        }
    };
}
deserialize_any!(['a] Text<'a> where 'de: 'a);
deserialize_any!(['a] Id<'a> where 'de: 'a);
deserialize_any!([] Flag);
deserialize_any!([] Number);
deserialize_any!([] Texts);
deserialize_any!([T] Object<T> where T: Deserialize<'de>);
deserialize_any!([T] First<T> where T: Deserialize<'de>);

impl<'de: 'a, 'a> FromAny<'de> for Text<'a> {
    fn from_str(text: Cow<'de, str>) -> Self {
        Self(Some(text))
    }
}

impl<'de: 'a, 'a> FromAny<'de> for Id<'a> {
    fn from_str(text: Cow<'de, str>) -> Self {
        Self(Some(text))
    }
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut id = None;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            if key.get() == Some("id") {
                id = map.next_value::<Text<'de>>()?.0;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Self(id))
    }
}

impl FromAny<'_> for Flag {
    fn from_str(text: Cow<'_, str>) -> Self {
        Self(text == "true")
    }
    fn from_bool(value: bool) -> Self {
        Self(value)
    }
}

impl FromAny<'_> for Number {
    fn from_u64(value: u64) -> Self {
        Self(Some(value))
    }
}

impl<'de> FromAny<'de> for Texts {
    fn from_seq<A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = seq.next_element::<Text<'de>>()? {
            texts.extend(text.get().map(str::to_owned));
        }
        Ok(Self(texts))
    }
}

impl<'de, T: Deserialize<'de>> FromAny<'de> for Object<T> {
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        T::deserialize(serde::de::value::MapAccessDeserializer::new(map))
            .map(|value| Self(Some(value)))
    }
}

impl<'de, T: Deserialize<'de>> FromAny<'de> for First<T> {
    fn from_seq<A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let first = seq.next_element::<Object<T>>()?.and_then(|object| object.0);
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Probe<'a> {
        #[serde(borrow)]
        id: Id<'a>,
        #[serde(borrow)]
        text: Text<'a>,
        flag: Flag,
        #[serde(borrow)]
        first: First<Box<Probe<'a>>>,
    }

    #[test]
    fn accepts_every_json_shape() {
        for shape in
            ["null", "1", "-1", "1.5", "true", "\"x\"", "[]", "{}", "[[{}]]", r#"{"id":3}"#]
        {
            let json = format!(r#"{{"id":{shape},"text":{shape},"flag":{shape},"first":{shape}}}"#);
            assert!(serde_json::from_str::<Probe<'_>>(&json).is_ok(), "{json}");
        }
        let json =
            r#"{"id":{"name":"x","id":"C1"},"text":"a","flag":"true","first":[{"text":"b"},7]}"#;
        let probe: Probe<'_> = serde_json::from_str(json).expect("reads");
        assert_eq!((probe.id.get(), probe.text.get(), probe.flag.0), (Some("C1"), Some("a"), true));
        assert_eq!(probe.first.0.expect("first").text.get(), Some("b"));
        assert!(matches!(probe.text.0, Some(Cow::Borrowed(_))));
    }
}

//! Lenient field types for Slack's JSON.
//!
//! Slack sends one field in several shapes: `event.channel` and `event.user` are ids, or objects
//! with one. Each type accepts the known shape and yields no value for any other, so that one
//! malformed field never makes a webhook unreadable. Text is copied only where JSON escapes require
//! it.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::{borrow::Cow, fmt, marker::PhantomData};

/// Text, or none for any other shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Option<Cow<'a, str>>);

/// Id as a text, or as the `id` of an object. None for any other shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Id<'a>(pub Option<Cow<'a, str>>);

/// True for `true` and `"true"`: Slack sends both. False for any other value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flag(pub bool);

/// Non-negative integer, or none for any other value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Number(pub Option<u64>);

/// Object of a known shape, or none for any other value (usually `null`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<T>(pub Option<T>);

/// Object, or the first of a list of objects. None for any other value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First<T>(pub Option<T>);

/// Objects of a list, or the only object. Empty for any other value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

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

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
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
deserialize_any!([T] Object<T> where T: Fields<'de>);
deserialize_any!([T] First<T> where T: Fields<'de>);
deserialize_any!([T] List<T> where T: Fields<'de>);

/// Object whose known fields are read one by one. [`fields!`] implements it.
pub trait Fields<'de>: Default {
    /// Reads the value of a key.
    fn read_field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl<'de, T: Fields<'de>> Fields<'de> for Box<T> {
    fn read_field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        T::read_field(self, key, map)
    }
}

/// Declares structs with a default value and [`Fields`]. The key of a field is its name, or the
/// text after `=`. The last of equal keys counts, as in JavaScript and Python; a derived
/// `Deserialize` would reject the object.
macro_rules! fields {
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    ($(
        $(#[$attribute:meta])*
        $vis:vis struct $name:ident$(<$life:lifetime>)? {
            $($(#[$field_attribute:meta])* $field_vis:vis $field:ident: $type:ty $(= $key:literal)?,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Default)]
        $vis struct $name$(<$life>)? {
            $($(#[$field_attribute])* $field_vis $field: $type,)*
        }

        impl<'de $(: $life, $life)?> $crate::slack::lenient::Fields<'de> for $name$(<$life>)? {
            fn read_field<A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                match key {
                    $($crate::slack::lenient::fields!(@key $field $($key)?) => {
                        self.$field = map.next_value()?;
                    })*
                    _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                }
                Ok(())
            }
        }
    )*};
}
pub(crate) use fields;

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

impl<'de, T: Fields<'de>> FromAny<'de> for Object<T> {
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut object = T::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            object.read_field(key.get().unwrap_or_default(), &mut map)?;
        }
        Ok(Self(Some(object)))
    }
}

impl<'de, T: Fields<'de>> FromAny<'de> for First<T> {
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        Object::from_map(map).map(|object| Self(object.0))
    }
    fn from_seq<A: SeqAccess<'de>>(seq: A) -> Result<Self, A::Error> {
        List::from_seq(seq).map(|list| Self(list.0.into_iter().next()))
    }
}

impl<'de, T: Fields<'de>> FromAny<'de> for List<T> {
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        Object::from_map(map).map(|object| Self(object.0.into_iter().collect()))
    }
    fn from_seq<A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let mut objects = Vec::new();
        while let Some(object) = seq.next_element::<Object<T>>()? {
            objects.extend(object.0);
        }
        Ok(Self(objects))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fields! {
        struct Probe<'a> {
            id: Id<'a>,
            body: Text<'a> = "text",
            flag: Flag,
            first: First<Box<Probe<'a>>>,
            list: List<Probe<'a>>,
        }
    }

    fn read(json: &str) -> Probe<'_> {
        serde_json::from_str::<Object<_>>(json).expect(json).0.expect("an object")
    }

    #[test]
    fn accepts_every_json_shape() {
        for shape in
            ["null", "1", "-1", "1.5", "true", "\"x\"", "[]", "{}", "[[{}]]", r#"{"id":3}"#]
        {
            let [a, b, c, d, e] = ["id", "text", "flag", "first", "list"];
            read(&format!(
                r#"{{"{a}":{shape},"{b}":{shape},"{c}":{shape},"{d}":{shape},"{e}":{shape}}}"#
            ));
        }
        let json =
            r#"{"id":{"name":"x","id":"C1"},"text":"a","flag":"true","first":[{"text":"b"},7]}"#;
        let probe = read(json);
        assert_eq!((probe.id.get(), probe.body.get(), probe.flag.0), (Some("C1"), Some("a"), true));
        assert_eq!(probe.first.0.expect("first").body.get(), Some("b"));
        assert!(matches!(probe.body.0, Some(Cow::Borrowed(_))));
    }

    #[test]
    fn accepts_one_object_for_a_list() {
        let probe = read(r#"{"first":{"text":"a"},"list":{"text":"b"}}"#);
        assert_eq!(probe.first.0.expect("the object").body.get(), Some("a"));
        assert_eq!(probe.list.0[0].body.get(), Some("b"));
        let probe = read(r#"{"list":[null,{"text":"b"},7,{"text":"c"}]}"#);
        assert_eq!(probe.list.0.len(), 2);
    }

    #[test]
    fn takes_last_of_equal_keys() {
        let probe = read(r#"{"text":"a","id":"1","text":"b","id":null,"other":1,"other":2}"#);
        assert_eq!((probe.body.get(), probe.id.get()), (Some("b"), None));
    }
}

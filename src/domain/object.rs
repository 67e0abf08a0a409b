//! JSON objects as Chat means them.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Reads `T` from an object only: a derived reader would also take an array of the right length.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'a, T: Deserialize<'a>> Deserialize<'a> for Object<T> {
    fn deserialize<D: Deserializer<'a>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(ObjectVisitor(PhantomData)).map(Object)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'a, T: Deserialize<'a>> Visitor<'a> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, map: M) -> Result<T, M::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// For an optional member with `#[serde(default, deserialize_with = "given")]`: it may be left out,
/// but what stands there must be a `T`, and `null` is none.
///
/// # Errors
/// Those of `T`.
pub fn given<'a, D: Deserializer<'a>, T: Deserialize<'a>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct One {
        #[serde(default, deserialize_with = "given")]
        one: Option<u8>,
    }

    #[test]
    fn an_array_or_null_stands_for_nothing() {
        let read = |text| serde_json::from_str::<Object<One>>(text).map(|Object(read)| read.one).ok();
        assert_eq!(read(r#"{"one":1}"#), Some(Some(1)));
        assert_eq!(read("{}"), Some(None));
        for bad in ["[1]", "null", r#"{"one":null}"#, r#"{"one":1,"one":1}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}

//! The metadata of a GGUF file: keys and values.

use std::collections::HashMap;

use super::parse::Reader;
use crate::error::LoadError;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The types in the order of their numbers in files.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        let kind = Self::ALL.get(id as usize).copied();
        kind.ok_or_else(|| format!("{id} is not the number of a value's type"))
    }

    /// Returns the number of bytes of a value, or of the smallest string or array.
    pub(super) fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A value. Strings and arrays stay in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// An array whose elements were checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array<'a> {
    pub(super) kind: ValueType,
    pub(super) len: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Reads the elements one after another.
    pub(super) fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        Reader::elements(self)
    }
}

/// The keys and values of a file.
pub(crate) struct Metadata<'a> {
    file: &'a str,
    values: HashMap<&'a str, Value<'a>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(file: &'a str, values: HashMap<&'a str, Value<'a>>) -> Self {
        Self { file, values }
    }

    /// Returns the name of the file.
    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.values.get(key)
    }

    /// Returns an error that names the file.
    pub(super) fn invalid(&self, reason: impl Into<String>) -> LoadError {
        LoadError::invalid(self.file, reason)
    }

    /// Returns a number that is an integer and not negative.
    pub(super) fn integer(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.find(key, "an integer that is not negative", |value| match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    /// Returns a number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.find(key, "a number", |value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        })
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.find(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.find(key, "a string", |value| match value {
            Value::String(text) => Some(*text),
            _ => None,
        })
    }

    /// Returns the strings of an array.
    pub(super) fn strings(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = &'a str> + use<'a>>, LoadError> {
        let array = self.array(key, "an array of strings", |kind| kind == ValueType::String)?;
        Ok(array.map(|array| {
            let mut values = array.values();
            (0..array.len).map(move |_| match values.next() {
                Some(Value::String(text)) => text,
                _ => "", // The array was checked.
            })
        }))
    }

    /// Returns the integers of an array.
    pub(super) fn integers(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = i128> + use<'a>>, LoadError> {
        let array = self.array(key, "an array of integers", |kind| {
            !matches!(
                kind,
                ValueType::F32
                    | ValueType::F64
                    | ValueType::Bool
                    | ValueType::String
                    | ValueType::Array
            )
        })?;
        Ok(array.map(|array| {
            let mut values = array.values();
            (0..array.len).map(move |_| match values.next() {
                Some(Value::Integer(number)) => number,
                _ => -1, // The array was checked.
            })
        }))
    }

    fn array(
        &self,
        key: &str,
        expected: &str,
        is_expected: impl Fn(ValueType) -> bool,
    ) -> Result<Option<Array<'a>>, LoadError> {
        self.find(key, expected, |value| match value {
            // Writers choose any type for an empty array.
            Value::Array(array) if array.len == 0 || is_expected(array.kind) => Some(array.clone()),
            _ => None,
        })
    }

    /// Returns the value of `key` as `read` reads it, or an error if it is not what is `expected`.
    fn find<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let read = read(value).map(Some);
        read.ok_or_else(|| self.invalid(format!("{key} is not {expected}")))
    }

    /// Returns an error that names a key that is missing.
    pub(super) fn missing(&self, key: &str) -> LoadError {
        self.invalid(format!("{key} is missing"))
    }
}

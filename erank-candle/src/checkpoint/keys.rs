//! The keys of a JSON file, with checked types.

use serde_json::{Map, Value};

use crate::error::LoadError;

/// The keys of a JSON file, with checked types.
pub(super) struct Keys<'a> {
    pub(super) file: &'static str,
    pub(super) map: &'a Map<String, Value>,
    /// The keys that contain `map`, such as "rope_scaling.".
    pub(super) path: &'static str,
}

impl Keys<'_> {
    /// Returns the value of a key that is present. `null` is a value.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// Returns the value of a key that is present and neither null nor empty.
    pub(super) fn non_empty(&self, key: &str) -> Option<&Value> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        self.get(key).filter(|value| !is_empty(value))
    }

    pub(super) fn invalid<T>(&self, reason: impl std::fmt::Display) -> Result<T, LoadError> {
        Err(LoadError::invalid(self.file, format!("{}{reason}", self.path)))
    }

    /// Returns an error that shows the value of a key.
    pub(super) fn wrong<T>(&self, key: &str, reason: &str) -> Result<T, LoadError> {
        let value = self.get(key).map_or_else(|| "missing".into(), Value::to_string);
        let shown: String = value.chars().take(80).collect();
        let more = if shown.len() < value.len() { "…" } else { "" };
        self.invalid(format!("{key} is {shown}{more}; {reason}"))
    }

    /// Returns a size that may be written as a number with a fraction of zero, such as `32768.0`.
    pub(super) fn whole_number(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let size = |value: &Value| {
            let number = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0)?;
            (number < 2_f64.powi(53)).then_some(number as usize)
        };
        self.read(key, "an integer that is not negative", size)
    }

    /// Returns the value of a key as `read` reads it, or `None` if the key is missing.
    pub(super) fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        match self.get(key).map(read) {
            Some(None) => self.wrong(key, &format!("it must be {expected}")),
            value => Ok(value.flatten()),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let size = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.read(key, "an integer that is not negative", size)
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.map_or_else(|| self.invalid(format!("{key} is missing")), Ok)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Returns a number or, if it is missing, null or zero, the default, as Python's `or` does.
    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match self.non_empty(key) {
            None => Ok(default),
            Some(_) => Ok(self.number(key)?.filter(|number| *number != 0.0).unwrap_or(default)),
        }
    }

    /// Returns one token id, or a list of token ids. An id may be one that no vocabulary has.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<i64>, LoadError> {
        if self.non_empty(key).is_none() {
            return Ok(Vec::new());
        }
        let id = Value::as_i64;
        let ids = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            value => Some(vec![id(value)?]),
        };
        Ok(self.read(key, "a token id or a list of token ids", ids)?.unwrap_or_default())
    }
}

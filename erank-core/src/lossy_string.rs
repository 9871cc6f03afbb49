//! Strings of JSON whose escapes are not valid Unicode (feature `serde`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A string read from JSON, in which U+FFFD replaces a surrogate without its partner (`\ud83d`).
///
/// Programs that cut a text in the middle of an emoji write such an escape. `serde_json` refuses to read it as a
/// `String`, and so refuses the whole document or request.
///
/// ```
/// use erank_core::LossyString;
///
/// let LossyString(text) = serde_json::from_str(r#""cut emoji \ud83d""#)?;
/// assert_eq!(text, "cut emoji \u{fffd}");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LossyString(pub String);

impl<'de> Deserialize<'de> for LossyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = LossyString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<LossyString, E> {
                Ok(LossyString(replace_surrogates(bytes)))
            }

            fn visit_str<E>(self, text: &str) -> Result<LossyString, E> {
                Ok(LossyString(text.to_owned()))
            }
        }

        // serde_json passes a string with lone surrogates as bytes, in which each surrogate has three bytes.
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Replaces the three bytes of a surrogate by those of U+FFFD.
fn replace_surrogates(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    let mut replaced = bytes.to_vec();
    for at in 0..replaced.len() {
        if let [0xed, 0xa0..=0xbf, _, ..] = replaced[at..] {
            replaced[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
    }
    String::from_utf8_lossy(&replaced).into_owned()
}

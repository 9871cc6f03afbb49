//! Untrusted text in HTML and SVG.

use std::fmt::{self, Display, Formatter, Write};

use indicatif::HumanCount;

use crate::text;

/// A text that is displayed so that it cannot become markup, in an element or in a quoted attribute.
///
/// Control characters and characters that change the direction of text become visible escapes, as on the terminal.
/// Characters that XML forbids become U+FFFD.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in text::block(self.0).chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The first characters of a text, escaped, with a note if more follow.
pub(super) struct Excerpt<'a> {
    pub(super) text: &'a str,
    pub(super) max_chars: usize,
}

impl Display for Excerpt<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = self.text.trim();
        let beginning = beginning(text, self.max_chars);
        write!(f, "{}", Escaped(beginning))?;
        match text[beginning.len()..].chars().count() {
            0 => Ok(()),
            rest => write!(
                f,
                r#" <span class="muted">… and {} more characters</span>"#,
                HumanCount(rest as u64)
            ),
        }
    }
}

/// Returns the first `max_chars` characters of a text.
pub(super) fn beginning(text: &str, max_chars: usize) -> &str {
    text.char_indices().nth(max_chars).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_keeps_no_markup_and_no_dangerous_characters() {
        let escaped =
            Escaped("<script>\"a\" & 'b'</script>\u{1b}\u{202e}\u{0}\u{ffff}\nnaïve 東京");
        assert_eq!(
            escaped.to_string(),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;\\u{1b}\\u{202e}\\u{0}\u{fffd}\nnaïve 東京"
        );
    }

    #[test]
    fn excerpt_notes_what_it_cuts() {
        let excerpt = |text| Excerpt { text, max_chars: 3 }.to_string();
        assert_eq!(excerpt(" é<b "), "é&lt;b");
        let cut = excerpt(&format!("é<b{}", "é".repeat(1234)));
        assert_eq!(cut, r#"é&lt;b <span class="muted">… and 1,234 more characters</span>"#);
    }
}

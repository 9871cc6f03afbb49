//! The checkpoint's own chat template, rendered as Python's transformers renders it.
//!
//! transformers runs the template with Jinja2 as
//! `apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True)`; here
//! minijinja does, set up the same way: block trimming, loop controls, the methods that Python's
//! strings have, and transformers' own `raise_exception`, `strftime_now` and `tojson`.
//!
//! A template comes with the model and is not trusted: it has no access to files, and its
//! instructions, its recursion and its output are limited. The memory of its variables is not.

use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::error::LoadError;

/// File names, as errors give them.
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Instructions that one rendering may take; Qwen3's template takes a few hundred.
const MAX_INSTRUCTIONS: u64 = 1_000_000;
/// Bytes that a rendering may have in addition to the message.
const MAX_ADDED_BYTES: usize = 1 << 20;

const EOS_TOKEN: &str = "eos_token";
/// The tokens that transformers hands to a template by these names, where the model has them.
const TOKEN_VARIABLES: [&str; 7] =
    ["bos_token", EOS_TOKEN, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template that was read and whose syntax is right.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The file it came from.
    file: &'static str,
    /// The tokens that the template may name.
    variables: Value,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// From the contents of `tokenizer_config.json` and of `chat_template.jinja`, which has
    /// precedence.
    pub(crate) fn read(config: Option<&[u8]>, template: Option<&[u8]>) -> Result<Self, LoadError> {
        let config = config.map(parse_config).transpose()?.unwrap_or_default();
        let (source, file) = match template {
            Some(bytes) => (utf8(bytes)?, TEMPLATE_FILE),
            None => (config.chat_template()?, CONFIG_FILE),
        };
        let source = without_generation_tags(&source);
        let environment = environment()
            .and_then(|mut environment| {
                environment.add_template_owned(file, source.clone())?;
                Ok(environment)
            })
            .map_err(|error| LoadError::unparsable(file, "the chat template", error))?;
        let eos_token = config.token(EOS_TOKEN)?;
        Ok(Self { environment, source, file, variables: config.token_variables()?, eos_token })
    }

    /// The token that ends a turn, by `tokenizer_config.json`.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The file that the template came from.
    pub(crate) fn file(&self) -> &'static str {
        self.file
    }

    /// Whether `text` stands anywhere in the template.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// The prompt for one message of the user, up to where the assistant's turn begins.
    pub(crate) fn render(&self, message: &str) -> Result<String, Error> {
        let mut output =
            LimitedOutput { bytes: Vec::new(), limit: message.len() + MAX_ADDED_BYTES };
        let variables = context! {
            messages => [context! { role => "user", content => message }],
            add_generation_prompt => true,
            tools => None::<Value>,
            documents => None::<Value>,
            ..self.variables.clone()
        };
        let template = self.environment.get_template(self.file)?;
        template.render_captured_to(variables, &mut output).map_err(|error| {
            match error.kind() {
                ErrorKind::WriteFailure => {
                    Error::new(ErrorKind::WriteFailure, "it writes too much")
                }
                _ => error,
            }
        })?;
        String::from_utf8(output.bytes)
            .map_err(|error| Error::new(ErrorKind::WriteFailure, error.to_string()))
    }
}

/// What is used of `tokenizer_config.json`.
#[derive(Default)]
struct Config(serde_json::Map<String, serde_json::Value>);

/// One template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Listed(Vec<Named>),
    Mapped(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Templates {
    /// The template that transformers takes when none is asked for by name.
    fn default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Listed(named) => {
                named.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
            Self::Mapped(mut named) => named.remove("default"),
        }
    }
}

/// A token as its text alone, or described with its text as `content`.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Described { content: String },
}

impl Config {
    fn chat_template(&self) -> Result<String, LoadError> {
        let templates: Templates = self.get("chat_template")?.ok_or_else(|| {
            LoadError::invalid(
                CONFIG_FILE,
                format!(
                    "there is no chat_template in it and no {TEMPLATE_FILE} beside it; add the \
                     template that the model was trained with as {TEMPLATE_FILE}"
                ),
            )
        })?;
        templates.default().ok_or_else(|| {
            LoadError::invalid(CONFIG_FILE, "none of its chat templates is named \"default\"")
        })
    }

    fn token_variables(&self) -> Result<Value, LoadError> {
        let mut variables = Vec::new();
        for name in TOKEN_VARIABLES {
            if let Some(text) = self.token(name)? {
                variables.push((name, text));
            }
        }
        Ok(Value::from_pairs(variables))
    }

    fn token(&self, name: &str) -> Result<Option<String>, LoadError> {
        let token = self.get(name)?;
        Ok(token.map(|(TokenText::Text(text) | TokenText::Described { content: text })| text))
    }

    /// The value at `key`; `None` if it is missing or null.
    fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, LoadError> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        let parsed = value.map(T::deserialize).transpose();
        parsed.map_err(|error| LoadError::unparsable(CONFIG_FILE, key, error))
    }
}

fn parse_config(bytes: &[u8]) -> Result<Config, LoadError> {
    let parsed = serde_json::from_slice(bytes).map(Config);
    parsed.map_err(|error| LoadError::unparsable(CONFIG_FILE, "not a JSON object", error))
}

fn utf8(bytes: &[u8]) -> Result<String, LoadError> {
    let text = str::from_utf8(bytes).map(str::to_owned);
    text.map_err(|error| LoadError::unparsable(TEMPLATE_FILE, "not UTF-8 text", error))
}

/// Jinja as transformers sets it up.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

/// `{% generation %}` marks what transformers trains on; rendering ignores it.
fn without_generation_tags(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        kept.push_str(before);
        kept.push_str("{%");
        rest = tag;
        for (name, equivalent) in [("generation", "if true"), ("endgeneration", "endif")] {
            let Some((inside, _)) = tag.split_once("%}") else { break };
            if inside.trim_matches(['-', '+', ' ', '\t', '\r', '\n']) == name {
                kept.push_str(&inside.replace(name, equivalent));
                rest = &tag[inside.len()..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// The rendered text, as long as it stays within its limit.
struct LimitedOutput {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, on one line or with an indent.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent.map(|width| " ".repeat(width.min(16))) {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, OneLine)),
    };
    let text = written.ok().and_then(|()| String::from_utf8(json).ok());
    text.map(Value::from)
        .ok_or_else(|| Error::new(ErrorKind::BadSerialization, "the value has no JSON form"))
}

/// JSON with Python's spaces after `,` and `:`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The date and time in UTC, where transformers gives the local one.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

/// Python's `strftime` for the directives that chat templates use.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];

    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let message = format!("strftime_now does not know %{}", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(text)
}

/// Year, month and day, from the days since 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, config: &str, message: &str) -> String {
        let template = ChatTemplate::read(Some(config.as_bytes()), Some(template.as_bytes()));
        template.expect("valid").render(message).expect("it renders")
    }

    /// The expected texts are transformers' (5.23, Jinja2 3.1).
    #[test]
    fn renders_as_transformers_does() {
        let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null}"#;
        for (template, expected) in [
            (
                "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ pad_token }}",
                "<s>Hi A.</s>",
            ),
            (
                "{%- for m in messages %}\n  {% if m.role == 'user' %}\nU\n  {% endif %}\n{%- endfor %}\nend\n",
                "U\nend",
            ),
            ("{{ messages[0].content.split(' ')[-1].lower().strip('.') }}", "a"),
            ("{{ messages[::-1][0].content.startswith('Hi') and not tools }}", "True"),
            (
                "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{{ messages | tojson }}", r#"[{"role": "user", "content": "Hi A."}]"#),
            (
                "{{ {'a': ['<é>', none, true, 1.5], 'b': {}} | tojson }}",
                r#"{"a": ["<é>", null, true, 1.5], "b": {}}"#,
            ),
            ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
            ("{% generation %}a{%- endgeneration -%} b", "ab"),
            ("{% if add_generation_prompt and documents is none %}go{% endif %}", "go"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}", "[a][1]"),
            (
                "{{ messages[0].get('name', 'none') }}{{ messages[0].keys() | list | join(',') }}",
                "nonerole,content",
            ),
        ] {
            assert_eq!(render(template, config, "Hi A."), expected, "{template}");
        }
    }

    #[test]
    fn the_template_is_found_where_transformers_finds_it() {
        let source = |config: &str, template: Option<&str>| {
            ChatTemplate::read(Some(config.as_bytes()), template.map(str::as_bytes))
                .map(|template| (template.source.clone(), template.file()))
                .map_err(|error| error.to_string())
        };
        let one = r#"{"chat_template": "a"}"#;
        assert_eq!(source(one, None), Ok(("a".into(), CONFIG_FILE)));
        assert_eq!(source(one, Some("b")), Ok(("b".into(), TEMPLATE_FILE)));
        let several = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(source(several, None), Ok(("d".into(), CONFIG_FILE)));
        for (config, says) in [
            ("{}", "add the template"),
            (r#"{"chat_template": null}"#, "add the template"),
            (r#"{"chat_template": []}"#, "default"),
            (r#"{"chat_template": 7}"#, "chat_template"),
            (r#"{"chat_template": "{% if %}"}"#, "the chat template"),
            (r#"{"chat_template": "", "bos_token": 1}"#, "bos_token"),
            ("[", "not a JSON object"),
            ("", "not a JSON object"),
        ] {
            let error = source(config, None).expect_err(config);
            assert!(error.contains(CONFIG_FILE) && error.contains(says), "{config}: {error}");
        }
        let error = ChatTemplate::read(None, Some(b"\xff")).expect_err("not UTF-8").to_string();
        assert!(error.contains(TEMPLATE_FILE) && error.contains("UTF-8"), "{error}");
        assert!(ChatTemplate::read(None, None).is_err());
    }

    #[test]
    fn dates_are_pythons() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thursday, Jan 1970"),
            (951_827_696, "2000-02-29 12:34:56 Tuesday, Feb 2000"),
            (4_102_444_799, "2099-12-31 23:59:59 Thursday, Dec 2099"),
        ] {
            let text = strftime("%Y-%m-%d %H:%M:%S %A, %b %Y", seconds).expect("known");
            assert_eq!(text, expected);
        }
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}

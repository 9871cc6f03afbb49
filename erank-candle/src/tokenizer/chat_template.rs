//! Chat templates, rendered as transformers renders them.
//!
//! transformers uses Jinja2, with
//! `apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True)`. This
//! module uses minijinja, configured the same way: trimmed blocks, loop controls, the methods of
//! Python's strings, and the functions `raise_exception`, `strftime_now` and `tojson` of
//! transformers.
//!
//! Templates are untrusted. They cannot read files, and the numbers of instructions, of nested calls, of bytes in
//! variables and of bytes in the output are limited. [`template_scan`] refuses templates that minijinja could not
//! bound, and filters that copy a value several times are removed ([`COPYING_FILTERS`]). Compiling and rendering run on
//! a thread with a large stack. A panic there is an error of the template.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::{io, thread};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context, filters};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use super::strftime::strftime_now;
use super::template_scan;
use crate::checkpoint::json;
use crate::error::LoadError;

/// The file of the tokenizer's configuration, which may contain a chat template.
const CONFIG_FILE: &str = "tokenizer_config.json";
/// The file of the chat template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// The maximum number of instructions in one rendering. Qwen3's template takes a few hundred.
const MAX_INSTRUCTIONS: u64 = 1_000_000;
/// The maximum number of bytes that a rendering may add to the message.
const MAX_ADDED_BYTES: usize = 1 << 20;
/// The maximum number of bytes that the methods of Python's strings may read and write in one rendering.
const MAX_METHOD_BYTES: usize = 32 << 20;
/// Bytes of the stack for compiling and rendering. The deepest template and the deepest value that the other limits
/// allow need less. The system provides memory for the part that is used.
const STACK_BYTES: usize = 256 << 20;

/// Filters that put a value into a list several times, so that a loop could make a value whose text has no bound, and
/// `pprint`, which prints a value before it is counted. No known template uses one.
const COPYING_FILTERS: [&str; 7] = ["batch", "chain", "groupby", "pprint", "slice", "sum", "zip"];

const EOS_TOKEN: &str = "eos_token";
/// The special tokens that transformers passes to a template as variables, if the model has them.
const TOKEN_VARIABLES: [&str; 7] =
    ["bos_token", EOS_TOKEN, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A parsed chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The file that contained the template.
    file: &'static str,
    /// The special tokens, as variables of the template.
    variables: Value,
}

impl ChatTemplate {
    /// Parses the chat template, given `tokenizer_config.json` and the contents of `chat_template.jinja`. A
    /// template in the latter takes precedence. Returns `None` if there is none.
    pub(crate) fn new(
        config: &TokenizerConfig,
        template: Option<&[u8]>,
    ) -> Result<Option<Self>, LoadError> {
        let Some((source, file)) = source(config, template)? else { return Ok(None) };
        let source = template_scan::check(&source).map_err(|reason| {
            LoadError::invalid(file, format!("invalid chat template: {reason}"))
        })?;
        let compile = || {
            let mut environment = environment()?;
            environment.add_template_owned(file, source.clone())?;
            Ok(environment)
        };
        let environment = on_large_stack(compile)
            .map_err(|error| LoadError::unparsable(file, "invalid chat template", error))?;
        Ok(Some(Self { environment, source, file, variables: config.token_variables()? }))
    }

    /// Returns the name of the file that contained the template.
    pub(crate) fn file(&self) -> &'static str {
        self.file
    }

    /// Returns whether the source of the template contains `text`.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Renders the prompt for a message of the user, up to the beginning of the assistant's turn.
    pub(crate) fn render(&self, message: &str) -> Result<String, Error> {
        on_large_stack(|| self.render_here(message))
    }

    fn render_here(&self, message: &str) -> Result<String, Error> {
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
                    Error::new(ErrorKind::WriteFailure, "the output is too long")
                }
                _ => error,
            }
        })?;
        String::from_utf8(output.bytes)
            .map_err(|error| Error::new(ErrorKind::WriteFailure, error.to_string()))
    }
}

/// Returns the source of the chat template, and the file that contains it.
pub(super) fn source(
    config: &TokenizerConfig,
    template: Option<&[u8]>,
) -> Result<Option<(String, &'static str)>, LoadError> {
    match template {
        Some(bytes) => Ok(Some((utf8(bytes)?, TEMPLATE_FILE))),
        None => Ok(config.chat_template()?.map(|source| (source, CONFIG_FILE))),
    }
}

/// The contents of `tokenizer_config.json`.
#[derive(Default)]
pub(crate) struct TokenizerConfig(serde_json::Map<String, serde_json::Value>);

/// The value of `chat_template`: one template, or several named templates.
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
    /// Returns the template that transformers uses by default.
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Listed(named) => {
                named.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
            Self::Mapped(mut named) => named.remove("default"),
        }
    }
}

/// A special token: its text, or an object with its text as `content`.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Described { content: String },
}

impl TokenizerConfig {
    /// Parses the contents of `tokenizer_config.json`, if the checkpoint has one.
    pub(crate) fn from_json(json: Option<&[u8]>) -> Result<Self, LoadError> {
        let parsed = json.map(|json| json::parse(CONFIG_FILE, json)).transpose()?;
        Ok(parsed.map_or_else(Self::default, Self))
    }

    /// Returns the `eos_token`.
    pub(crate) fn eos_token(&self) -> Result<Option<String>, LoadError> {
        self.token(EOS_TOKEN)
    }

    /// Returns the tokens that transformers would add to the vocabulary if it lacked them.
    pub(crate) fn declared_tokens(&self) -> Vec<String> {
        let text = |value: &serde_json::Value| {
            let text = value.as_str().or_else(|| value["content"].as_str());
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let listed = ["additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"]
            .into_iter()
            .filter_map(|key| self.0.get(key));
        let listed = listed.flat_map(|tokens| match tokens {
            serde_json::Value::Array(tokens) => tokens.iter().filter_map(text).collect(),
            serde_json::Value::Object(tokens) => tokens.values().filter_map(text).collect(),
            _ => Vec::new(),
        });
        let named = TOKEN_VARIABLES.into_iter().filter_map(|name| text(self.0.get(name)?));
        let mut tokens: Vec<String> = listed.chain(named).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// Returns the template's variables with the text of a token.
    pub(crate) fn variables(&self, token: &str) -> impl Iterator<Item = &'static str> {
        let is_token = move |name: &&str| self.token(name).ok().flatten().as_deref() == Some(token);
        TOKEN_VARIABLES.into_iter().filter(is_token)
    }

    /// Returns the chat template that transformers uses by default.
    fn chat_template(&self) -> Result<Option<String>, LoadError> {
        let Some(templates) = self.get::<Templates>("chat_template")? else { return Ok(None) };
        let default = templates.into_default().ok_or_else(|| {
            LoadError::invalid(
                CONFIG_FILE,
                "it has several chat templates, but none named \"default\"",
            )
        });
        default.map(Some)
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

    /// Returns the value of `key`, or `None` if it is missing or null.
    fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, LoadError> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        let parsed = value.map(T::deserialize).transpose();
        parsed.map_err(|error| LoadError::unparsable(CONFIG_FILE, key, error))
    }
}

fn utf8(bytes: &[u8]) -> Result<String, LoadError> {
    let text = str::from_utf8(bytes).map(str::to_owned);
    text.map_err(|error| LoadError::unparsable(TEMPLATE_FILE, "it is not UTF-8 text", error))
}

/// Creates a Jinja environment with the configuration of transformers.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(call_method);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    COPYING_FILTERS.iter().for_each(|filter| environment.remove_filter(filter));
    environment.remove_global("debug");
    environment.add_filter("map", map);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

/// Runs `work` on a thread of its own.
///
/// # Errors
/// Returns the error of `work`, and an error if it panics or the thread cannot be started.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |problem: String| Error::new(ErrorKind::InvalidOperation, problem);
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("erank-template".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|error| failed(format!("cannot start a thread: {error}")))?;
        let panicked = |panic: Box<dyn std::any::Any + Send>| {
            let message = erank_core::error::panic_message(&*panic);
            Err(failed(format!("the template engine panicked: {message}")))
        };
        thread.join().unwrap_or_else(panicked)
    })
}

thread_local! {
    /// The bytes that methods have read and written. Each rendering has a thread of its own.
    static METHOD_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Calls a method of Python's types. minijinja counts the bytes of the result, but only after the call. So this
/// function refuses a call whose result could be too long, before the result exists.
fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    const SLOT: usize = 64;
    let text = |value: &Value| value.as_str().map_or(SLOT, str::len);
    let list = |value: &Value| {
        let items = value.try_iter().into_iter().flatten().take(MAX_METHOD_BYTES / SLOT + 1);
        items.fold(0_usize, |sum, item| sum.saturating_add(text(&item)).saturating_add(SLOT))
    };
    let receiver = value.as_str().map_or_else(|| list(value), str::len);
    let inputs = args.iter().fold(receiver, |sum, arg| sum.saturating_add(text(arg)));
    let outputs = match (method, value.as_str(), args) {
        ("replace", Some(string), [old, new, ..]) => {
            let count = string.matches(old.as_str().unwrap_or_default()).count();
            count.saturating_mul(text(new))
        }
        ("join", Some(joiner), [items, ..]) => {
            let count = items.len().unwrap_or_default();
            list(items).saturating_add(count.saturating_mul(joiner.len()))
        }
        ("split" | "splitlines", ..) => receiver.saturating_mul(SLOT),
        ("format", Some(string), _) => {
            if string.as_bytes().windows(5).any(|window| window.iter().all(u8::is_ascii_digit)) {
                let problem = "a width of more than four digits is not supported";
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
            if let Some(other) = args.iter().find(|arg| arg.as_object().is_some()) {
                let problem = format!("str.format of a {} is not supported", other.kind());
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
            string.matches('{').count().saturating_mul(inputs.saturating_add(10_000))
        }
        _ => receiver.saturating_mul(4),
    };
    let bytes = METHOD_BYTES.get().saturating_add(inputs).saturating_add(outputs);
    METHOD_BYTES.set(bytes);
    if bytes > MAX_METHOD_BYTES {
        return Err(Error::new(ErrorKind::OutOfFuel, "its methods need too much memory"));
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// A buffer for the rendered text that fails beyond a limit.
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

/// Computes the filter `map`, without lists and dictionaries as arguments. Each item could become such an argument
/// (`map('default', list)`), so that a list would have it several times.
fn map(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    for arg in args.iter() {
        let values: Vec<Value> = match Kwargs::try_from((**arg).clone()) {
            Ok(named) => named.args().map(|name| named.peek(name)).collect::<Result<_, _>>()?,
            Err(_) => vec![(**arg).clone()],
        };
        if values.iter().any(|value| value.as_object().is_some()) {
            let problem = "map with a list or a dictionary as an argument is not supported";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
    }
    filters::map(state, value, args)
}

/// Computes the filter `tojson`, Python's `json.dumps(value, ensure_ascii=False)` with an optional indent.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut json = LimitedOutput { bytes: Vec::new(), limit: MAX_ADDED_BYTES };
    let written = match indent.map(|width| " ".repeat(width.min(16))) {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, OneLine)),
    };
    let text = written.ok().and_then(|()| String::from_utf8(json.bytes).ok());
    text.map(Value::from).ok_or_else(|| {
        Error::new(ErrorKind::BadSerialization, "the value cannot be written as JSON")
    })
}

/// Formats JSON on one line, with a space after `,` and `:` as in Python.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, config: &str, message: &str) -> String {
        let config = TokenizerConfig::from_json(Some(config.as_bytes())).expect("valid");
        let template = ChatTemplate::new(&config, Some(template.as_bytes()));
        template.expect("valid template").expect("given").render(message).expect("rendered")
    }

    /// The expected texts were rendered by transformers 5.23 with Jinja2 3.1.
    #[test]
    fn render_equals_transformers() {
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
    fn new_finds_template_in_either_file() {
        let source = |config: &str, template: Option<&str>| {
            let config = TokenizerConfig::from_json(Some(config.as_bytes()));
            let template = config.and_then(|config| {
                config.eos_token()?;
                ChatTemplate::new(&config, template.map(str::as_bytes))
            });
            let found = template.map(|template| template.map(|found| (found.source, found.file)));
            found.map_err(|error| error.to_string())
        };
        let one = r#"{"chat_template": "a"}"#;
        assert_eq!(source(one, None), Ok(Some(("a".into(), CONFIG_FILE))));
        assert_eq!(source(one, Some("b")), Ok(Some(("b".into(), TEMPLATE_FILE))));
        let several = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(source(several, None), Ok(Some(("d".into(), CONFIG_FILE))));
        for none in ["{}", r#"{"chat_template": null}"#] {
            assert_eq!(source(none, None), Ok(None));
        }
        for (config, expected) in [
            (r#"{"chat_template": []}"#, "default"),
            (r#"{"chat_template": 7}"#, "chat_template"),
            (r#"{"chat_template": "{% if %}"}"#, "invalid chat template"),
            (r#"{"chat_template": "{% include 'x' %}"}"#, "no other templates"),
            (r#"{"chat_template": "", "bos_token": 1}"#, "bos_token"),
            ("[", "expected form"),
            ("", "cannot be parsed"),
        ] {
            let error = source(config, None).expect_err(config);
            assert!(error.contains(CONFIG_FILE) && error.contains(expected), "{config}: {error}");
        }
        let none = TokenizerConfig::from_json(None).expect("empty");
        let error = ChatTemplate::new(&none, Some(b"\xff")).expect_err("not UTF-8").to_string();
        assert!(error.contains(TEMPLATE_FILE) && error.contains("UTF-8"), "{error}");
        assert!(ChatTemplate::new(&none, None).expect("no error").is_none());
    }

    fn try_render(template: &str) -> Result<String, String> {
        let config = TokenizerConfig::from_json(None).expect("empty");
        let template = ChatTemplate::new(&config, Some(template.as_bytes()));
        let template = template.map_err(|error| error.to_string())?.expect("given");
        template.render("message").map_err(|error| error.to_string())
    }

    /// Each of these templates ended or hung a process, or took memory without a bound, before it was refused or
    /// limited.
    #[test]
    fn render_refuses_or_bounds_hostile_templates() {
        let start = std::time::Instant::now();
        let repeat = |count: usize, body: &str| {
            format!(
                "{{% set n = namespace(a='aaaaaaaaaa', l=[1]) %}}{{% for i in range({count}) %}}{body}{{% endfor %}}"
            )
        };
        for template in [
            "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}".to_owned(),
            "{% set n = namespace() %}{% set n.a = n %}{{ n }}".to_owned(),
            format!("{{{{ 1{} }}}}", "+1".repeat(19_000)),
            repeat(15, "{% set n.a = n.a.replace('a', 'aaaaaaaaaa') %}") + "{{ n.a | length }}",
            repeat(15, "{% set n.a = n.a | replace('a', 'aaaaaaaaaa') %}") + "{{ n.a | length }}",
            repeat(40, "{% set n.a = n.a ~ n.a %}") + "{{ n.a | length }}",
            repeat(40, "{% set n.a = [n.a] | join(n.a) ~ n.a %}") + "{{ n.a | length }}",
            repeat(40, "{% set n.a = n.a.join('abc') %}") + "{{ n.a | length }}",
            repeat(40, "{% set n.l = n.l + n.l %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l | batch(9, n.l) | list %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l | chain(n.l) %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l | slice(1, n.l) | list %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l | zip(n.l) | list %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l | sum(start=n.l) %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = [0, 0] | map('default', n.l, true) | list %}")
                + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = [0, 0] | map(attribute='x', default=n.l) | list %}")
                + "{{ n.l | string | length }}",
            repeat(40, "{% with a = 1, b = n.l %}{% set n.l = n.l + b %}{% endwith %}")
                + "{{ n.l | string | length }}",
            repeat(40, "{% with (a, b) = (1, n.l) %}{% set n.l = n.l + b %}{% endwith %}")
                + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l, n.l %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set x, n.l = [0, n.l + n.l] %}") + "{{ n.l | string | length }}",
            repeat(40, "{% set n.l = n.l + '' | default(n.l, true) %}") + "{{ n.l | string | length }}",
            repeat(
                40,
                "{% for x in [n.l, 0] %}{% if loop.last %}{% set n.l = [loop.previtem, loop.previtem] %}{% endif %}{% endfor %}",
            ) + "{{ n.l | string | length }}",
            "{% macro f(x) %}{% set n.l = x %}{% endmacro %}".to_owned()
                + &repeat(40, "{{ f([n.l, n.l]) }}")
                + "{{ n.l | string | length }}",
            "{% for x in [[1]] recursive %}{% if loop.depth < 40 %}{{ loop([[x, x]]) }}{% else %}{{ x | string | length }}{% endif %}{% endfor %}".to_owned(),
            "{% set d = 1 %}{% set x = [1] %}{% block a %}{% set d = d + 1 %}{% set x = [x, x] %}{% if d < 40 %}{{ self.a() }}{% else %}{{ x | string | length }}{% endif %}{% endblock %}".to_owned(),
            repeat(40, "{% set n.l = [n.l, n.l] %}") + "{{ n.l | length }}",
            repeat(40, "{% set n.l = [n.l, n.l] %}") + "{{ n.l | tojson(indent=4) }}",
            repeat(40, "{% set n.l = [n.l, n.l] %}")
                + "{{ n.l == n.l }}{{ n.l | string | length }}",
            "{{ '{:1000000000}'.format(1) }}".to_owned(),
            "{{ '%1000000000d' | format(1) }}".to_owned(),
            "{{ 'a' * 1000000000 }}".to_owned(),
            "{{ range(1000000000) | list | length }}".to_owned(),
            "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
                .to_owned(),
        ] {
            let error = try_render(&template).expect_err(&template[..template.len().min(120)]);
            assert!(!error.is_empty());
        }
        assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    }

    /// The idioms of known templates, with the names of the models that have them.
    #[test]
    fn render_accepts_idioms_of_known_templates() {
        for (model, template, expected) in [
            (
                "a list of messages, collected in a namespace",
                "{% set ns = namespace(messages=[]) %}{% for message in messages %}{% set ns.messages = ns.messages + [{'role': message.role, 'content': message.content}] %}{% endfor %}{% for message in ns.messages %}{{ message.role + ': ' + message.content }}{% endfor %}",
                "user: message",
            ),
            (
                "Llama 3",
                "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}{{- 'Today: ' + date_string + '\n' }}{{- 'Tools: ' + ['a', 'b'] | reject('equalto', 'a') | join(', ') + '\n' }}{{- system_message }}{%- for message in messages %}{%- if not (message.role == 'ipython' or 'tool_calls' in message) %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}",
                "Today: 26 Jul 2024\nTools: b\n<|start_header_id|>user<|end_header_id|>\n\nmessage<|eot_id|>",
            ),
            (
                "Mistral",
                "{%- set ns = namespace(index=0) %}{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}{%- for message in messages | rejectattr('role', 'equalto', 'tool') %}{%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}{%- set ns.index = ns.index + 1 %}{%- for key, value in message.items() if key != 'role' %}{{- ', \"' + key + '\": ' + value | tojson }}{%- endfor %}{%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- endfor %}{{- user_messages | length }}",
                ", \"content\": \"message\"[INST] message[/INST]1",
            ),
            (
                "Gemma",
                "{{ bos_token }}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- for message in loop_messages -%}{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
                "<start_of_turn>user\nmessage<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                "DeepSeek R1",
                "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{ '<User>' + message['content'] }}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- for tool in message['tool_calls'] %}{{ '<call>' + tool['type'] + '<sep>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments'] + '\n' + '```' }}{%- endfor %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<Assistant>' + content + '<end>' }}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{ '<Assistant><think>\n' }}{% endif %}",
                "<User>message<Assistant><think>\n",
            ),
            (
                "Qwen3",
                "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- set content = message.content %}{%- set reasoning_content = '' %}{%- if '</think>' in content %}{%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last_query_index or (loop.last or (not loop.last and reasoning_content)) %}{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- endif %}{%- if loop.previtem and loop.previtem.role != 'tool' %}{{- loop.nextitem.role }}{%- endif %}{%- endfor %}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}",
                "<|im_start|>user\n<think>\n\n</think>\n\nmessage",
            ),
            (
                "Phi",
                "{% for message in messages %}{% if (message['role'] == 'system') %}{{ '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>' }}{% elif (message['role'] == 'user') %}{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% else %}{{ eos_token }}{% endif %}",
                "<|im_start|>user<|im_sep|>message<|im_end|><|im_start|>assistant<|im_sep|>",
            ),
            (
                "filters",
                "{% set words = ['b', 'a', 'b'] %}{{ words | unique | sort | join(',') }} {{ words | map('upper') | list | first }} {{ messages | map(attribute='role', default='none') | last }} {{ {'b': 1, 'a': 2} | dictsort | length }}{{ {'a': 1} | items | list | length }} {{ 'a\nb' | indent(2) | replace('a', 'c') | lower | safe }} {{ words | reverse | select('ne', 'a') | length | string }} {{ '7' | int + 1 }} {{ none | default([], true) | length }}",
                "a,b B user 21 c\n  b 2 8 0",
            ),
        ] {
            assert_eq!(try_render(template).as_deref(), Ok(expected), "{model}");
        }
    }

    /// These templates are as deep as the limits allow, and must not overflow the stack.
    #[test]
    fn render_bears_deep_templates_and_values() {
        let nested = "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = [n.l] %}{% endfor %}";
        for template in [
            format!("{{{{ 1{} }}}}", "+1".repeat(990)),
            format!("{{{{ 'a'{} }}}}", "|lower".repeat(990)),
            format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(10_000)),
            format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(900)),
            nested.to_owned(),
            format!("{nested}{{{{ n.l }}}}"),
            format!("{nested}{{{{ n.l == [n.l] }}}}"),
            format!("{nested}{{{{ n.l | tojson }}}}"),
        ] {
            let _ = try_render(&template);
        }
    }

    /// The limits do not change the results of the methods of Python's strings that known templates call.
    #[test]
    fn call_method_counts_bytes_and_calls_pythons_methods() {
        for (template, expected) in [
            ("{{ 'a-b'.replace('-', '+') }}{{ ','.join(['a', 'b']) }}", "a+ba,b"),
            ("{{ 'a b'.split(' ')[1] }}{{ '{} {:>3}'.format('a', 1) }}", "ba   1"),
            ("{{ {'a': 1}.items() | list }}{{ [1, 1].count(1) }}", "[('a', 1)]2"),
        ] {
            assert_eq!(try_render(template).as_deref(), Ok(expected), "{template}");
        }
    }
}

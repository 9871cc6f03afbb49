//! Checks of a chat template before it is compiled.
//!
//! Templates are untrusted. minijinja bounds the instructions of a rendering, but it compiles chains of operators
//! recursively, without a limit, and it recurses without end into a namespace that contains itself. So a template is
//! first divided into tags and tokens, by the rules of minijinja's lexer, and refused if it
//! - is longer, or has a tag of more tokens, than any known template,
//! - includes other templates, because a checkpoint has only one,
//! - has values that could contain one another so often that their text has no bound,
//! - uses a namespace in another way than by its attributes (`ns.name`), so that no value can contain a namespace,
//! - calls `cycle` without arguments, which minijinja does not expect.

use std::collections::HashSet;
use std::ops::Range;

/// The largest number of bytes of a template. The largest known one has about 30,000.
const MAX_BYTES: usize = 128 << 10;
/// The largest number of tokens of a tag. The largest known tag has about 150.
const MAX_TAG_TOKENS: usize = 2000;
/// The largest product of the numbers of variables in the lists, tuples and dictionaries of a template.
const MAX_COPIES: usize = 10_000;
/// A factor for a product, which may repeat a list.
const COPIES_OF_PRODUCT: usize = 100;
/// Names that are no variables. A bracket after one of them is no index and no call.
const KEYWORDS: [&str; 12] =
    ["in", "if", "else", "elif", "and", "or", "not", "is", "for", "set", "true", "false"];

/// A tag: `{{ … }}` or `{% … %}`.
struct Tag<'a> {
    /// The bytes between the delimiters.
    inside: Range<usize>,
    tokens: Vec<Token<'a>>,
}

/// A token of a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    /// A name or a keyword.
    Name(&'a str),
    /// A character of an operator, a bracket or a delimiter.
    Sign(char),
    /// A string or a number.
    Literal,
}

/// Checks a template. Returns it with `{% generation %}` blocks replaced by their contents; transformers uses these
/// blocks in training only.
///
/// # Errors
/// Returns the reason why the template is refused.
pub(super) fn check(source: &str) -> Result<String, String> {
    if source.len() > MAX_BYTES {
        return Err(format!("it has {} bytes; the limit is {MAX_BYTES}", source.len()));
    }
    let tags = tags(source)?;
    for tag in &tags {
        if tag.tokens.len() > MAX_TAG_TOKENS {
            return Err(format!(
                "a tag has {} tokens; the limit is {MAX_TAG_TOKENS}",
                tag.tokens.len()
            ));
        }
        if let [Token::Name(name @ ("include" | "import" | "from" | "extends")), ..] =
            tag.tokens[..]
        {
            return Err(format!("it has the tag {name:?}, but there are no other templates"));
        }
        check_cycle(tag)?;
    }
    check_namespaces(&tags)?;
    check_copies(&tags)?;
    Ok(without_generation_tags(source, &tags))
}

/// Divides a template into its tags.
fn tags(source: &str) -> Result<Vec<Tag<'_>>, String> {
    let mut tags = Vec::new();
    let mut position = 0;
    while let Some(start) = source[position..].find('{') {
        position += start + 1;
        let Some(kind) = source[position..].chars().next() else { break };
        match kind {
            '#' => {
                let end = source[position + 1..].find("#}").ok_or("a comment has no end")?;
                position += 1 + end + 2;
            }
            '%' | '{' => {
                position += 1;
                let raw = basic_tag(&source[position..], "raw").filter(|_| kind == '%');
                if let Some(length) = raw {
                    position = end_of_raw(source, position + length)?;
                    continue;
                }
                let end = if kind == '{' { "}}" } else { "%}" };
                let (tag, end) = read_tag(source, position, end)?;
                tags.push(tag);
                position = end;
            }
            _ => {}
        }
    }
    Ok(tags)
}

/// Returns the length of a tag that consists of `name`, if `text` begins inside such a tag.
fn basic_tag(text: &str, name: &str) -> Option<usize> {
    let rest = without_sign(text).trim_ascii_start().strip_prefix(name)?;
    let rest = without_sign(rest.trim_ascii_start()).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

/// Removes a sign of white-space control from the beginning of a text.
fn without_sign(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

/// Returns the position after the `{% endraw %}` that ends a block of raw text.
fn end_of_raw(source: &str, start: usize) -> Result<usize, String> {
    let mut position = start;
    while let Some(found) = source[position..].find("{%") {
        position += found + 2;
        if let Some(length) = basic_tag(&source[position..], "endraw") {
            return Ok(position + length);
        }
    }
    Err("a block of raw text has no end".into())
}

/// Reads the tokens of a tag. Returns the tag and the position after its end.
fn read_tag<'a>(source: &'a str, start: usize, end: &str) -> Result<(Tag<'a>, usize), String> {
    let mut tokens = Vec::new();
    let mut open_brackets = 0_usize;
    let mut position = start;
    loop {
        let rest = &source[position..];
        let next = rest.chars().next().ok_or("a tag has no end")?;
        let is_end = |text: &str| open_brackets == 0 && text.starts_with(end);
        if is_end(rest) || is_end(without_sign(rest)) {
            let sign = if is_end(rest) { 0 } else { 1 };
            // A sign of white-space control at the beginning is not a token.
            if let Some(Token::Sign('-' | '+')) = tokens.first() {
                tokens.remove(0);
            }
            let tag = Tag { inside: start..position, tokens };
            return Ok((tag, position + sign + end.len()));
        }
        let length = match next {
            '\'' | '"' => string_length(rest)?,
            _ if next.is_ascii_alphabetic() || next == '_' => {
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            _ => next.len_utf8(),
        };
        match next {
            '(' | '[' | '{' => open_brackets += 1,
            ')' | ']' | '}' => {
                open_brackets =
                    open_brackets.checked_sub(1).ok_or("a bracket is closed but not open")?;
            }
            _ => {}
        }
        if !next.is_ascii_whitespace() {
            tokens.push(match next {
                '\'' | '"' | '0'..='9' => Token::Literal,
                _ if length > 1 || next.is_ascii_alphabetic() || next == '_' => {
                    Token::Name(&rest[..length])
                }
                _ => Token::Sign(next),
            });
        }
        position += length;
    }
}

/// Returns the length of the string at the beginning of a text, with its quotes.
fn string_length(text: &str) -> Result<usize, String> {
    let bytes = text.as_bytes();
    let mut position = 1;
    while let Some(byte) = bytes.get(position) {
        match byte {
            b'\\' => position += 2,
            byte if *byte == bytes[0] => return Ok(position + 1),
            _ => position += 1,
        }
    }
    Err("a string has no end".into())
}

/// Refuses calls of `loop.cycle` that may have no arguments.
fn check_cycle(tag: &Tag<'_>) -> Result<(), String> {
    use Token::{Name, Sign};
    let is_empty =
        |window: &[Token<'_>]| matches!(window, [Name("cycle"), Sign('('), Sign(')' | '*')]);
    match tag.tokens.windows(3).any(is_empty) {
        true => Err("it calls `cycle` without a plain argument".into()),
        false => Ok(()),
    }
}

/// Refuses other uses of namespaces than `{% set NAME = namespace(…) %}`, `NAME.attribute` and `NAME[…]`.
fn check_namespaces(tags: &[Tag<'_>]) -> Result<(), String> {
    use Token::{Name, Sign};
    let created = |tag: &Tag<'_>| match tag.tokens[..] {
        [Name("set"), Name(name), Sign('='), Name("namespace"), Sign('('), .., Sign(')')] => {
            let name = name.to_owned();
            is_one_call(&tag.tokens[4..]).then_some(name)
        }
        _ => None,
    };
    let names: HashSet<String> = tags.iter().filter_map(created).collect();
    for tag in tags {
        // The name and the function in the tag that creates a namespace.
        let allowed = if created(tag).is_some() { 1..4 } else { 0..0 };
        for (index, token) in tag.tokens.iter().enumerate() {
            let Name(name) = token else { continue };
            let is_attribute = index > 0 && tag.tokens[index - 1] == Sign('.');
            if is_attribute || allowed.contains(&index) {
                continue;
            }
            if *name == "namespace" {
                return Err(
                    "it calls `namespace` elsewhere than in `{% set NAME = namespace(…) %}`".into(),
                );
            }
            let next = tag.tokens.get(index + 1);
            let is_base = matches!(next, Some(Sign('.' | '[')));
            if names.contains(*name) && !is_base {
                return Err(format!(
                    "it uses the namespace `{name}` in another way than by its attributes"
                ));
            }
        }
    }
    Ok(())
}

/// Refuses templates whose values could contain one another so often that their text has no bound. A value grows by a
/// factor where a list, a tuple or a dictionary holds several variables, where a product repeats a list, or where a sum
/// joins lists. A loop that sets the attribute of a namespace can repeat this, and so can a macro that calls itself. So
/// an attribute may be set to a sum with only one value that comes from a namespace, such as a list and a new element.
fn check_copies(tags: &[Tag<'_>]) -> Result<(), String> {
    use Token::{Name, Sign};
    let from_namespaces = names_from_namespaces(tags);
    let (mut copies, mut open_macros) = (1_usize, 0_usize);
    for tag in tags {
        match tag.tokens[..] {
            [Name("macro" | "call"), ..] => open_macros += 1,
            [Name("endmacro" | "endcall"), ..] => open_macros = open_macros.saturating_sub(1),
            _ => {}
        }
        let has_product = tag.tokens.contains(&Sign('*'));
        let (variables, summands) = (most_variables(&tag.tokens), most_summands(&tag.tokens));
        let sets_attribute = matches!(tag.tokens[..], [Name("set"), Name(_), Sign('.' | '['), ..]);
        // The first two names are the tag's and its target's.
        let values = names(&tag.tokens).skip(2);
        let references = values.filter(|name| from_namespaces.contains(name)).count();
        let assigns = matches!(tag.tokens[..], [Name("set" | "with" | "for"), ..]);
        let repeats = (sets_attribute || open_macros > 0) && (variables > 1 || has_product)
            || open_macros > 0 && summands > 1
            || assigns && references > 1 && (variables > 1 || summands > 1)
            || assigns && references > 0 && has_product;
        if repeats {
            return Err("a list, a tuple, a dictionary, a sum or a product has several variables in the attribute \
                        of a namespace or in a macro"
                .into());
        }
        if tag.tokens.iter().any(|token| matches!(token, Name("varargs" | "kwargs"))) {
            return Err("it uses the arguments of a macro as a list".into());
        }
        let product = if has_product { COPIES_OF_PRODUCT } else { 1 };
        copies = copies.saturating_mul(variables.max(product).max(summands));
        if copies > MAX_COPIES {
            return Err(format!("its lists hold variables more than {MAX_COPIES} times in all"));
        }
    }
    Ok(())
}

/// Returns the names of namespaces, and of variables and loop variables whose values may come from them.
fn names_from_namespaces<'a>(tags: &[Tag<'a>]) -> HashSet<&'a str> {
    use Token::{Name, Sign};
    let mut found = HashSet::new();
    loop {
        let known = found.len();
        for tag in tags {
            let (end, is_attribute) = match tag.tokens[..] {
                [Name("set"), Name(_), Sign('.' | '['), ..] => (Some(2), true),
                [Name("set" | "with"), ..] => {
                    (tag.tokens.iter().position(|token| *token == Sign('=')), false)
                }
                [Name("for"), ..] => {
                    (tag.tokens.iter().position(|token| *token == Name("in")), false)
                }
                _ => continue,
            };
            let (targets, value) = tag.tokens.split_at(end.unwrap_or(tag.tokens.len()));
            if is_attribute || names(value).any(|name| found.contains(name)) {
                found.extend(names(targets).skip(1));
            }
        }
        if found.len() == known {
            return found;
        }
    }
}

/// Returns the names in tokens that are no attributes and no filters.
fn names<'t, 'a>(tokens: &'t [Token<'a>]) -> impl Iterator<Item = &'a str> + use<'t, 'a> {
    tokens.iter().enumerate().filter_map(|(index, token)| match token {
        Token::Name(name) if index == 0 || !matches!(tokens[index - 1], Token::Sign('.' | '|')) => {
            Some(*name)
        }
        _ => None,
    })
}

/// Returns the number of values that a tag's sums may join to a list. A sum with a string or a number is no list.
fn most_summands(tokens: &[Token<'_>]) -> usize {
    let is_of_values = |sum: &&[Token<'_>]| {
        sum[1] == Token::Sign('+') && ![sum[0], sum[2]].contains(&Token::Literal)
    };
    tokens.windows(3).filter(is_of_values).count() + 1
}

/// Returns the number of variables in the list, tuple or dictionary of a tag that has most.
fn most_variables(tokens: &[Token<'_>]) -> usize {
    use Token::{Literal, Name, Sign};
    /// An open bracket.
    struct Open {
        is_call: bool,
        is_list: bool,
        variables: usize,
    }
    let mut open: Vec<Open> = Vec::new();
    let mut most = 0;
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| tokens.get(before));
        match token {
            Sign(bracket @ ('(' | '[' | '{')) => {
                let follows_value = match before {
                    Some(Name(name)) => !KEYWORDS.contains(name),
                    Some(Literal | Sign(')' | ']' | '}')) => true,
                    _ => false,
                };
                let makes_list = matches!(before, Some(Name("dict" | "zip" | "namespace")));
                let is_list = makes_list || (*bracket != '(' && !follows_value);
                open.push(Open { is_call: follows_value, is_list, variables: 0 });
            }
            // A comma makes a tuple of a bracket that is no call.
            Sign(',') => {
                if let Some(last) = open.last_mut().filter(|last| !last.is_call) {
                    last.is_list = true;
                }
            }
            Sign(')' | ']' | '}') => {
                if let Some(Open { is_list, variables, .. }) = open.pop() {
                    most = most.max(if is_list { variables } else { 0 });
                    if let Some(outer) = open.last_mut() {
                        outer.variables += variables;
                    }
                }
            }
            Name(name) => {
                let is_attribute = matches!(before, Some(Sign('.' | '|')));
                let is_called = matches!(tokens.get(index + 1), Some(Sign('(')));
                let is_variable = !KEYWORDS.contains(name) && !is_attribute && !is_called;
                if let Some(last) = open.last_mut().filter(|_| is_variable) {
                    last.variables += 1;
                }
            }
            _ => {}
        }
    }
    most
}

/// Returns whether the bracket at the beginning is closed by the last token.
fn is_one_call(tokens: &[Token<'_>]) -> bool {
    let mut open_brackets = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('(' | '[' | '{') => open_brackets += 1,
            Token::Sign(')' | ']' | '}') => open_brackets = open_brackets.saturating_sub(1),
            _ => {}
        }
        if open_brackets == 0 {
            return index + 1 == tokens.len();
        }
    }
    false
}

fn without_generation_tags(source: &str, tags: &[Tag<'_>]) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut copied = 0;
    for tag in tags {
        let (name, equivalent) = match tag.tokens[..] {
            [Token::Name(name @ "generation")] => (name, "if true"),
            [Token::Name(name @ "endgeneration")] => (name, "endif"),
            _ => continue,
        };
        kept.push_str(&source[copied..tag.inside.start]);
        kept.push_str(&source[tag.inside.clone()].replace(name, equivalent));
        copied = tag.inside.end;
    }
    kept.push_str(&source[copied..]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_replaces_generation_tags_alone() {
        for (source, expected) in [
            ("{% generation %}a{%- endgeneration -%} b", "{% if true %}a{%- endif -%} b"),
            (
                "{# {% generation %} #}{{ '{% generation %}' }}",
                "{# {% generation %} #}{{ '{% generation %}' }}",
            ),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            (
                "{ {x} }{{ {'a': {}} }}{%+ if generation +%}",
                "{ {x} }{{ {'a': {}} }}{%+ if generation +%}",
            ),
        ] {
            assert_eq!(check(source).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn check_accepts_namespaces_by_attribute() {
        for source in [
            "{%- set ns = namespace(a=true, b=[1, (2)]) -%}{% set ns.a = ns.b[0] ~ ns['a'] %}{{ ns.a }}",
            "{% for i in range(3) %}{% set n.i = n.i + i %}{% set n.s = n.s + message['content'] %}{% endfor %}",
            "{# ns #}ns{% set ns = namespace() %}{{ 'ns' }}{{ x.ns }}{% raw %}{{ ns }}{% endraw %}",
            "{% for i in [1] %}{{ loop.cycle('a', 'b') }}{{ loop.cycle(x) }}{% endfor %}",
            "{% set n.l = n.l + [message] %}{% set n.i = n.i + 1 %}{% set n.s = f(a, b)[c] ~ (a or b) %}",
            "{% macro f(a, b) %}{% if a in ['x', 'y'] and b[0] %}{{ g(a, b) }}{% endif %}{% endmacro %}",
            "{{ [a, b, c] | join(d) }}{{ {'role': role, 'content': content} }}",
        ] {
            assert!(check(source).is_ok(), "{source}: {:?}", check(source));
        }
    }

    #[test]
    fn check_refuses_what_minijinja_does_not_bound() {
        let chain = |part: &str| format!("{{{{ 1{} }}}}", part.repeat(2000));
        for (source, expected) in [
            ("{% set n = namespace() %}{% set n.a = n %}", "namespace `n`"),
            ("{% set n = namespace() %}{% set n.a = [n] %}", "namespace `n`"),
            ("{% set n = namespace() %}{%- set m=n-%}", "namespace `n`"),
            ("{{ n }}{% set n = namespace() %}", "namespace `n`"),
            ("{% set n = namespace(), 1 %}", "calls `namespace`"),
            ("{% set n = namespace()[0] %}", "calls `namespace`"),
            ("{% set n = [namespace()] %}", "calls `namespace`"),
            ("{% set f = namespace %}", "calls `namespace`"),
            ("{% raw %}{{ ' }}{% endraw %}{{ namespace }}", "calls `namespace`"),
            ("{# ' #}{{ namespace }}", "calls `namespace`"),
            ("{{ '\\'' ~ namespace }}", "calls `namespace`"),
            ("{% set n.l = [n.l, n.l] %}", "several variables"),
            ("{% set n.l = {'a': n.l, 'b': [n.l]} %}", "several variables"),
            ("{% set n.l = (n.l, n.l) %}", "several variables"),
            ("{% set n.l = [n.l] * 2 %}", "several variables"),
            ("{% set n.l = dict(a=n.l, b=n.l) %}", "several variables"),
            ("{% set n.l = n.l + n.l %}", "several variables"),
            ("{% set n.l = n.l + [n.l] %}", "several variables"),
            ("{% set x = n.l %}{% set n.l = n.l + x %}", "several variables"),
            ("{% for x in [n.l] %}{% set n.l = n.l + x %}{% endfor %}", "several variables"),
            ("{% set x = n.l + n.l %}{% set n.l = x %}", "several variables"),
            ("{% set x = [n.l, n.l] %}{% set n.l = x %}", "several variables"),
            ("{% macro f(x, n) %}{{ f(x + x, n - 1) }}{% endmacro %}", "several variables"),
            (&*"{% set a = a + a %}".repeat(14), "more than 10000 times"),
            ("{% macro f(x, n) %}{{ f([x, x], n - 1) }}{% endmacro %}", "several variables"),
            ("{% macro f() %}{{ varargs }}{% endmacro %}", "arguments of a macro"),
            (&*"{% set a = [a, a] %}".repeat(14), "more than 10000 times"),
            (&*"{% set a = [a] * 9 %}".repeat(3), "more than 10000 times"),
            ("{% for i in [1] %}{{ loop.cycle() }}{% endfor %}", "cycle"),
            ("{% for i in [1] %}{{ loop.cycle( * []) }}{% endfor %}", "cycle"),
            ("{% include 'chat_template.jinja' %}", "include"),
            ("{%- from 'a' import n as m %}", "from"),
            ("{{ 'a", "string"),
            ("{{ a", "no end"),
            ("{# a", "comment"),
            ("{% raw %}", "raw"),
            ("{{ ) }}", "bracket"),
            (&*chain("+1"), "tokens"),
            (&*chain("|e"), "tokens"),
            (&*" ".repeat(MAX_BYTES + 1), "bytes"),
        ] {
            let error = check(source).expect_err(&source[..source.len().min(80)]);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn check_reads_hostile_templates_in_linear_time() {
        let start = std::time::Instant::now();
        for part in ["{%", "{{", "{#", "{% raw %}", "{% set n = namespace() %}", "{% generation %}"]
        {
            let _ = check(&part.repeat(MAX_BYTES / part.len()));
        }
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}

//! Checks of a chat template before it is compiled.
//!
//! Templates are untrusted. minijinja bounds the instructions of a rendering, but it compiles chains of operators
//! recursively, without a limit, and it recurses without end into a namespace that contains itself. So a template is
//! first divided into tags and tokens, by the rules of minijinja's lexer, and refused if it
//! - is longer, or has a tag of more tokens, than any known template,
//! - includes other templates, because a checkpoint has only one,
//! - has values that could contain one another so often that their text has no bound,
//! - has a recursive loop, which no known template has,
//! - uses a namespace in another way than by an attribute (`ns.name`) or an index (`ns['name']`), so that no value can
//!   contain a namespace,
//! - calls `cycle` without arguments, for which minijinja panics.
//!
//! The rules for values know operators, lists, tuples, dictionaries and calls. They do not know filters; the filters
//! that put a value into a list several times are removed from the environment.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::checkpoint::json;

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
        if let [Token::Name("for"), .., Token::Name("recursive")] = tag.tokens[..] {
            return Err("it has a recursive loop".into());
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
            '\'' | '"' => json::string_length(rest).ok_or("a string has no end")?,
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

/// Refuses calls of `loop.cycle` that may have no arguments. The panic would end a program built with
/// `panic = "abort"`.
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

/// Refuses templates whose values could contain one another so often that their text has no bound.
///
/// A value grows by a factor where a list, a tuple or a dictionary holds several variables, where a product repeats a
/// list, or where a sum joins lists. Loops and macros can repeat this:
/// - A loop keeps nothing but the attributes of namespaces. So a tag that sets variables may have several variables in
///   a list or a sum, but only one of them from a namespace. A product may have no variable from a namespace. An
///   example is `ns.list + [{'role': message.role, 'content': message.content}]`.
/// - A macro can set an attribute to its argument. If there are macros or blocks, the same holds for all tags.
/// - A macro or a block can call itself. Inside, no list or sum has several variables, and there are no products.
fn check_copies(tags: &[Tag<'_>]) -> Result<(), String> {
    use Token::{Name, Sign};
    let mut derived = Derived::of_template(tags)?;
    let opens_callable =
        |tag: &Tag<'_>| matches!(tag.tokens.first(), Some(Name("macro" | "call" | "block")));
    let has_callables = tags.iter().any(opens_callable);
    let (mut copies, mut open_callables) = (1_usize, 0_usize);
    for tag in tags {
        derived.visit(tag);
        if opens_callable(tag) {
            open_callables += 1;
        } else if let Some(Name("endmacro" | "endcall" | "endblock")) = tag.tokens.first() {
            open_callables = open_callables.saturating_sub(1);
        }
        if tag.tokens.iter().any(|token| matches!(token, Name("varargs" | "kwargs"))) {
            return Err("it uses the arguments of a macro as a list".into());
        }
        let is_set = tag.tokens.first() == Some(&Name("set"));
        let assigns =
            has_callables || is_set || matches!(tag.tokens.first(), Some(Name("with" | "for")));
        for (_, value) in assignments(&tag.tokens) {
            let has_product = value.contains(&Sign('*'));
            let (variables, summands) = (most_variables(value, is_set), most_summands(value));
            let has_several = variables > 1 || summands > 1;
            let references = names(value).filter(|name| derived.contains(name)).count();
            let repeats = open_callables > 0 && (has_several || has_product)
                || assigns && references > 1 && has_several
                || assigns && references > 0 && has_product;
            if repeats {
                return Err("a list, a tuple, a dictionary, a sum or a product has several variables from namespaces, \
                            or is in a macro or a block"
                    .into());
            }
            let product = if has_product { COPIES_OF_PRODUCT } else { 1 };
            copies = copies.saturating_mul(variables.max(product).max(summands));
            if copies > MAX_COPIES {
                return Err(format!(
                    "its lists hold variables more than {MAX_COPIES} times in all"
                ));
            }
        }
    }
    Ok(())
}

/// The names whose values may come from a namespace, at one tag of a template.
#[derive(Default)]
struct Derived<'a> {
    /// The namespaces, and the variables that any `set` of the template sets.
    set: HashSet<&'a str>,
    /// The variables of the open loops and `with` blocks, with the number of these.
    of_blocks: HashMap<&'a str, usize>,
    /// The variables of each open block.
    open: Vec<Vec<&'a str>>,
}

impl<'a> Derived<'a> {
    /// Returns the names before the first tag.
    ///
    /// # Errors
    /// Returns an error if the names cannot be found in a few passes over the template.
    fn of_template(tags: &[Tag<'a>]) -> Result<Self, String> {
        /// A pass finds all names but those that depend on a later `set`, which has an effect in a loop alone.
        const MAX_PASSES: usize = 16;
        let mut derived = Self::default();
        for _ in 0..MAX_PASSES {
            let known = derived.set.len();
            tags.iter().for_each(|tag| derived.visit(tag));
            derived = Self { set: derived.set, ..Self::default() };
            if derived.set.len() == known {
                return Ok(derived);
            }
        }
        Err("its `set` tags depend on later ones too often".into())
    }

    fn contains(&self, name: &str) -> bool {
        self.set.contains(name) || self.of_blocks.get(name).is_some_and(|blocks| *blocks > 0)
    }

    /// Goes past the next tag.
    fn visit(&mut self, tag: &Tag<'a>) {
        use Token::{Name, Sign};
        let kind = tag.tokens.first();
        if let Some(Name("endfor" | "endwith")) = kind {
            for name in self.open.pop().unwrap_or_default() {
                *self.of_blocks.entry(name).or_default() -= 1;
            }
        }
        let is_set = kind == Some(&Name("set"));
        let mut of_block = Vec::new();
        for (targets, value) in assignments(&tag.tokens) {
            let sets_attribute = is_set && targets.contains(&Sign('.'));
            if !sets_attribute && !names(value).any(|name| self.contains(name)) {
                continue;
            }
            // A `for` sets `loop`, too, which has the neighbours of an item.
            let of_loop = (kind == Some(&Name("for"))).then_some("loop");
            for name in names(targets).chain(of_loop) {
                if is_set {
                    self.set.insert(name);
                } else {
                    *self.of_blocks.entry(name).or_default() += 1;
                    of_block.push(name);
                }
            }
        }
        if let Some(Name("for" | "with")) = kind {
            self.open.push(of_block);
        }
    }
}

/// Returns the tokens of the variables that a tag sets, with those of their values. A tag that sets nothing is one
/// value.
fn assignments<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<(&'t [Token<'a>], &'t [Token<'a>])> {
    use Token::{Name, Sign};
    let split_at = |tokens: &'t [Token<'a>], separator| {
        let end = tokens.iter().position(|token| *token == separator).unwrap_or(tokens.len());
        tokens.split_at(end)
    };
    match tokens {
        [Name("set"), rest @ ..] => vec![split_at(rest, Sign('='))],
        [Name("for"), rest @ ..] => vec![split_at(rest, Name("in"))],
        [Name("with"), rest @ ..] => {
            let mut open_brackets = 0_usize;
            let parts = rest.split(|token| {
                match token {
                    Sign('(' | '[' | '{') => open_brackets += 1,
                    Sign(')' | ']' | '}') => open_brackets = open_brackets.saturating_sub(1),
                    _ => {}
                }
                open_brackets == 0 && *token == Sign(',')
            });
            parts.map(|part| split_at(part, Sign('='))).collect()
        }
        _ => vec![(&[], tokens)],
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
    use Token::{Literal, Sign};
    let joins_values = |index: &usize| {
        let is_literal = |index: usize| tokens.get(index) == Some(&Literal);
        // A filter or an index makes another value of a literal.
        let is_changed = matches!(tokens.get(index + 2), Some(Sign('|' | '.' | '[')));
        tokens[*index] == Sign('+')
            && !(*index > 0 && is_literal(index - 1))
            && (!is_literal(index + 1) || is_changed)
    };
    (0..tokens.len()).filter(joins_values).count() + 1
}

/// Returns the number of variables in the list, tuple or dictionary of a value that has most. `is_set` is whether a
/// comma outside of brackets makes a tuple.
fn most_variables(tokens: &[Token<'_>], is_set: bool) -> usize {
    use Token::{Literal, Name, Sign};
    /// An open bracket.
    struct Open {
        is_call: bool,
        is_list: bool,
        variables: usize,
    }
    // The value as a whole.
    let mut open = vec![Open { is_call: !is_set, is_list: false, variables: 0 }];
    let mut most = 0;
    // The bracket at the end is that of the whole value.
    for (index, token) in tokens.iter().chain([&Sign(')')]).enumerate() {
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
            "{% set ns.messages = ns.messages + [{'role': message.role, 'content': message.content}] %}",
            "{% with a = n.i, b = message %}{% set n.l = n.l + [b.role, b.content] %}{% endwith %}",
            "{% for m in n.l %}{% set n.i = loop.index %}{% endfor %}{% block a %}{{ x }}{% endblock %}{{ a + b }}",
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
            ("{% with a = 1, b = n.l %}{% set n.l = n.l + b %}{% endwith %}", "several variables"),
            ("{% with (a, b) = n.l %}{% set n.l = n.l + a %}{% endwith %}", "several variables"),
            ("{% set n.l = n.l, n.l %}", "several variables"),
            ("{% set a, n.l = 1, n.l + n.l %}", "several variables"),
            ("{% set n.l = n.l + '' | d(n.l, true) %}", "several variables"),
            (
                "{% for x in n.l %}{% set n.l = [loop.previtem, loop.nextitem] %}{% endfor %}",
                "several variables",
            ),
            (
                "{% macro f(x) %}{% set n.l = x %}{% endmacro %}{{ f([n.l, n.l]) }}",
                "several variables",
            ),
            ("{% block a %}{% set x = [x, x] %}{{ self.a() }}{% endblock %}", "several variables"),
            ("{% for x in y recursive %}{{ loop([x, x]) }}{% endfor %}", "recursive"),
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

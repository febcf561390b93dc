//! Checks the tags of a chat template, and wraps every stored value in a filter that limits its size.
//!
//! minijinja uses recursion to parse, drop and print values. Three limits bound the depth of this recursion:
//!
//! - a tag has at most `MAX_OPERATORS` operators, so the nesting of its expression has no more levels than
//!   that;
//! - `elif` branches are counted too, because they are nested in the syntax tree;
//! - each value that outlives its expression passes through [`BOUND`] or [`BOUND_MEMBER`].
//!
//! A value can outlive its expression through `set`, `with`, `for`, the parameters of a macro, and
//! `loop(...)`:
//!
//! ```text
//! {% set x = A %}            {% set x = (A)|danlu_bound %}
//! {% set ns.x = A %}         {% set ns.x = (A)|danlu_bound_member %}
//! {% with x = A, y = B %}    {% with x = (A)|danlu_bound, y = (B)|danlu_bound %}
//! {% for x in A if c %}      {% for x in (A)|danlu_bound if c %}
//! {% macro f(x) %}           {% macro f(x) %}{% set x = x|danlu_bound %}
//! {{ loop(A) }}              {{ loop((A)|danlu_bound) }}
//! ```

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Name of the filter that limits the depth and the size of a value.
pub(crate) const BOUND: &str = "danlu_bound";

/// Name of the filter for a value that becomes an attribute of a namespace. A namespace may contain only
/// data.
pub(crate) const BOUND_MEMBER: &str = "danlu_bound_member";

/// Maximum number of operators in one tag. Published templates have some 60.
const MAX_OPERATORS: usize = 500;

/// Maximum number of `elif` tags. Published templates have some 20.
const MAX_ELIFS: usize = 500;

/// The error for a template that is nested too deeply, with the line of the fault. The first line is 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooDeep {
    pub line: usize,
    pub message: String,
}

/// Returns `source` with a size check around each value that is stored: `{% set x = A %}` becomes `{% set x =
/// (A)|danlu_bound %}`.
///
/// If `source` is not valid Jinja, it is returned unchanged, and the parser reports the error later.
pub(crate) fn bound_values(source: &str, syntax: &SyntaxConfig) -> Result<String, TooDeep> {
    let mut insertions = Vec::new();
    let (mut elifs, mut operators) = (0, 0);
    let mut tag: Vec<(Token<'_>, Span)> = Vec::new();
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { return Ok(source.to_owned()) };
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => {
                tag.clear();
                operators = 0;
            }
            Token::BlockEnd | Token::VariableEnd => {
                elifs += usize::from(matches!(tag.first(), Some((Token::Ident("elif"), _))));
                if elifs > MAX_ELIFS {
                    let message = format!("it has more than {MAX_ELIFS} `elif` branches");
                    return Err(TooDeep { line: usize::from(span.start_line), message });
                }
                let end = span.start_offset as usize..span.end_offset as usize;
                if matches!(token, Token::BlockEnd) {
                    wrap_statement(&tag, &source[end.clone()], end, &mut insertions);
                }
                wrap_loop_calls(&tag, &mut insertions);
            }
            _ => {
                operators += usize::from(is_operator(&token));
                if operators > MAX_OPERATORS {
                    let message = format!("a tag has more than {MAX_OPERATORS} operators");
                    return Err(TooDeep { line: usize::from(span.start_line), message });
                }
                tag.push((token, span));
            }
        }
    }
    insertions.sort_by_key(|insertion: &Insertion| insertion.at);
    let mut out = String::with_capacity(source.len() + 32 * insertions.len());
    let mut done = 0;
    for Insertion { at, text } in insertions {
        out.push_str(&source[done..at]);
        out.push_str(&text);
        done = at;
    }
    out.push_str(&source[done..]);
    Ok(out)
}

struct Insertion {
    at: usize,
    text: String,
}

/// Returns whether a token can increase the nesting of an expression by one level.
fn is_operator(token: &Token<'_>) -> bool {
    match token {
        Token::Ident(word) => matches!(*word, "not" | "and" | "or" | "if" | "is" | "in" | "else"),
        Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => false,
        Token::Comma | Token::Colon | Token::Assign => false,
        Token::BracketClose | Token::ParenClose | Token::BraceClose => false,
        _ => true,
    }
}

/// Inserts a filter after each value that the statement `tag` stores, as in `{% set x = (A)|danlu_bound %}`.
/// `close` is the text that closes the tag, such as `-%}`, and `end` is the position of this text.
fn wrap_statement(
    tag: &[(Token<'_>, Span)],
    close: &str,
    end: std::ops::Range<usize>,
    insertions: &mut Vec<Insertion>,
) {
    let depths = bracket_depths(tag);
    let at_top = |wanted: fn(&Token<'_>) -> bool| {
        (0..tag.len()).filter(|&i| depths[i] == 0 && wanted(&tag[i].0)).collect::<Vec<_>>()
    };
    let assigns = at_top(|token| matches!(token, Token::Assign));
    let mut wrap = |range: std::ops::Range<usize>, filter: &str| {
        let Some([(_, first), .., (_, last)] | [(_, first @ last)]) = tag.get(range) else { return };
        insertions.push(Insertion { at: first.start_offset as usize, text: "(".to_owned() });
        insertions.push(Insertion { at: last.end_offset as usize, text: format!(")|{filter}") });
    };
    match tag.first() {
        Some((Token::Ident("set"), _)) => {
            let head = assigns.first().copied().unwrap_or(tag.len());
            let is_member = tag[..head].iter().any(|(token, _)| matches!(token, Token::Dot));
            let filter = if is_member { BOUND_MEMBER } else { BOUND };
            if head < tag.len() {
                wrap(head + 1..tag.len(), filter);
            } else if tag.iter().any(|(token, _)| matches!(token, Token::Pipe)) {
                insertions.push(Insertion { at: end.start, text: format!("|{filter} ") });
            }
        }
        Some((Token::Ident("with"), _)) => {
            let commas = at_top(|token| matches!(token, Token::Comma));
            for assign in assigns {
                let stop = commas.iter().copied().find(|&comma| comma > assign).unwrap_or(tag.len());
                wrap(assign + 1..stop, BOUND);
            }
        }
        Some((Token::Ident("for"), _)) => {
            let Some(&start) = at_top(|token| matches!(token, Token::Ident("in"))).first() else { return };
            let filter = at_top(|token| matches!(token, Token::Ident("if"))).into_iter().find(|&i| i > start);
            let is_recursive =
                tag.len() > start + 2 && matches!(tag[tag.len() - 1].0, Token::Ident("recursive"));
            wrap(start + 1..filter.unwrap_or(tag.len() - usize::from(is_recursive)), BOUND);
        }
        Some((Token::Ident("macro" | "call"), _)) => {
            let sets = parameters(tag, &depths)
                .map(|name| format!("{{% set {name} = {name}|{BOUND} {close}"))
                .collect::<String>();
            insertions.push(Insertion { at: end.end, text: sets });
        }
        _ => {}
    }
}

/// Returns the names of the parameters of `{% macro name(a, b=1) %}` or `{% call(a) f() %}`.
fn parameters<'a>(tag: &'a [(Token<'a>, Span)], depths: &'a [usize]) -> impl Iterator<Item = &'a str> {
    let open = match tag {
        [(Token::Ident("macro"), _), _, (Token::ParenOpen, _), ..] => 2,
        [(Token::Ident("call"), _), (Token::ParenOpen, _), ..] => 1,
        _ => tag.len(),
    };
    let close = (open + 1..tag.len()).find(|&i| depths[i] == 0).unwrap_or(tag.len());
    (open + 1..close).filter_map(move |i| match (&tag[i - 1].0, &tag[i].0) {
        (Token::ParenOpen | Token::Comma, Token::Ident(name)) if depths[i] == 1 => Some(*name),
        _ => None,
    })
}

/// Inserts a filter into each call `loop(A)`, which runs a recursive loop over `A`: `loop((A)|danlu_bound)`.
fn wrap_loop_calls(tag: &[(Token<'_>, Span)], insertions: &mut Vec<Insertion>) {
    let depths = bracket_depths(tag);
    for (i, pair) in tag.windows(2).enumerate() {
        let [(Token::Ident("loop"), _), (Token::ParenOpen, open)] = pair else { continue };
        let close = (i + 2..tag.len()).find(|&at| depths[at] == depths[i]);
        let Some(close) = close.filter(|&close| close > i + 2) else { continue };
        insertions.push(Insertion { at: open.end_offset as usize, text: "(".to_owned() });
        insertions.push(Insertion { at: tag[close].1.start_offset as usize, text: format!(")|{BOUND}") });
    }
}

/// Returns, for each token, the number of open brackets around the token. A bracket does not count itself.
fn bracket_depths(tag: &[(Token<'_>, Span)]) -> Vec<usize> {
    let mut depth = 0usize;
    tag.iter()
        .map(|(token, _)| match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                depth += 1;
                depth - 1
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                depth = depth.saturating_sub(1);
                depth
            }
            _ => depth,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(source: &str) -> String {
        bound_values(source, &SyntaxConfig::default()).unwrap()
    }

    #[test]
    fn every_stored_value_is_wrapped() {
        for (source, expected) in [
            ("{% set x = a + '%}' -%} y", "{% set x = (a + '%}')|danlu_bound -%} y"),
            ("{%- set ns.a, b = 1, [2] %}", "{%- set ns.a, b = (1, [2])|danlu_bound_member %}"),
            ("{% set x | trim %}y{% endset %}", "{% set x | trim |danlu_bound %}y{% endset %}"),
            ("{% set x %}y{% endset %}", "{% set x %}y{% endset %}"),
            (
                "{% with a = f(b=1, c=2), d = 3 %}{% endwith %}",
                "{% with a = (f(b=1, c=2))|danlu_bound, d = (3)|danlu_bound %}{% endwith %}",
            ),
            ("{% for a, b in x.items() %}", "{% for a, b in (x.items())|danlu_bound %}"),
            ("{% for a in x if a is in y %}", "{% for a in (x)|danlu_bound if a is in y %}"),
            ("{% for a in x recursive %}", "{% for a in (x)|danlu_bound recursive %}"),
            ("{% for a in recursive %}", "{% for a in (recursive)|danlu_bound %}"),
            (
                "{% macro f(a, b=g(c, d)) -%} x",
                "{% macro f(a, b=g(c, d)) -%}{% set a = a|danlu_bound -%}{% set b = b|danlu_bound -%} x",
            ),
            ("{% call(a) f(b) %}", "{% call(a) f(b) %}{% set a = a|danlu_bound %}"),
            ("{{ loop([x]) }}{{ loop.first }}", "{{ loop(([x])|danlu_bound) }}{{ loop.first }}"),
            ("{% raw %}{% set x = 1 %}{% endraw %}", "{% raw %}{% set x = 1 %}{% endraw %}"),
            ("{# {% set x = 1 %} #}{% set x = %}", "{# {% set x = 1 %} #}{% set x = %}"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    #[test]
    fn a_deep_tag_is_refused_with_its_line() {
        for (unit, times) in [("not ", 501), ("(", 501), ("-", 501), ("[", 600), ("1 if 1 else ", 400)] {
            let source = format!("a\n{{{{ {}1 }}}}", unit.repeat(times));
            let error = bound_values(&source, &SyntaxConfig::default()).unwrap_err();
            assert_eq!(error.line, 2, "{unit}");
            assert_eq!(error.message, "a tag has more than 500 operators", "{unit}");
        }
        let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(501));
        assert!(bound_values(&elifs, &SyntaxConfig::default()).unwrap_err().message.contains("`elif`"));
        let long = format!("{{% set x = {{{}}} %}}", "'key': 'value', ".repeat(5000));
        assert!(bound_values(&long, &SyntaxConfig::default()).is_ok());
    }
}

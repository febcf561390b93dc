//! Limits for the values of a chat template: the depth of their nesting, the number of their items, and the
//! size of the result of one call.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Maximum nesting of a stored value. JSON values have at most 128 levels.
const MAX_DEPTH: usize = 200;

/// Maximum number of items of a value. The items of nested values count too.
const MAX_ITEMS: usize = 1 << 20;

/// Number of items that cost as much fuel as one instruction.
const ITEMS_PER_FUEL: usize = 8;

/// Maximum width or precision in a format, in characters. `MAX_WIDTH_SUM` limits the sum of all of them.
const MAX_WIDTH: usize = 10_000;
const MAX_WIDTH_SUM: usize = 1 << 20;

/// Filter for a stored value. Returns an error if the value is too deep or too large. A lazy list is replaced
/// by a list.
pub(crate) fn bound(state: &State, value: Value) -> Result<Value, Error> {
    check(state, &value, false)?;
    stored(value)
}

/// Filter for a value that becomes an attribute of a namespace. The value is checked as in [`bound`], and may
/// contain no namespace and no macro. Such an object could refer back to the namespace: printing would never
/// end, and the memory would leak.
pub(crate) fn bound_member(state: &State, value: Value) -> Result<Value, Error> {
    check(state, &value, true)?;
    stored(value)
}

/// Checks that a value is not too large to be written. Before the text is created, charges fuel (minijinja's
/// measure of work) for the text. With `indent`, each item is on a separate line, and is indented by `indent`
/// blanks per level.
pub(crate) fn check_written(state: &State, value: &Value, indent: usize) -> Result<(), Error> {
    let size = check(state, value, false)?;
    let bytes = size.text + indent.saturating_mul(size.depths);
    state.consume_fuel((bytes / 64 + size.items / 4) as u64)
}

fn stored(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?)),
        _ => Ok(value),
    }
}

/// Size of a value. An item that occurs several times is counted several times.
#[derive(Clone, Copy, Default)]
struct Size {
    items: usize,
    /// Bytes of all strings.
    text: usize,
    /// Sum of the nesting levels of all items.
    depths: usize,
}

fn check(state: &State, value: &Value, data_only: bool) -> Result<Size, Error> {
    let mut walk = Walk { state, data_only, size: Size::default() };
    walk.visit(value, 0)?;
    Ok(walk.size)
}

struct Walk<'a, 'state, 'env> {
    state: &'a State<'state, 'env>,
    data_only: bool,
    size: Size,
}

impl Walk<'_, '_, '_> {
    fn visit(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let Size { items, text, depths } = &mut self.size;
        *items += 1;
        *depths += depth;
        *text = text.saturating_add(value.as_str().map_or(0, str::len));
        if items.is_multiple_of(ITEMS_PER_FUEL) {
            self.state.consume_fuel(1)?;
        }
        if *items > MAX_ITEMS {
            return Err(refused(format!("a value of more than {MAX_ITEMS} items")));
        }
        let kind = value.kind();
        if self.data_only && is_reference(value, kind) {
            return Err(refused("a namespace or a macro as the attribute of a namespace".to_owned()));
        }
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(refused(format!("a value of more than {MAX_DEPTH} levels")));
        }
        for item in value.try_iter()?.checked() {
            let item = item?;
            match kind {
                ValueKind::Map => self.visit(&value.get_item(&item)?, depth + 1)?,
                _ => self.visit(&item, depth + 1)?,
            }
        }
        Ok(())
    }
}

/// Returns whether a value is a namespace, or can be called.
fn is_reference(value: &Value, kind: ValueKind) -> bool {
    // minijinja's types of macros and namespaces are private, so they are recognised by their names.
    // `ValueKind` is not enough, because macros and loops may also have the kind of a map.
    let is_of_engine = |name: &str| name.contains("minijinja::vm::") || name.ends_with("::Namespace");
    let is_own = || value.as_object().is_some_and(|object| is_of_engine(object.type_name()));
    kind == ValueKind::Plain || (kind == ValueKind::Map && is_own())
}

/// Checks the size of the text that `text.format(args)` would return.
pub(crate) fn check_format(state: &State, text: &str, args: &[Value]) -> Result<(), Error> {
    let fields = text.matches('{').count();
    let mut widths = 0;
    for digits in text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        let width = digits.parse().unwrap_or(usize::MAX);
        widths += check_width(width)?;
    }
    let is_nested = text.split('{').skip(1).any(|field| !field.is_empty() && !field.contains('}'));
    let mut longest = 0;
    for arg in args {
        let size = check(state, arg, false)?;
        longest = longest.max(size.text.saturating_add(32 * size.items));
        if let Some(width) = arg.as_usize().filter(|_| is_nested) {
            widths += fields * check_width(width)?;
        }
    }
    if widths > MAX_WIDTH_SUM {
        return Err(refused(format!("a format of more than {MAX_WIDTH_SUM} characters")));
    }
    state.consume_fuel((fields.saturating_mul(longest) / 64) as u64)
}

fn check_width(width: usize) -> Result<usize, Error> {
    if width <= MAX_WIDTH {
        return Ok(width);
    }
    Err(refused(format!("a width of {width} characters, expected at most {MAX_WIDTH}")))
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

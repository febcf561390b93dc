//! A reader of the pickles that `torch.save` writes for a dictionary of tensors. Nothing is executed.
//!
//! A pickle is a program for a stack machine, and may call any Python function. This reader implements only
//! the operations and the five functions that a file of tensors needs. Any other operation or function is an
//! error that names it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Maximum nesting of tuples. The tuples of a tensor have two levels.
const MAX_DEPTH: usize = 8;

/// A tensor of the file, described as a view of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorView {
    pub storage: PickleStorage,
    /// Index of the first element in the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// For each axis, the number of elements between two neighbours.
    pub strides: Vec<u64>,
}

/// The elements that the archive contains under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PickleStorage {
    /// Class name in torch, such as `FloatStorage`.
    pub class: Rc<str>,
    pub key: Rc<str>,
}

type Dict = Rc<RefCell<Vec<(Rc<str>, TensorView)>>>;

#[derive(Clone)]
enum Value {
    Mark,
    /// A value that is not needed for tensors.
    Other,
    Int(i64),
    Text(Rc<str>),
    /// The items, and the nesting depth of the tuple.
    Tuple(Rc<[Value]>, usize),
    /// A dictionary. Only its tensors are stored.
    Dict(Dict),
    Function(Function),
    Class(Rc<str>),
    Storage(PickleStorage),
    Tensor(Rc<TensorView>),
}

#[derive(Clone, Copy)]
enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// Returns the name and the view of each tensor of a pickled dictionary.
///
/// # Errors
/// If the pickle ends early, or contains an unknown operation or function.
pub(crate) fn tensors(pickle: &[u8]) -> Result<Vec<(String, TensorView)>, String> {
    let mut machine = PickleMachine { input: pickle, stack: Vec::new(), memo: HashMap::new() };
    while !machine.step()? {}
    match machine.stack.pop() {
        Some(Value::Dict(dict)) => {
            Ok(dict.borrow().iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect())
        }
        _ => Err("it holds no dictionary of tensors".to_owned()),
    }
}

struct PickleMachine<'a> {
    input: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
}

impl<'a> PickleMachine<'a> {
    /// Runs one operation. Returns whether this operation ends the program.
    fn step(&mut self) -> Result<bool, String> {
        let code = self.bytes(1)?[0];
        match code {
            b'.' => return Ok(true),
            0x80 => drop(self.bytes(1)?),
            0x95 => drop(self.bytes(8)?),
            b'(' => self.stack.push(Value::Mark),
            b')' => self.push_tuple(Vec::new())?,
            b'}' => self.stack.push(Value::Dict(Dict::default())),
            b']' | b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
            b'G' => {
                self.bytes(8)?;
                self.stack.push(Value::Other);
            }
            b'X' => self.push_text(4)?,
            0x8c => self.push_text(1)?,
            b'K' => self.push_int(1)?,
            b'M' => self.push_int(2)?,
            b'J' => self.push_int(4)?,
            0x8a => {
                let length = self.number(1)?;
                match length {
                    0..=8 => self.push_int(length as usize)?,
                    _ => return Err(format!("a number of {length} bytes")),
                }
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items)?;
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let at = self.stack.len().checked_sub(count).ok_or_else(underflow)?;
                let items = self.stack.split_off(at);
                self.push_tuple(items)?;
            }
            b'q' => self.memoize(1)?,
            b'r' => self.memoize(4)?,
            0x94 => {
                let top = self.stack.last().cloned().ok_or_else(underflow)?;
                self.memo.insert(self.memo.len() as u32, top);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.push_global(&module, &name)?;
            }
            b'Q' => self.push_storage()?,
            b'R' => self.call()?,
            // A list and the state of an object contain no tensors.
            b'a' | b'b' => drop(self.pop()?),
            b'e' => drop(self.pop_to_mark()?),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            other => {
                return Err(format!("it has the operation {other:#04x}, which no file of tensors needs"));
            }
        }
        Ok(false)
    }

    /// Pushes the value for a global name: a class of storages, a dictionary or a function.
    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let value = match (module, name) {
            ("collections", "OrderedDict") => Value::Function(Function::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Function(Function::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Value::Function(Function::RebuildParameter),
            ("torch", class) if class.ends_with("Storage") => Value::Class(class.into()),
            _ => return Err(format!("it would call `{module}.{name}`, which no file of tensors needs")),
        };
        self.stack.push(value);
        Ok(())
    }

    /// Replaces the tuple `('storage', class, key, device, elements)` by a storage.
    fn push_storage(&mut self) -> Result<(), String> {
        let Value::Tuple(items, _) = self.pop()? else { return Err("a storage is no tuple".to_owned()) };
        let [Value::Text(kind), Value::Class(class), Value::Text(key), ..] = &items[..] else {
            return Err("a storage has no class and no key".to_owned());
        };
        if &**kind != "storage" {
            return Err(format!("a reference to a `{kind}`"));
        }
        self.stack.push(Value::Storage(PickleStorage { class: class.clone(), key: key.clone() }));
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let Value::Tuple(arguments, _) = self.pop()? else {
            return Err("arguments that are no tuple".to_owned());
        };
        let Value::Function(function) = self.pop()? else { return Err("a call of no function".to_owned()) };
        let result = match (function, &arguments[..]) {
            (Function::OrderedDict, []) => Value::Dict(Dict::default()),
            (Function::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => tensor.clone(),
            (
                Function::RebuildTensor,
                [
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape, _),
                    Value::Tuple(strides, _),
                    ..,
                ],
            ) => Value::Tensor(Rc::new(TensorView {
                storage: storage.clone(),
                offset: u64::try_from(*offset).map_err(|_| format!("a tensor at element {offset}"))?,
                shape: sizes(shape)?,
                strides: sizes(strides)?,
            })),
            _ => return Err("a call with unexpected arguments".to_owned()),
        };
        self.stack.push(result);
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err("items for no dictionary".to_owned());
        };
        for pair in items.chunks_exact(2) {
            if let [Value::Text(name), Value::Tensor(tensor)] = pair {
                dict.borrow_mut().push((name.clone(), (**tensor).clone()));
            }
        }
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let depth = |item: &Value| if let Value::Tuple(_, depth) = item { *depth } else { 0 };
        let depth = 1 + items.iter().map(depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(format!("tuples nest deeper than {MAX_DEPTH}"));
        }
        self.stack.push(Value::Tuple(items.into(), depth));
        Ok(())
    }

    fn push_text(&mut self, width: usize) -> Result<(), String> {
        let length = self.number(width)?;
        let bytes = self.bytes(usize::try_from(length).map_err(|_| ends_early())?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".to_owned())?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    /// Pushes a little-endian number. A number of four or more bytes is signed.
    fn push_int(&mut self, width: usize) -> Result<(), String> {
        let number = self.number(width)?;
        let value = match width {
            4 => i64::from(number as u32 as i32),
            5..=8 => ((number << (64 - 8 * width)) as i64) >> (64 - 8 * width),
            _ => number as i64,
        };
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn memoize(&mut self, width: usize) -> Result<(), String> {
        let key = self.number(width)? as u32;
        let top = self.stack.last().cloned().ok_or_else(underflow)?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let key = self.number(width)? as u32;
        let value = self.memo.get(&key).cloned().ok_or_else(|| format!("the value {key} is not there"))?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_text(&mut self) -> Result<Rc<str>, String> {
        match self.pop()? {
            Value::Text(text) => Ok(text),
            _ => Err("a name that is no text".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let at = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or_else(underflow)?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn number(&mut self, width: usize) -> Result<u64, String> {
        let bytes = self.bytes(width)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte)))
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.input.iter().position(|&byte| byte == b'\n').ok_or_else(ends_early)?;
        let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input = &self.input[end + 1..];
        Ok(line)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.input.split_at_checked(count).ok_or_else(ends_early)?;
        self.input = rest;
        Ok(taken)
    }
}

fn sizes(items: &[Value]) -> Result<Vec<u64>, String> {
    let size = |item: &Value| match item {
        Value::Int(size) => u64::try_from(*size).map_err(|_| format!("a tensor with the size {size}")),
        _ => Err("a tensor with a size that is no number".to_owned()),
    };
    items.iter().map(size).collect()
}

fn underflow() -> String {
    "it takes more values than it has".to_owned()
}

fn ends_early() -> String {
    "it ends early".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of `torch.save({"w": tensor of shape (2, 3)})` in torch 2.15, without the numbers of the
    /// memo.
    const SOUND: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0du.";

    #[test]
    fn a_dictionary_of_tensors_is_read() {
        let tensors = tensors(SOUND).unwrap();
        let [(name, view)] = &tensors[..] else { panic!("{tensors:?}") };
        assert_eq!((name.as_str(), &*view.storage.class, &*view.storage.key), ("w", "FloatStorage", "0"));
        assert_eq!((view.offset, &view.shape[..], &view.strides[..]), (0, &[2, 3][..], &[3, 1][..]));
    }

    #[test]
    fn nothing_else_is_called() {
        let os = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
        assert_eq!(tensors(os).unwrap_err(), "it would call `os.system`, which no file of tensors needs");
        let stacked = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.";
        assert!(tensors(stacked).unwrap_err().contains("`builtins.eval`"));
        assert!(tensors(b"\x80\x02i__main__\nC\n.").unwrap_err().contains("operation 0x69"));
        assert!(tensors(b"\x80\x02N.").unwrap_err().contains("no dictionary"));
    }

    #[test]
    fn any_bytes_end_in_an_error_or_a_result() {
        for end in 0..SOUND.len() {
            assert!(tensors(&SOUND[..end]).is_err(), "{end}");
            let mut damaged = SOUND.to_vec();
            damaged[end] ^= 0x55;
            drop(tensors(&damaged));
        }
        let deep = [b")".to_vec(), vec![0x85; 100_000], b".".to_vec()].concat();
        assert!(tensors(&deep).unwrap_err().contains("deeper than 8"));
    }
}

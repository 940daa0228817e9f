//! Python pickles that hold plain values and NumPy arrays of bytes, as the files of CIFAR do.
//!
//! Nothing in a file is executed: a pickle that names anything but the parts of an array is refused. Memory is bounded by the size of the
//! file. Not here: what the values mean (`cifar`).

use std::collections::HashMap;
use std::rc::Rc;

use crate::error::excerpt;

/// The deepest nesting of lists, tuples and dictionaries.
const DEPTH_MAX: usize = 16;
/// The most dimensions of an array.
const RANK_MAX: usize = 4;
/// The most values. A value of one byte in the file takes some forty in memory.
const VALUES_MAX: usize = 4_000_000;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Text, or a string of Python 2.
    Bytes(Rc<[u8]>),
    Tuple(Rc<[Value]>, Depth),
    List(Vec<Value>, Depth),
    Dict(Vec<(Value, Value)>, Depth),
    /// An array of bytes.
    Array(Rc<Array>),
    /// The name of a function or a class, with its module.
    Global(Rc<str>),
    /// The type of an array's elements, as NumPy abbreviates it.
    Dtype(Rc<[u8]>),
    /// An array whose state follows, or a list that is named a second time.
    Opaque,
}

/// How deeply values are nested in a value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Depth(usize);

/// An array of bytes in C order.
#[derive(Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Rc<[u8]>,
}

/// Why a pickle can't be read, as a part of a sentence.
type Refused = String;

impl Value {
    /// The value of a dictionary's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(entries, _) = self else { return None };
        entries
            .iter()
            .find(|(name, _)| matches!(name, Value::Bytes(bytes) if **bytes == *key.as_bytes()))
            .map(|(_, value)| value)
    }

    fn depth(&self) -> usize {
        match self {
            Value::Tuple(_, depth) | Value::List(_, depth) | Value::Dict(_, depth) => depth.0,
            _ => 0,
        }
    }

    fn int(&self) -> Option<usize> {
        match self {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// Reads a pickle of protocol 2 to 5.
///
/// # Errors
/// Says what is wrong, as a part of a sentence.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, Refused> {
    let mut machine = Machine {
        rest: bytes,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        left: VALUES_MAX,
        bytes_left: bytes.len(),
    };
    if bytes.first() != Some(&0x80) {
        return Err("it is not a pickle of protocol 2 or later".to_owned());
    }
    while !machine.step()? {}
    match machine.stack.as_slice() {
        [_] => machine.pop(),
        other => Err(format!("it ends with {} values instead of one", other.len())),
    }
}

/// The machine that a pickle is a program for.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Lengths of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Values that may still follow.
    left: usize,
    /// Bytes that calls may still make out of others.
    bytes_left: usize,
}

impl<'a> Machine<'a> {
    /// Carries out one instruction. Returns whether it was the last one. The numbers are those of CPython's `pickletools`.
    fn step(&mut self) -> Result<bool, Refused> {
        match self.byte()? {
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(format!("it has protocol {other}; must be 2 to 5")),
            },
            // A frame only says how much to read ahead.
            0x95 => {
                self.take(8)?;
            }
            b'.' => return Ok(true),
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.push_int(1, false)?,
            b'M' => self.push_int(2, false)?,
            b'J' => self.push_int(4, true)?,
            0x8a => {
                let length = usize::from(self.byte()?);
                self.push_int(length, true)?;
            }
            b'U' | b'C' | 0x8c => self.push_bytes(1)?,
            b'T' | b'B' | b'X' => self.push_bytes(4)?,
            0x8e | 0x8d | 0x96 => self.push_bytes(8)?,
            b']' => self.push(Value::List(Vec::new(), Depth(1)))?,
            b'}' => self.push(Value::Dict(Vec::new(), Depth(1)))?,
            b')' => self.push_tuple(Vec::new())?,
            opcode @ 0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(opcode) - 0x84).ok_or_else(short)?;
                self.check_mark(start)?;
                let items = self.stack.split_off(start);
                self.push_tuple(items)?;
            }
            b't' => {
                let items = self.above_mark()?;
                self.push_tuple(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let place = u32::from(self.byte()?);
                self.remember(place)?;
            }
            b'r' => {
                let place = self.number(4)? as u32;
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let place = u32::from(self.byte()?);
                self.recall(place)?;
            }
            b'j' => {
                let place = self.number(4)? as u32;
                self.recall(place)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}").into()))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Bytes(name), Value::Bytes(module)) = (name, module) else { return Err(strange("a name")) };
                self.charge(name.len() + module.len())?;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.push(Value::Global(format!("{}.{}", text(&module), text(&name)).into()))?;
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => return Err(format!("it has the instruction {other}, which no array and no plain value needs")),
        }
        Ok(false)
    }

    /// Calls a function: only those that make arrays of bytes are known.
    fn reduce(&mut self) -> Result<(), Refused> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments, _), Value::Global(name)) = (arguments, function) else {
            return Err(strange("a call"));
        };
        let made = match (&*name, &*arguments) {
            ("_codecs.encode", [Value::Bytes(text), Value::Bytes(_)]) => {
                self.charge(text.len())?;
                Value::Bytes(latin1(text)?)
            }
            ("numpy.dtype", [Value::Bytes(name), ..]) => Value::Dtype(name.clone()),
            ("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", _) => Value::Opaque,
            (
                "numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer",
                [Value::Bytes(bytes), Value::Dtype(dtype), Value::Tuple(shape, _), Value::Bytes(order)],
            ) => array(shape, dtype, **order != *b"C", bytes)?,
            _ => return Err(format!("it calls {}, which no file of CIFAR does", excerpt(&name))),
        };
        self.push(made)?;
        Ok(())
    }

    /// Gives an object its state.
    fn build(&mut self) -> Result<(), Refused> {
        let (state, object) = (self.pop()?, self.pop()?);
        let built = match (object, state) {
            // The state says how bytes are ordered, which has no meaning for single bytes.
            (dtype @ Value::Dtype(_), _) => dtype,
            (Value::Opaque, Value::Tuple(state, _)) => match &*state {
                [_, Value::Tuple(shape, _), Value::Dtype(dtype), Value::Bool(is_fortran), Value::Bytes(bytes)] => {
                    array(shape, dtype, *is_fortran, bytes)?
                }
                _ => return Err(strange("an array")),
            },
            _ => return Err(strange("the state of an object")),
        };
        self.push(built)?;
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), Refused> {
        let depth = around(&items)?;
        self.push(Value::Tuple(items.into(), depth))?;
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), Refused> {
        let around = around(&items)?;
        let Some(Value::List(list, depth)) = self.stack.last_mut() else { return Err(strange("a list")) };
        depth.0 = depth.0.max(around.0);
        list.extend(items);
        Ok(())
    }

    /// Adds keys and values, which alternate, to a dictionary.
    fn set(&mut self, items: Vec<Value>) -> Result<(), Refused> {
        let around = around(&items)?;
        let Some(Value::Dict(entries, depth)) = self.stack.last_mut() else { return Err(strange("a dictionary")) };
        depth.0 = depth.0.max(around.0);
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            entries.push((key, items.next().ok_or_else(|| strange("a dictionary"))?));
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<(), Refused> {
        let value = match self.stack.last().ok_or_else(short)? {
            // It may still change, so a copy would be wrong.
            Value::List(..) | Value::Dict(..) => Value::Opaque,
            other => other.clone(),
        };
        self.count()?;
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), Refused> {
        let value = self.memo.get(&place).cloned();
        self.push(value.ok_or_else(|| format!("it refers to value {place}, which there is not"))?)?;
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), Refused> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    /// Counts something that takes memory.
    fn count(&mut self) -> Result<(), Refused> {
        self.left = self.left.checked_sub(1).ok_or_else(|| format!("it has more than {VALUES_MAX} values"))?;
        Ok(())
    }

    /// Counts bytes that are made out of others, which can be named any number of times.
    fn charge(&mut self, bytes: usize) -> Result<(), Refused> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or_else(|| "its values have more bytes than the file".to_owned())?;
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Refused> {
        if let Some(length) = self.stack.len().checked_sub(1) {
            self.check_mark(length)?;
        }
        self.stack.pop().ok_or_else(short)
    }

    /// Values below a mark belong to what is outside of it.
    fn check_mark(&self, length: usize) -> Result<(), Refused> {
        if self.marks.last().is_some_and(|mark| *mark > length) { Err(short()) } else { Ok(()) }
    }

    fn above_mark(&mut self) -> Result<Vec<Value>, Refused> {
        let mark = self.marks.pop().ok_or_else(short)?;
        Ok(self.stack.split_off(mark))
    }

    fn push_int(&mut self, length: usize, is_signed: bool) -> Result<(), Refused> {
        if length > 8 {
            return Err(format!("it has a number of {length} bytes; the most is 8"));
        }
        let number = self.number(length)?;
        let unused = 64 - 8 * length as u32;
        // Shifts by 64 bits are of the empty number, which is 0.
        let signed = (number.checked_shl(unused).unwrap_or(0) as i64).checked_shr(unused).unwrap_or(0);
        self.push(Value::Int(if is_signed { signed } else { number as i64 }))?;
        Ok(())
    }

    /// Bytes after their length, which has `width` bytes.
    fn push_bytes(&mut self, width: usize) -> Result<(), Refused> {
        let length = usize::try_from(self.number(width)?).map_err(|_| short())?;
        let bytes = self.take(length)?.into();
        self.push(Value::Bytes(bytes))?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Refused> {
        Ok(self.take(1)?[0])
    }

    /// A number of at most eight bytes, the lowest first.
    fn number(&mut self, length: usize) -> Result<u64, Refused> {
        Ok(self.take(length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<String, Refused> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(short)?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// The depth of what contains these values.
fn around(items: &[Value]) -> Result<Depth, Refused> {
    let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
    if depth <= DEPTH_MAX { Ok(Depth(depth)) } else { Err(format!("its values are nested more than {DEPTH_MAX} deep")) }
}

fn array(shape: &[Value], dtype: &[u8], is_fortran: bool, bytes: &Rc<[u8]>) -> Result<Value, Refused> {
    if !matches!(dtype, b"u1" | b"|u1") || is_fortran {
        return Err("it has an array that is not of bytes in C order".to_owned());
    }
    let few = (shape.len() <= RANK_MAX).then_some(shape);
    let shape: Option<Vec<usize>> = few.and_then(|shape| shape.iter().map(Value::int).collect());
    let shape = shape.ok_or_else(|| strange("the shape of an array"))?;
    let length = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    if length != Some(bytes.len()) {
        return Err(format!("it has an array of {shape:?} with {} bytes", bytes.len()));
    }
    Ok(Value::Array(Rc::new(Array { shape, bytes: bytes.clone() })))
}

/// The bytes that text stands for: Python 3 writes bytes so for Python 2.
fn latin1(text: &[u8]) -> Result<Rc<[u8]>, Refused> {
    let text = std::str::from_utf8(text).map_err(|_| strange("a text"))?;
    text.chars().map(|character| u8::try_from(u32::from(character)).map_err(|_| strange("a text"))).collect()
}

fn short() -> Refused {
    "it is cut off or damaged".to_owned()
}

fn strange(what: &str) -> Refused {
    format!("{what} in it is not as pickles have it")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by Python (`golden/make.py`): `{b"data": array of 2 x 3, b"labels": [1, 300], "name": "set", "none": (None, True, -5)}`, by protocol.
    const FILES: [&[u8]; 4] = [
        include_bytes!("../golden/protocol2.pickle"),
        include_bytes!("../golden/protocol3.pickle"),
        include_bytes!("../golden/protocol4.pickle"),
        include_bytes!("../golden/protocol5.pickle"),
    ];

    /// What Python 2 writes for `{"data": array of 1 x 3, "labels": [6]}`, by its documented instructions.
    fn of_python_2() -> Vec<u8> {
        let array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85U\x01b\x87Rq\x09";
        let state = b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x0aU\x02u1K\0K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x03abctb";
        [b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x06aU\x04dataq\x04".as_slice(), array, state, b"u."].concat()
    }

    #[test]
    fn values_are_those_that_python_wrote_in_every_protocol() {
        for (protocol, file) in (2..).zip(FILES) {
            let value = read(file).unwrap_or_else(|error| panic!("protocol {protocol}: {error}"));
            let Some(Value::Array(array)) = value.get("data") else { panic!("protocol {protocol}: {value:?}") };
            assert_eq!((array.shape.as_slice(), &*array.bytes), ([2, 3].as_slice(), [0, 10, 255, 3, 4, 5].as_slice()));
            assert_eq!(value.get("labels"), Some(&Value::List(vec![Value::Int(1), Value::Int(300)], Depth(1))));
            assert_eq!(value.get("name"), Some(&Value::Bytes((*b"set").into())));
            let Some(Value::Tuple(items, _)) = value.get("none") else { panic!("protocol {protocol}: {value:?}") };
            assert_eq!(**items, [Value::None, Value::Bool(true), Value::Int(-5)]);
        }
        let old = read(&of_python_2()).unwrap();
        let Some(Value::Array(array)) = old.get("data") else { panic!("{old:?}") };
        assert_eq!((array.shape.as_slice(), &*array.bytes), ([1, 3].as_slice(), b"abc".as_slice()));
    }

    #[test]
    fn a_pickle_that_would_run_something_is_refused() {
        let said = read(b"\x80\x02cos\nsystem\nU\x07echo hi\x85R.").unwrap_err();
        assert_eq!(said, "it calls os.system, which no file of CIFAR does");
    }

    #[test]
    fn damage_is_refused_in_bounded_memory() {
        let nested = [&b"\x80\x02N"[..], &[0x85; 40]].concat();
        assert!(read(&nested).unwrap_err().contains("nested more than 16"), "tuples in tuples");
        let many = [&b"\x80\x02"[..], &vec![b'N'; VALUES_MAX + 1]].concat();
        assert!(read(&many).unwrap_err().contains("more than 4000000 values"));
        for bad in
            [&b""[..], b"\x80\x02", b"\x80\x09.", b"\x80\x02T\xff\xff\xff\xffabc", b"\x80\x02(0.", b"\x80\x02h\x07."]
        {
            read(bad).unwrap_err();
        }
        let shape = of_python_2().iter().map(|byte| if *byte == b'c' { b'd' } else { *byte }).collect::<Vec<_>>();
        read(&shape).unwrap_err();
    }

    proptest! {
        /// Bytes that are changed anywhere give a value or an error, and never a panic.
        #[test]
        fn damaged_pickles_give_a_value_or_an_error(
            which in 0usize..5, places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = FILES.get(which).map_or_else(of_python_2, |file| file.to_vec());
            for (place, value) in places {
                let length = bytes.len();
                bytes[place.index(length)] = value;
            }
            let _ = read(&bytes);
        }
    }
}

//! Parser of GGUF files, versions 2 and 3.
//!
//! ```text
//! "GGUF"  version: u32  number of tensors: u64  number of entries: u64
//! entries:  key: string  type: u32  value
//! tensors:  name: string  number of dimensions: u32  dimensions: u64 each  type: u32  offset: u64
//! padding to the alignment, then the data of the tensors, to which the offsets are relative
//! ```
//!
//! Numbers are little-endian. A string is its length as u64 and its UTF-8 bytes. An array is the type of its
//! elements as u32, its length as u64, and the elements. The fastest dimension of a tensor is the first one.
//!
//! Files are untrusted. Every length is compared with the rest of the file before it is used, so the parsed
//! form takes memory in proportion to the file's header. Strings, arrays and tensors stay in the file.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::super::weights::StoredTensor;
use super::metadata::{Array, Metadata, Value, ValueType};
use super::tensor_type::TensorType;
use crate::error::LoadError;

const MAGIC: &[u8] = b"GGUF";
const VERSIONS: [u32; 2] = [2, 3];
/// The largest number of bytes of a key or a tensor's name.
const MAX_NAME_BYTES: usize = 65_535;
/// The largest number of arrays inside each other.
const MAX_DEPTH: usize = 4;
/// The largest number of a tensor's dimensions.
const MAX_DIMENSIONS: usize = 4;
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;

/// The reason why a file is refused. The reason does not name the file.
type Reason = String;

/// A file whose metadata is parsed, and whose tensors are not parsed yet.
pub(crate) struct Header<'a> {
    pub(crate) metadata: Metadata<'a>,
    /// Stands at the first tensor.
    reader: Reader<'a>,
    tensors: u64,
}

/// A tensor of a file, with its name.
pub(crate) type NamedTensor<'a> = (&'a str, StoredTensor<'a>);

impl<'a> Header<'a> {
    /// Parses the header and the metadata of the file named `file`.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the key.
    pub(crate) fn parse(file: &'a str, bytes: &'a [u8]) -> Result<Self, LoadError> {
        Self::parse_unnamed(file, bytes).map_err(|reason| LoadError::invalid(file, reason))
    }

    fn parse_unnamed(file: &'a str, bytes: &'a [u8]) -> Result<Self, Reason> {
        let mut reader = Reader { bytes, position: 0 };
        if !bytes.starts_with(MAGIC) {
            return Err("it is not a GGUF file: it does not begin with \"GGUF\"".into());
        }
        reader.take(MAGIC.len() as u64)?;
        let version = reader.u32()?;
        if VERSIONS.contains(&version.swap_bytes()) {
            return Err("it is a big-endian GGUF file; only little-endian ones are read".into());
        }
        if !VERSIONS.contains(&version) {
            return Err(format!("its GGUF version is {version}; versions 2 and 3 are read"));
        }
        let tensors = reader.u64()?;
        let entries = reader.u64()?;
        // The smallest sizes of a tensor and an entry.
        let least = tensors.checked_mul(24).zip(entries.checked_mul(13));
        let least = least.and_then(|(tensors, entries)| tensors.checked_add(entries));
        if least.is_none_or(|least| least > reader.rest()) {
            return Err(format!(
                "it claims {tensors} tensors and {entries} entries of metadata, more than its {} bytes hold",
                bytes.len()
            ));
        }
        let mut values = HashMap::new();
        for number in 0..entries {
            let key = reader.name().map_err(|reason| format!("key {number}: {reason}"))?;
            let value = reader.typed_value().map_err(|reason| format!("{key}: {reason}"))?;
            match values.entry(key) {
                Entry::Occupied(_) => return Err(format!("it has the key {key:?} twice")),
                Entry::Vacant(entry) => entry.insert(value),
            };
        }
        Ok(Self { metadata: Metadata::new(file, values), reader, tensors })
    }

    /// Parses the tensors. Returns them in the order of the file, with the metadata.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the tensor.
    pub(crate) fn read_tensors(self) -> Result<(Metadata<'a>, Vec<NamedTensor<'a>>), LoadError> {
        let alignment = self.metadata.integer(ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            let reason = format!("{ALIGNMENT} is {alignment}; it must be a power of two");
            return Err(self.metadata.invalid(reason));
        }
        let tensors = read_tensors(self.reader, self.tensors, alignment)
            .map_err(|reason| self.metadata.invalid(reason))?;
        Ok((self.metadata, tensors))
    }
}

fn read_tensors(
    mut reader: Reader<'_>,
    count: u64,
    alignment: usize,
) -> Result<Vec<NamedTensor<'_>>, Reason> {
    let mut infos = Vec::new();
    let mut names = HashSet::new();
    for number in 0..count {
        let name = reader.name().map_err(|reason| format!("tensor {number}: {reason}"))?;
        if !names.insert(name) {
            return Err(format!("it has the tensor {name:?} twice"));
        }
        let info = TensorInfo::read(&mut reader, alignment);
        infos.push((name, info.map_err(|reason| format!("tensor {name:?}: {reason}"))?));
    }
    let start = reader.position.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let data = reader.bytes.get(start..).unwrap_or_default();

    let mut ranges = Vec::with_capacity(infos.len());
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let end = info.offset.checked_add(info.size);
        let Some(bytes) = end.and_then(|end| data.get(info.offset..end)) else {
            return Err(format!(
                "tensor {name:?}: its {} bytes at offset {} are not inside the file",
                info.size, info.offset
            ));
        };
        ranges.push((info.offset, info.offset + info.size, name));
        let numbers = info.kind.numbers(bytes);
        tensors.push((name, StoredTensor { shape: info.shape, bytes, numbers: Ok(numbers) }));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            return Err(format!("the tensors {first:?} and {second:?} overlap"));
        }
    }
    Ok(tensors)
}

struct TensorInfo {
    /// The fastest dimension comes last.
    shape: Vec<usize>,
    kind: TensorType,
    offset: usize,
    size: usize,
}

impl TensorInfo {
    fn read(reader: &mut Reader<'_>, alignment: usize) -> Result<Self, Reason> {
        let dimensions = reader.u32()? as usize;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("it has {dimensions} dimensions"));
        }
        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            shape.push(to_usize(reader.u64()?)?);
        }
        shape.reverse();
        let kind = TensorType::from_id(reader.u32()?)?;
        let offset = to_usize(reader.u64()?)?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("its offset {offset} is not a multiple of {alignment}"));
        }
        let size = kind.size(&shape)?;
        Ok(Self { shape, kind, offset, size })
    }
}

/// A position in a file.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reads the elements of an array that was already checked.
    pub(super) fn elements(array: &Array<'a>) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Self { bytes: array.bytes, position: 0 };
        let kind = array.kind;
        (0..array.len).map_while(move |_| reader.value(kind, MAX_DEPTH).ok())
    }

    fn rest(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Reason> {
        if length > self.rest() {
            return Err(format!(
                "the file ends: {length} bytes are missing at byte {} of {}",
                self.position,
                self.bytes.len()
            ));
        }
        // `length` is at most the length of a slice, so it is a usize.
        let taken = &self.bytes[self.position..][..length as usize];
        self.position += taken.len();
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N as u64)?);
        Ok(number)
    }

    fn u32(&mut self) -> Result<u32, Reason> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn string(&mut self) -> Result<&'a str, Reason> {
        let length = self.u64()?;
        let position = self.position;
        str::from_utf8(self.take(length)?)
            .map_err(|error| format!("the string at byte {position} is not UTF-8: {error}"))
    }

    /// Reads a key or the name of a tensor.
    fn name(&mut self) -> Result<&'a str, Reason> {
        let name = self.string()?;
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("its name has {} bytes", name.len()));
        }
        Ok(name)
    }

    fn typed_value(&mut self) -> Result<Value<'a>, Reason> {
        let kind = ValueType::from_id(self.u32()?)?;
        self.value(kind, MAX_DEPTH)
    }

    /// Reads a value in which arrays may stand inside each other to a depth of `depth`.
    fn value(&mut self, kind: ValueType, depth: usize) -> Result<Value<'a>, Reason> {
        Ok(match kind {
            ValueType::U8 => Value::Integer(u8::from_le_bytes(self.number()?).into()),
            ValueType::I8 => Value::Integer(i8::from_le_bytes(self.number()?).into()),
            ValueType::U16 => Value::Integer(u16::from_le_bytes(self.number()?).into()),
            ValueType::I16 => Value::Integer(i16::from_le_bytes(self.number()?).into()),
            ValueType::U32 => Value::Integer(u32::from_le_bytes(self.number()?).into()),
            ValueType::I32 => Value::Integer(i32::from_le_bytes(self.number()?).into()),
            ValueType::U64 => Value::Integer(u64::from_le_bytes(self.number()?).into()),
            ValueType::I64 => Value::Integer(i64::from_le_bytes(self.number()?).into()),
            ValueType::F32 => Value::Float(f32::from_le_bytes(self.number()?).into()),
            ValueType::F64 => Value::Float(f64::from_le_bytes(self.number()?)),
            ValueType::Bool => Value::Bool(self.number()? != [0]),
            ValueType::String => Value::String(self.string()?),
            ValueType::Array => Value::Array(self.array(depth)?),
        })
    }

    /// Reads an array and checks its elements.
    fn array(&mut self, depth: usize) -> Result<Array<'a>, Reason> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("more than {MAX_DEPTH} arrays are inside each other"));
        };
        let kind = ValueType::from_id(self.u32()?)?;
        let count = self.u64()?;
        let least = count.checked_mul(kind.least_bytes());
        if least.is_none_or(|least| least > self.rest()) {
            return Err(format!("the file ends before the {count} elements of an array"));
        }
        let start = self.position;
        if matches!(kind, ValueType::String | ValueType::Array) {
            for _ in 0..count {
                self.value(kind, depth)?;
            }
        } else {
            self.take(count * kind.least_bytes())?;
        }
        let bytes = &self.bytes[start..self.position];
        Ok(Array { kind, len: to_usize(count)?, bytes })
    }
}

fn to_usize(number: u64) -> Result<usize, Reason> {
    usize::try_from(number).map_err(|_| format!("{number} is too large for this machine"))
}

//! Reads the tensors of a file that `torch.save` wrote. The file is a zip archive without compression. One
//! entry is a pickle, which describes the tensors as views of the other entries.

use std::collections::HashMap;
use std::ops::Range;

use crate::pickle::{self, TensorView};

/// Maximum size of a pickle. The description of one tensor takes some 200 bytes.
const MAX_PICKLE_BYTES: usize = 64 << 20;

/// A tensor in row-major order.
#[derive(Debug, PartialEq)]
pub struct RawTensor {
    /// Name of the tensor.
    pub name: String,
    /// Element type, as safetensors spells it.
    pub dtype: String,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// The elements in little-endian order.
    pub bytes: Vec<u8>,
}

/// A tensor whose elements are in row-major order in the file.
#[derive(Debug, PartialEq)]
pub(crate) struct MappedTensor {
    pub name: String,
    /// Element type as safetensors spells it, or the class name of torch for a type that is not supported.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Byte range of the tensor in the file.
    pub range: Range<usize>,
}

/// Reads all tensors of a file.
///
/// # Errors
/// If the file is not such a zip archive, if its pickle contains anything but tensors, or if a tensor exceeds
/// the range of its entry.
pub fn read(file: &[u8]) -> Result<Vec<RawTensor>, String> {
    let tensor = |(name, view, range): (String, TensorView, Range<usize>)| {
        let gathered = gather(&view, &file[range]);
        let (dtype, shape, bytes) = gathered.map_err(|fault| format!("tensor `{name}`: {fault}"))?;
        Ok(RawTensor { name, dtype: dtype.to_owned(), shape, bytes })
    };
    views(file)?.into_iter().map(tensor).collect()
}

/// Finds all tensors of a file without copying them.
///
/// # Errors
/// The errors of [`read`]. Also returns an error if the elements of a tensor are not in row-major order in
/// the file.
pub(crate) fn map(file: &[u8]) -> Result<Vec<MappedTensor>, String> {
    let tensor = |(name, view, storage): (String, TensorView, Range<usize>)| {
        let (dtype, shape, range) =
            mapped(&view, storage.len()).map_err(|fault| format!("tensor `{name}`: {fault}"))?;
        let range = storage.start + range.start..storage.start + range.end;
        Ok(MappedTensor { name, dtype, shape, range })
    };
    views(file)?.into_iter().map(tensor).collect()
}

/// Returns the tensors that the pickle of a file describes. For each tensor, returns the byte range of its
/// storage too.
fn views(file: &[u8]) -> Result<Vec<(String, TensorView, Range<usize>)>, String> {
    let entries = entries(file)?;
    let pickle = entries.iter().find(|(name, _)| name.ends_with("/data.pkl"));
    let (name, range) = pickle.ok_or("it has no `data.pkl`: torch 1.6 and newer write one")?;
    if range.len() > MAX_PICKLE_BYTES {
        return Err(format!("`{name}` has {} bytes, expected at most {MAX_PICKLE_BYTES}", range.len()));
    }
    let folder = name.trim_end_matches("data.pkl");
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && &file[order.clone()] != b"little"
    {
        return Err("its bytes are in big-endian order".to_owned());
    }
    let storage = |(name, view): (String, TensorView)| {
        let key = &view.storage.key;
        let entry = entries.get(&format!("{folder}data/{key}"));
        let range = entry.ok_or_else(|| format!("tensor `{name}`: its storage `{key}` is missing"))?;
        Ok((name, view, range.clone()))
    };
    pickle::tensors(&file[range.clone()])?.into_iter().map(storage).collect()
}

/// Returns the element type, the shape and the byte range of a view. The storage of the view has `held`
/// bytes.
fn mapped(view: &TensorView, held: usize) -> Result<(String, Vec<usize>, Range<usize>), String> {
    let class = &*view.storage.class;
    let shape: Option<Vec<usize>> = view.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    let outside = || format!("it reaches beyond the {held} bytes of its storage");
    let shape = shape.ok_or_else(outside)?;
    let Some((dtype, size)) = element(class) else { return Ok((class.to_owned(), shape, 0..0)) };
    let mut count = 1usize;
    for (&n, &stride) in shape.iter().zip(&view.strides).rev() {
        if n > 1 && stride != count as u64 {
            return Err("its elements do not lie in their order".to_owned());
        }
        count = count.checked_mul(n).ok_or_else(outside)?;
    }
    let start = usize::try_from(view.offset).ok().and_then(|at| at.checked_mul(size)).ok_or_else(outside)?;
    let end = count.checked_mul(size).and_then(|bytes| bytes.checked_add(start));
    let end = end.filter(|&end| end <= held && shape.len() == view.strides.len()).ok_or_else(outside)?;
    Ok((dtype.to_owned(), shape, start..end))
}

/// Returns the element type and its size in bytes, for a class name of torch. The type is spelled as in
/// safetensors.
fn element(class: &str) -> Option<(&'static str, usize)> {
    match class {
        "FloatStorage" => Some(("F32", 4)),
        "HalfStorage" => Some(("F16", 2)),
        "BFloat16Storage" => Some(("BF16", 2)),
        _ => None,
    }
}

/// Copies a view of `storage` in row-major order.
fn gather(view: &TensorView, storage: &[u8]) -> Result<(&'static str, Vec<usize>, Vec<u8>), String> {
    let class = &*view.storage.class;
    let (dtype, size) =
        element(class).ok_or_else(|| format!("it is a `{class}`, expected F32, BF16 or F16"))?;
    let held = storage.len() / size;
    let outside = || format!("it reaches beyond the {held} elements of its storage");
    let shape: Vec<usize> =
        view.shape.iter().map(|&n| usize::try_from(n).map_err(|_| outside())).collect::<Result<_, _>>()?;
    let count = shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n)).ok_or_else(outside)?;
    if shape.len() != view.strides.len() {
        return Err(format!("it has {} axes and {} strides", shape.len(), view.strides.len()));
    }
    let last = view.shape.iter().zip(&view.strides).try_fold(view.offset, |last, (&n, &stride)| {
        last.checked_add(n.saturating_sub(1).checked_mul(stride)?)
    });
    // A view that repeats elements is rejected, because it could be larger than the file.
    if count > held || (count > 0 && last.is_none_or(|last| last >= held as u64)) {
        return Err(outside());
    }
    let mut bytes = Vec::with_capacity(count * size);
    let mut index = vec![0u64; shape.len()];
    for _ in 0..count {
        let at = view.offset + index.iter().zip(&view.strides).map(|(i, stride)| i * stride).sum::<u64>();
        let at = at as usize * size;
        bytes.extend_from_slice(&storage[at..at + size]);
        for (i, &n) in index.iter_mut().zip(&view.shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok((dtype, shape, bytes))
}

/// Returns the byte range of each entry of a zip archive without compression.
fn entries(file: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    const END: &[u8] = b"PK\x05\x06";
    const END_LENGTH: usize = 22;
    let damaged = || "it is no whole zip archive of torch".to_owned();
    let tail = file.len().saturating_sub(END_LENGTH + usize::from(u16::MAX));
    let end = file[tail..].windows(END.len()).rposition(|window| window == END).ok_or_else(damaged)? + tail;
    let count = number(file, end + 10, 2).ok_or_else(damaged)?;
    let mut at = number(file, end + 16, 4).ok_or_else(damaged)?;
    let mut count = count as u64;
    // If a number does not fit into its field, Zip64 stores the numbers in a separate record. A locator
    // before the end of the archive contains the position of this record.
    if let Some(locator) = end.checked_sub(20)
        && file[locator..].starts_with(b"PK\x06\x07")
    {
        let record = number(file, locator + 8, 8).ok_or_else(damaged)?;
        count = number(file, record.checked_add(32).ok_or_else(damaged)?, 8).ok_or_else(damaged)? as u64;
        at = number(file, record.saturating_add(48), 8).ok_or_else(damaged)?;
    }
    let mut found = HashMap::new();
    for _ in 0..count {
        let header = file.get(at..).filter(|header| header.starts_with(b"PK\x01\x02")).ok_or_else(damaged)?;
        let field = |offset: usize, width: usize| number(header, offset, width).ok_or_else(damaged);
        let (name_length, extra, comment) = (field(28, 2)?, field(30, 2)?, field(32, 2)?);
        let name = header.get(46..46 + name_length).ok_or_else(damaged)?;
        let name = String::from_utf8_lossy(name).into_owned();
        if field(10, 2)? != 0 {
            return Err(format!("its entry `{name}` is compressed, which torch does not do"));
        }
        let extra_fields = header.get(46 + name_length..46 + name_length + extra).ok_or_else(damaged)?;
        let mut wide = Zip64::of(extra_fields);
        let size = wide.or(field(24, 4)?).ok_or_else(damaged)?;
        wide.or(field(20, 4)?).ok_or_else(damaged)?;
        let local = wide.or(field(42, 4)?).ok_or_else(damaged)?;
        let data = data_of(file, local, size).ok_or_else(damaged)?;
        found.insert(name, data);
        at += 46 + name_length + extra + comment;
    }
    Ok(found)
}

/// Returns the byte range of an entry's data, which follows the local header of the entry.
fn data_of(file: &[u8], local: usize, size: usize) -> Option<Range<usize>> {
    let lengths = number(file, local.checked_add(26)?, 2)? + number(file, local + 28, 2)?;
    let start = local.checked_add(30 + lengths)?;
    let end = start.checked_add(size)?;
    (end <= file.len()).then_some(start..end)
}

/// The numbers of an entry that do not fit in 32 bits, in the order in which the entry refers to them.
struct Zip64<'a>(&'a [u8]);

impl<'a> Zip64<'a> {
    /// Finds the 64-bit numbers in the extra fields of an entry. Each extra field starts with an id and a
    /// length of 2 bytes each.
    fn of(mut extra: &'a [u8]) -> Self {
        while let (Some(id), Some(length)) = (number(extra, 0, 2), number(extra, 2, 2)) {
            let field = extra.get(4..4 + length).unwrap_or_default();
            if id == 1 {
                return Self(field);
            }
            extra = extra.get(4 + length..).unwrap_or_default();
        }
        Self(&[])
    }

    /// Returns `short`. If `short` is `u32::MAX`, the number did not fit, so the next 64-bit number is
    /// returned.
    fn or(&mut self, short: usize) -> Option<usize> {
        if short != u32::MAX as usize {
            return Some(short);
        }
        let wide = number(self.0, 0, 8)?;
        self.0 = &self.0[8..];
        Some(wide)
    }
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    usize::try_from(bytes.iter().rev().fold(0u64, |number, &byte| (number << 8) | u64::from(byte))).ok()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::pickle::PickleStorage;

    fn view(offset: u64, shape: &[u64], strides: &[u64]) -> TensorView {
        let storage = PickleStorage { class: Rc::from("HalfStorage"), key: Rc::from("0") };
        TensorView { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    #[test]
    fn a_view_is_copied_row_by_row() {
        let storage: Vec<u8> = (0..12).collect();
        let transposed = gather(&view(0, &[3, 2], &[1, 3]), &storage).unwrap();
        assert_eq!(transposed, ("F16", vec![3, 2], vec![0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]));
        assert_eq!(gather(&view(4, &[2], &[1]), &storage).unwrap().2, [8, 9, 10, 11]);
        assert_eq!(gather(&view(0, &[0, 4], &[4, 1]), &storage).unwrap().2, [0u8; 0]);
    }

    #[test]
    fn a_view_in_order_is_a_range_of_the_file() {
        assert_eq!(mapped(&view(1, &[2, 2], &[2, 1]), 12), Ok(("F16".to_owned(), vec![2, 2], 2..10)));
        assert_eq!(mapped(&view(0, &[1, 3], &[9, 1]), 12), Ok(("F16".to_owned(), vec![1, 3], 0..6)));
        for (offset, shape, strides) in [
            (0, &[3, 2][..], &[1, 3][..]),
            (5, &[2], &[1]),
            (u64::MAX, &[1], &[1]),
            (0, &[1 << 40, 1 << 40], &[1 << 40, 1]),
        ] {
            assert!(mapped(&view(offset, shape, strides), 12).is_err(), "{offset} {shape:?}");
        }
    }

    #[test]
    fn a_view_outside_its_storage_is_refused() {
        for (offset, shape, strides) in [
            (5, &[2][..], &[1][..]),
            (0, &[7], &[1]),
            (u64::MAX, &[1], &[1]),
            (0, &[1 << 40, 1 << 40], &[0, 0]),
            (0, &[2, 2], &[u64::MAX, 1]),
            (0, &[2], &[1, 1]),
        ] {
            assert!(gather(&view(offset, shape, strides), &[0; 12]).is_err(), "{offset} {shape:?}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        for file in [
            &b""[..],
            b"PK",
            b"PK\x05\x06",
            &[0x80; 100],
            b"PK\x05\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(read(file).is_err());
        }
    }
}

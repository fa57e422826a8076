//! How values become bytes.

use alloc::vec::Vec;

use crate::ImageError;

/// Bytes that are read from the front.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
    /// Bytes taken so far.
    pub(crate) offset: u64,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], ImageError> {
        let (field, rest) =
            self.bytes.split_at_checked(len).ok_or(ImageError::Short { offset: self.offset })?;
        self.bytes = rest;
        self.offset += len as u64;
        Ok(field)
    }
}

/// A value with a fixed encoding.
pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError>;

    /// All of a list; bytes have a faster way.
    fn put_all(items: &[Self], out: &mut Vec<u8>) {
        items.iter().for_each(|item| item.put(out));
    }

    /// `count` items.
    fn take_all(count: usize, reader: &mut Reader<'_>) -> Result<Vec<Self>, ImageError> {
        // No count makes us reserve more than the input is long.
        let most = reader.bytes.len() / size_of::<Self>().max(1);
        let mut items = Vec::with_capacity(count.min(most));
        for _ in 0..count {
            items.push(Self::take(reader)?);
        }
        Ok(items)
    }
}

impl Wire for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError> {
        reader.take(1).map(|bytes| bytes[0])
    }

    fn put_all(items: &[Self], out: &mut Vec<u8>) {
        out.extend_from_slice(items);
    }

    fn take_all(count: usize, reader: &mut Reader<'_>) -> Result<Vec<Self>, ImageError> {
        reader.take(count).map(<[u8]>::to_vec)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError> {
                let mut bytes = [0; size_of::<$number>()];
                bytes.copy_from_slice(reader.take(size_of::<$number>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
numbers!(u32, i32, u64, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError> {
        match u8::take(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(ImageError::Invalid { field: "truth value", found: found.into() }),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        T::put_all(self, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError> {
        let count = u32::take(reader)?;
        T::take_all(count as usize, reader)
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, ImageError> {
        let items = (0..N).map(|_| T::take(reader)).collect::<Result<Vec<_>, _>>()?;
        Self::try_from(items).map_err(|_| ImageError::Short { offset: reader.offset })
    }
}

/// Defines a struct whose encoding is its fields in order.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::Wire::put(&self.$field, out);)*
            }

            fn take(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::ImageError> {
                Ok(Self { $($field: $crate::wire::Wire::take(reader)?,)* })
            }
        }
    };
}
pub(crate) use record;

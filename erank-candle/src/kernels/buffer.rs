//! Memory for weights and for the KV cache, in large pages where the system has them. With small pages,
//! reading gigabytes in order spends much of its time on address translation.
//!
//! A large page has 2 MB, about as much as one matrix of a small model. So buffers share maps of 64 MB, which consist
//! of large pages except for at most their ends.
#![expect(unsafe_code, reason = "buffers that share a map, and advice to the system about memory")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;
use memmap2::{MmapMut, MmapRaw};

#[cfg(all(test, target_os = "linux"))]
use super::tests::guard_pages::{Guarded, Place};

/// Bytes of a map that buffers share.
const MAP_SIZE: usize = 1 << 26;
/// The size of large pages on most systems.
const LARGE_PAGE: usize = 1 << 21;
/// Buffers start at multiples of this number of bytes, which is no smaller than a cache line of any processor.
const ALIGNMENT: usize = 256;

/// A fixed number of elements, zero at first. The system provides a page when it is first written, and takes a map back
/// when all of its buffers are dropped.
#[derive(Debug)]
pub(super) struct Buffer<E> {
    bytes: Bytes,
    length: usize,
    elements: PhantomData<E>,
}

impl<E: Pod> Buffer<E> {
    /// Allocates `length` elements.
    ///
    /// # Errors
    /// Returns an error if the system cannot provide the memory.
    pub(super) fn zeroed(length: usize) -> io::Result<Self> {
        let size = length.checked_mul(size_of::<E>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let bytes = Bytes::Mapped(MapPart::reserve(size)?);
        Ok(Self { bytes, length, elements: PhantomData })
    }

    /// Copies the elements to memory between guard pages.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn guarded(&self, place: Place) -> Self {
        let bytes = Guarded::new(place, bytemuck::cast_slice(self));
        Self { bytes: Bytes::Guarded(bytes), length: self.length, elements: PhantomData }
    }
}

#[derive(Debug)]
enum Bytes {
    Mapped(MapPart),
    #[cfg(all(test, target_os = "linux"))]
    Guarded(Guarded<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            #[cfg(all(test, target_os = "linux"))]
            Self::Guarded(bytes) => bytes,
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            #[cfg(all(test, target_os = "linux"))]
            Self::Guarded(bytes) => bytes,
        }
    }
}

/// Bytes of a map. No other part of the map contains them.
#[derive(Debug)]
struct MapPart {
    map: Arc<MmapRaw>,
    start: usize,
    size: usize,
}

impl MapPart {
    /// Returns `size` bytes that no part has used before, which are zero.
    fn reserve(size: usize) -> io::Result<Self> {
        /// The map that has space, and the number of its bytes that are in use.
        static LAST: Mutex<(Weak<MmapRaw>, usize)> = Mutex::new((Weak::new(), 0));

        let end = size.checked_next_multiple_of(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
        if end > MAP_SIZE {
            return Ok(Self { map: Arc::new(map(end)?), start: 0, size });
        }
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = last.0.upgrade()
            && map.len() - last.1 >= end
        {
            let start = last.1;
            last.1 += end;
            return Ok(Self { map, start, size });
        }
        let map = Arc::new(map(MAP_SIZE)?);
        *last = (Arc::downgrade(&map), end);
        Ok(Self { map, start: 0, size })
    }
}

/// Returns a map of at least `size` bytes, for which large pages are asked.
fn map(size: usize) -> io::Result<MmapRaw> {
    let size = size.checked_next_multiple_of(LARGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    let map = MmapMut::map_anon(size)?;
    #[cfg(target_os = "linux")]
    // An error means that the system has small pages only.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map.into())
}

impl Deref for MapPart {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes must lie in the map, be initialised, and not be mutably borrowed. They lie in the map, because
        // `reserve` checked its length. The system filled the map with zeros. No other part contains these bytes, and
        // the slice borrows this part.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.size) }
    }
}

impl DerefMut for MapPart {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the slice borrows this part mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.size) }
    }
}

impl<E: Pod> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        bytemuck::cast_slice(&self.bytes[..self.length * size_of::<E>()])
    }
}

impl<E: Pod> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        let size = self.length * size_of::<E>();
        bytemuck::cast_slice_mut(&mut self.bytes[..size])
    }
}

/// Asks the system to back these numbers by large pages when they are first written. Systems without large
/// pages ignore it.
pub(crate) fn use_large_pages<E>(numbers: &mut [E]) {
    #[cfg(target_os = "linux")]
    {
        // The largest size of small pages: 64 KB on some ARM systems, 4 KB on x86. The system refuses parts of a page.
        const SMALL_PAGE: usize = 1 << 16;
        let bytes = numbers.as_mut_ptr_range();
        let start = bytes.start.addr().next_multiple_of(SMALL_PAGE);
        let end = bytes.end.addr() / SMALL_PAGE * SMALL_PAGE;
        if start < end {
            // SAFETY: the range must belong to this process, and the advice must not change its content. The
            // range lies within the slice, and the advice changes neither content nor access.
            unsafe {
                let start = bytes.start.wrapping_byte_add(start - bytes.start.addr());
                libc::madvise(start.cast(), end - start.addr(), libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = numbers;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_buffer_is_zero_and_keeps_writes() {
        for length in [0, 1, 1000, 1 << 20] {
            let mut buffer = Buffer::<f32>::zeroed(length).expect("memory");
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|number| *number == 0.0));
            if let Some(last) = buffer.last_mut() {
                *last = 3.0;
                assert_eq!(buffer[length - 1], 3.0);
            }
        }
        assert!(Buffer::<f32>::zeroed(usize::MAX).is_err());
        assert!(Buffer::<u8>::zeroed(usize::MAX).is_err());
    }

    #[test]
    fn buffers_that_share_a_map_keep_their_own_elements() {
        // One is larger than a map that buffers share.
        let lengths = (0..100).map(|index| 1 + index * 10_000).chain([20_000_000, 3]);
        let mut buffers = Vec::new();
        for length in lengths {
            let mut buffer = Buffer::<usize>::zeroed(length).expect("memory");
            assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(buffer.iter().all(|number| *number == 0));
            buffer.fill(length);
            // Some earlier buffers are dropped meanwhile.
            if buffer.len().is_multiple_of(3) {
                buffers.pop();
            }
            buffers.push(buffer);
        }
        for buffer in &buffers {
            assert!(buffer.iter().all(|number| *number == buffer.len()));
        }
    }
}

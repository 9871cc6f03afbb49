//! Memory for weights and for the KV cache, in large pages where the system has them. With small pages,
//! reading gigabytes in order spends much of its time on address translation.
#![expect(unsafe_code, reason = "advice to the system about memory that a vector owns")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

#[cfg(all(test, target_os = "linux"))]
use super::tests::guard_pages::{Guarded, Place};

/// A fixed number of elements, zero at first. The system provides a page when it is first written.
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
        // A mapping of 0 bytes is an error.
        let bytes = MmapMut::map_anon(size.max(1))?;
        #[cfg(target_os = "linux")]
        // An error means that the system has small pages only.
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(Self { bytes: Bytes::Mapped(bytes), length, elements: PhantomData })
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
    Mapped(MmapMut),
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
    }
}

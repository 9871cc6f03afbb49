//! A weight file, mapped into memory.
//!
//! Two functions use unsafe code. `map` maps a file, and `release` returns pages of the mapping to the
//! system.

use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use super::files;
use crate::error::LoadError;

/// A safetensors or GGUF file: one of several shards, or the only file.
#[derive(Debug)]
pub(crate) struct Shard {
    /// The file's name inside the checkpoint.
    pub(crate) file: String,
    bytes: ShardBytes,
}

#[derive(Debug)]
enum ShardBytes {
    Mapped(Mmap),
    #[cfg(feature = "tiny-model")]
    Bundled(&'static [u8]),
}

impl Shard {
    /// Maps the file at `path` into memory.
    ///
    /// The file must not be changed or truncated while the shard exists.
    ///
    /// # Errors
    /// Returns an error if the file cannot be mapped, or is a stand-in for another file.
    #[expect(unsafe_code, reason = "memory-maps a file")]
    pub(super) fn map(file: String, path: &Path) -> Result<Self, LoadError> {
        let error = |source| LoadError::Read { path: path.to_owned(), source };
        let opened = files::open(path).map_err(error)?;
        // SAFETY: The mapped bytes must not change while they are borrowed. A program cannot enforce
        // this for a file; `Checkpoint::open` passes the obligation to its caller, as other loaders
        // of mapped weights do. The bytes are read as plain numbers and, in headers, as text that is checked
        // to be UTF-8. Both are copied while loading.
        let map = unsafe { Mmap::map(&opened) }.map_err(error)?;
        files::refuse_stand_in(&file, &map)?;
        Ok(Self { file, bytes: ShardBytes::Mapped(map) })
    }

    /// Wraps a file that is part of the binary.
    #[cfg(feature = "tiny-model")]
    pub(super) fn bundled(file: String, bytes: &'static [u8]) -> Self {
        Self { file, bytes: ShardBytes::Bundled(bytes) }
    }

    /// Returns the whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            ShardBytes::Mapped(map) => map,
            #[cfg(feature = "tiny-model")]
            ShardBytes::Bundled(bytes) => bytes,
        }
    }

    #[cfg(unix)]
    fn mapped(&self) -> Option<&Mmap> {
        match &self.bytes {
            ShardBytes::Mapped(map) => Some(map),
            #[cfg(feature = "tiny-model")]
            ShardBytes::Bundled(_) => None,
        }
    }

    /// Returns the physical memory of `part` to the system. A later access reads the file again.
    ///
    /// Does nothing if `part` lies outside this shard, if the shard is bundled, or on systems other
    /// than Unix.
    #[cfg_attr(
        unix,
        expect(
            unsafe_code,
            reason = "this kind of advice could discard the contents of a mapping"
        )
    )]
    pub(crate) fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(map) = self.mapped() {
            let range = map.as_ptr_range();
            let start = part.as_ptr() as usize;
            if range.contains(&part.as_ptr()) && start + part.len() <= range.end as usize {
                let offset = start - range.start as usize;
                // SAFETY: The advice must not change the mapped contents. The mapping is read-only
                // and backed by a file, so discarded pages are read from the file again. An error is ignored.
                // The memory then stays allocated.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len())
                };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

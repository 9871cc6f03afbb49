//! A weight file, mapped into memory or read into it.
//!
//! Two functions use unsafe code. `map` maps a file, and `release` returns pages of the mapping to the
//! system.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
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
    Mapped(Mmap, File),
    Read(Vec<u8>),
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
        Ok(Self { file, bytes: ShardBytes::Mapped(map, opened) })
    }

    /// Reads the file into memory and ends the mapping, so that changes of the file do no harm any more.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, has another length than before, or does not fit in memory.
    pub(super) fn read(&mut self) -> Result<(), LoadError> {
        let ShardBytes::Mapped(map, opened) = &mut self.bytes else { return Ok(()) };
        let read = |opened: &mut File| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(map.len())?;
            opened.seek(SeekFrom::Start(0))?;
            opened.take(map.len() as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read(opened)
            .map_err(|source| LoadError::Read { path: self.file.clone().into(), source })?;
        if bytes.len() != map.len() {
            return Err(self.changed());
        }
        self.bytes = ShardBytes::Read(bytes);
        Ok(())
    }

    /// Checks that a mapped file still has its length. Reading a part that is gone would end the process.
    ///
    /// # Errors
    /// Returns an error if the file has another length.
    pub(super) fn check_length(&self) -> Result<(), LoadError> {
        match &self.bytes {
            ShardBytes::Mapped(map, opened)
                if opened.metadata().is_ok_and(|metadata| metadata.len() != map.len() as u64) =>
            {
                Err(self.changed())
            }
            _ => Ok(()),
        }
    }

    fn changed(&self) -> LoadError {
        let reason =
            "another program changed its length while the model was loaded; load the model again";
        LoadError::invalid(&self.file, reason)
    }

    /// Wraps a file that is part of the binary.
    #[cfg(feature = "tiny-model")]
    pub(super) fn bundled(file: String, bytes: &'static [u8]) -> Self {
        Self { file, bytes: ShardBytes::Bundled(bytes) }
    }

    /// Returns the whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            ShardBytes::Mapped(map, _) => map,
            ShardBytes::Read(bytes) => bytes,
            #[cfg(feature = "tiny-model")]
            ShardBytes::Bundled(bytes) => bytes,
        }
    }

    #[cfg(unix)]
    fn mapped(&self) -> Option<&Mmap> {
        match &self.bytes {
            ShardBytes::Mapped(map, _) => Some(map),
            _ => None,
        }
    }

    /// Returns the physical memory of `part` to the system. A later access reads the file again.
    ///
    /// Does nothing if `part` lies outside this shard, if the shard is not mapped, or on systems other than Unix.
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

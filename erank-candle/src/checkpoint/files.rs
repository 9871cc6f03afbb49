//! Reading of a checkpoint's files, which are untrusted.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::TOKENIZER;
use crate::error::LoadError;

/// Opens a regular file. Another file, such as a named pipe, could block for ever.
pub(super) fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

/// Returns the names of the files in a folder and in the folders inside. A folder that cannot be read has none.
pub(super) fn files_in(folder: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            files.filter_map(|file| file.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    };
    let inside = |name: String| {
        let files = names(&folder.join(&name)).into_iter().map(|file| format!("{name}/{file}"));
        let files: Vec<String> = files.collect();
        if files.is_empty() { vec![name] } else { files }
    };
    names(folder).into_iter().flat_map(inside).collect()
}

/// Reads the file at `path`. `file` is its name in the checkpoint.
///
/// # Errors
/// Returns an error if the file cannot be read, is larger than any known one, or is a stand-in for another file.
pub(super) fn read(file: &str, path: &Path) -> Result<Vec<u8>, LoadError> {
    // The largest known tokenizer.json has 33 MB, and the largest other file 2 MB.
    let max_mebibytes = if file == TOKENIZER { 64 } else { 16 };
    let error = |source| LoadError::Read { path: path.to_owned(), source };
    let max_bytes = max_mebibytes << 20;
    let mut bytes = Vec::new();
    open(path)
        .and_then(|opened| opened.take(max_bytes + 1).read_to_end(&mut bytes))
        .map_err(error)?;
    if bytes.len() as u64 > max_bytes {
        let problem =
            format!("it is larger than {max_mebibytes} MiB, more than any known file of this name");
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, problem)));
    }
    refuse_stand_in(file, &bytes)?;
    Ok(bytes)
}

/// Reads a file, or returns `None` if it does not exist.
pub(super) fn read_optional(file: &str, path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match read(file, path) {
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Refuses the contents of pointer files and of HTML pages, which a failed download leaves in place of a file.
///
/// # Errors
/// Returns an error that names the kind of the contents and the command that gets the file itself.
pub(super) fn refuse_stand_in(file: &str, bytes: &[u8]) -> Result<(), LoadError> {
    const LFS: [&str; 2] =
        ["version https://git-lfs.github.com/", "version https://hawser.github.com/"];
    let beginning = bytes[..bytes.len().min(64)].trim_ascii_start().to_ascii_lowercase();
    let begins = |text: &str| beginning.starts_with(text.as_bytes());
    let reason = if LFS.into_iter().any(begins) {
        "it is a Git LFS pointer instead of the file itself; run `git lfs pull` in its folder"
    } else if begins("# xet version") {
        "it is a Xet pointer instead of the file itself; download the file from the model hub"
    } else if begins("<!doctype html") || begins("<html") {
        "it is an HTML page instead of the file itself; download the file again"
    } else {
        return Ok(());
    };
    Err(LoadError::invalid(file, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_names_stand_ins() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("x");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n";
        for (content, expected) in [
            (pointer, "git lfs pull"),
            ("version https://hawser.github.com/spec/v1\n", "git lfs pull"),
            ("# xet version 0\n", "Xet pointer"),
            ("\n <!DOCTYPE html>\n<html>", "HTML page"),
            ("<HTML>", "HTML page"),
        ] {
            fs::write(&path, content).expect("written");
            let error = read("config.json", &path).expect_err(content).to_string();
            assert!(error.contains("config.json") && error.contains(expected), "{error}");
        }
        for content in ["", "version 1", "{}"] {
            fs::write(&path, content).expect("written");
            assert_eq!(read("config.json", &path).expect(content), content.as_bytes());
        }
    }

    #[test]
    fn read_refuses_large_files_by_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("x");
        File::create(&path).and_then(|file| file.set_len((16 << 20) + 1)).expect("written");
        let error = read("config.json", &path).expect_err("too large");
        assert!(erank_core::error::chain(&error).contains("16 MiB"), "{error:?}");
        assert!(read(TOKENIZER, &path).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn read_refuses_pipes_and_folders_without_waiting() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo");
        for path in [&*pipe, folder.path(), Path::new("/dev/zero")] {
            let error = read_optional("config.json", path).expect_err("no regular file");
            let message = erank_core::error::chain(&error);
            assert!(message.contains("not a regular file"), "{message}");
        }
    }
}

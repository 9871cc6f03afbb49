//! The files of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::sample::ending;

/// A file of documents in a folder.
#[derive(Debug, PartialEq)]
pub(super) struct DocumentFile {
    pub(super) path: PathBuf,
    /// The path relative to the folder.
    pub(super) name: String,
    /// Whether the file is one document.
    pub(super) is_document: bool,
}

/// The files of a folder, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) files: Vec<DocumentFile>,
    /// Subfolders that cannot be read, with the reason.
    pub(super) unreadable: Vec<(String, io::Error)>,
    /// Number of entries that were left out, by reason.
    pub(super) left_out: BTreeMap<&'static str, usize>,
}

/// Lists the files of a folder and its subfolders, sorted by name.
///
/// A `.txt` or `.md` file is a document, and a `.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv` file holds documents;
/// each may be compressed. A link to a file is followed. Left out are hidden entries, other files, links to folders,
/// which may form a cycle, and what is no regular file, because reading it may never end. Of a collection of BEIR, all
/// but the corpus is left out.
///
/// # Errors
///
/// Returns an error if the folder itself cannot be read.
pub(super) fn list(folder: &Path) -> io::Result<Folder> {
    let mut found = Folder::default();
    add(&mut found, folder, folder)?;
    Ok(found)
}

fn add(found: &mut Folder, root: &Path, folder: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    // The file's name without its endings.
    let has_stem = |entry: &fs::DirEntry, stem: &str| {
        let name = entry.file_name();
        name.to_str().and_then(|name| name.split('.').next()) == Some(stem)
    };
    let has = |stem: &str| entries.iter().any(|entry| has_stem(entry, stem));
    let is_collection = has("corpus") && (has("queries") || has("qrels"));
    for entry in entries {
        if is_collection && !has_stem(&entry, "corpus") {
            found.leave_out("files or folders beside the corpus of a BEIR collection");
            continue;
        }
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.leave_out("hidden files or folders");
        } else if entry.file_type()?.is_dir() {
            if let Err(error) = add(found, root, &path) {
                found.unreadable.push((name, error));
            }
        } else {
            found.add_file(path, name);
        }
    }
    Ok(())
}

impl Folder {
    fn add_file(&mut self, path: PathBuf, name: String) {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => return self.unreadable.push((name, error)),
        };
        if metadata.is_dir() {
            return self.leave_out("links to folders");
        }
        if !metadata.is_file() {
            return self.leave_out("special files (pipes, sockets or devices)");
        }
        let is_document = match ending(&name) {
            "txt" | "md" | "markdown" => true,
            "" => return self.leave_out("files with other endings"),
            _ => false,
        };
        self.files.push(DocumentFile { path, name, is_document });
    }

    fn leave_out(&mut self, reason: &'static str) {
        *self.left_out.entry(reason).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_takes_only_the_corpus_of_a_collection() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("fiqa/qrels")).expect("made");
        for name in ["a.txt", "fiqa/corpus.jsonl.gz", "fiqa/queries.jsonl", "fiqa/qrels/test.tsv"] {
            fs::write(path(name), "text").expect("written");
        }
        let found = list(folder.path()).expect("read");
        let names: Vec<_> = found.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.txt", "fiqa/corpus.jsonl.gz"]);
        assert_eq!(found.left_out.into_values().collect::<Vec<_>>(), [2]);
    }

    #[test]
    #[cfg(unix)]
    fn list_leaves_out_what_is_no_file_of_documents() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;

        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).expect("made");
        for name in ["b.txt", "sub/a.jsonl.gz", "c.png", ".hidden.txt", "sub/x.MD"] {
            fs::write(path(name), "text").expect("written");
        }
        symlink(path("b.txt"), path("link.txt")).expect("a link");
        symlink(folder.path(), path("sub/loop")).expect("a link");
        symlink("/dev/zero", path("zero.txt")).expect("a link");
        symlink(path("nowhere"), path("broken.txt")).expect("a link");
        let _socket = UnixListener::bind(path("socket.txt")).expect("a socket");
        let found = list(folder.path()).expect("read");
        let names: Vec<_> =
            found.files.iter().map(|file| (file.name.as_str(), file.is_document)).collect();
        assert_eq!(
            names,
            [("b.txt", true), ("link.txt", true), ("sub/a.jsonl.gz", false), ("sub/x.MD", true)]
        );
        let left_out = [
            ("hidden files or folders", 1),
            ("links to folders", 1),
            ("special files (pipes, sockets or devices)", 2),
            ("files with other endings", 1),
        ];
        assert_eq!(found.left_out, BTreeMap::from(left_out));
        assert_eq!(found.unreadable.len(), 1);
        assert_eq!(found.unreadable[0].0, "broken.txt");
    }
}

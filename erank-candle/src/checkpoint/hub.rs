//! Checkpoints from the Hugging Face hub.

use std::fs;
use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::files::files_in;
use super::{CONFIG, Checkpoint, gguf, has_safetensors};
use crate::error::LoadError;

impl Checkpoint {
    /// Opens a model of the Hugging Face hub, such as `Alibaba-NLP/ERank-4B`.
    ///
    /// A repository of GGUF files takes the name of a file after a colon, `OWNER/NAME:FILE.gguf`, or the name of
    /// a quantisation, such as `OWNER/NAME:Q4_K_M`, if one file has it in its name. A colon is not needed if there
    /// is one GGUF file and there are no safetensors files. All files of a model in several files are downloaded.
    ///
    /// `revision` is a branch, a tag or a commit; `None` is the one that the name ends with,
    /// `OWNER/NAME@REVISION:FILE.gguf` or `OWNER/NAME:FILE.gguf@REVISION`, or else `main`. Files that the hub's local
    /// cache lacks are downloaded into it, with a progress bar on standard error. Cached files are used without a
    /// network. All files come from one commit: that of the cache, if it knows the branch or tag, or else the hub's.
    ///
    /// # Environment variables
    /// These variables have the meaning that Python's `huggingface_hub` documents: `HF_HOME`, `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN` and
    /// `HF_HUB_DISABLE_PROGRESS_BARS`. The token that the hub's login command saved is used, too. With
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, no token is sent.
    ///
    /// # Errors
    /// Returns [`LoadError::Hub`] with the file that cannot be downloaded, [`LoadError::NotCached`] if no network is
    /// to be used and the cache lacks the model, [`LoadError::Setting`] for a name that is not one of a model, or with
    /// the repository's GGUF files if not exactly one is meant, and the errors of [`open`](Self::open).
    pub fn from_hub(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        let environment = Environment::read(&|variable: &str| std::env::var(variable).ok())?;
        environment.open(name, revision)
    }

    /// Opens a model of the hub's local cache, as [`from_hub`](Self::from_hub) does with `HF_HUB_OFFLINE=1`: without
    /// a network.
    ///
    /// # Errors
    /// Returns the errors of [`from_hub`](Self::from_hub).
    pub fn from_hub_cache(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        let mut environment = Environment::read(&|variable: &str| std::env::var(variable).ok())?;
        environment.offline.get_or_insert("a model of the cache is asked for");
        environment.open(name, revision)
    }
}

/// The name of a model on the hub, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubName<'a> {
    /// `OWNER/NAME`.
    pub repository: &'a str,
    /// The name of a GGUF file or a quantisation, after a colon.
    pub file: Option<&'a str>,
    /// A branch, a tag or a commit, after `@`.
    pub revision: Option<&'a str>,
}

impl<'a> HubName<'a> {
    /// Parses `OWNER/NAME`, `OWNER/NAME:FILE`, `OWNER/NAME@REVISION`, and both in any order. Returns `None` for other
    /// texts.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (repository, mut rest) = name.split_at(name.find([':', '@']).unwrap_or(name.len()));
        let (owner, model) = repository.split_once('/')?;
        let mut parsed = Self { repository, file: None, revision: None };
        while let Some(mark) = rest.chars().next() {
            let other = if mark == ':' { '@' } else { ':' };
            let value = &rest[1..];
            let (value, after) = value.split_at(value.find(other).unwrap_or(value.len()));
            let part = if mark == ':' { &mut parsed.file } else { &mut parsed.revision };
            if part.replace(value).is_some() || !is_path(value) {
                return None;
            }
            rest = after;
        }
        (is_name(owner) && is_name(model)).then_some(parsed)
    }
}

/// Returns whether a text is a plain name: of an owner, of a model, or of a folder or file.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
}

/// Returns whether a text consists of plain names between slashes.
fn is_path(text: &str) -> bool {
    text.split('/').all(is_name)
}

/// The settings of environment variables.
#[derive(Debug, PartialEq)]
struct Environment {
    cache: PathBuf,
    token: Option<String>,
    endpoint: Option<String>,
    /// The reason why no network is used.
    offline: Option<&'static str>,
    has_progress_bar: bool,
}

impl Environment {
    /// Reads the variables with `variable`. An empty variable counts as missing.
    ///
    /// # Errors
    /// Returns an error if no variable tells where the cache is.
    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, LoadError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let is_true = |name: &str| {
            let value = variable(name).unwrap_or_default().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&&*value)
        };
        let user_folder = variable("HOME").or_else(|| variable("USERPROFILE"));
        let expanded = |path: String| match (path.strip_prefix("~"), &user_folder) {
            (Some(rest), Some(folder)) if rest.is_empty() || rest.starts_with('/') => {
                PathBuf::from(format!("{folder}{rest}"))
            }
            _ => PathBuf::from(path),
        };
        let folder = |names: &[&str]| names.iter().find_map(|name| variable(name)).map(expanded);
        let in_user_folder = || Some(Path::new(user_folder.as_deref()?).join(".cache"));
        let home = folder(&["HF_HOME"]).or_else(|| {
            let caches = folder(&["XDG_CACHE_HOME"]).or_else(in_user_folder);
            Some(caches?.join("huggingface"))
        });
        let cache = folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let no_home = || LoadError::Setting("set HF_HOME, the folder of the hub's cache".into());
        let saved_token = || {
            let file = folder(&["HF_TOKEN_PATH"]).or_else(|| Some(home.as_ref()?.join("token")));
            fs::read_to_string(file?).ok()
        };
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(saved_token).map(|token| token.trim().to_owned());
        // Each of these tokens is implicit, because no program gives it.
        let token = token.filter(|_| !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let offline = match variable("HF_HUB_OFFLINE") {
            Some(_) => is_true("HF_HUB_OFFLINE").then_some("HF_HUB_OFFLINE is set"),
            None => is_true("TRANSFORMERS_OFFLINE").then_some("TRANSFORMERS_OFFLINE is set"),
        };
        Ok(Self {
            cache: cache.ok_or_else(no_home)?,
            token: token.filter(|token| !token.is_empty()),
            endpoint: variable("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_owned()),
            offline,
            has_progress_bar: !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
        })
    }

    /// Opens the model of this name.
    fn open(&self, name: &str, revision: Option<&str>) -> Result<Checkpoint, LoadError> {
        let wrong = |reason: &str| Err(LoadError::Setting(format!("{name:?} {reason}")));
        let Some(parsed) = HubName::parse(name) else {
            return wrong("is not the name of a model on the hub, such as OWNER/NAME");
        };
        let revision = match (parsed.revision, revision) {
            (Some(_), Some(_)) => return wrong("has a revision, but another one is given"),
            (named, given) => named.or(given).unwrap_or("main"),
        };
        if !is_path(revision) {
            return wrong(&format!("cannot have the revision {revision:?}"));
        }
        let snapshot = snapshot(&self.cache, parsed.repository, revision);
        match (self.offline, snapshot) {
            (Some(_), Some(snapshot)) => {
                let listed = files_in(&snapshot);
                open_listed(&parsed, revision, &listed, &mut |file| Ok(snapshot.join(file)))
            }
            (Some(reason), None) => Err(LoadError::NotCached {
                model: format!("{}@{revision}", parsed.repository),
                cache: self.cache.clone(),
                reason,
            }),
            (None, snapshot) => self.fetch(&parsed, revision, snapshot.as_deref()),
        }
    }

    /// Opens a model, and downloads the files that its snapshot in the cache lacks.
    fn fetch(
        &self,
        name: &HubName<'_>,
        revision: &str,
        snapshot: Option<&Path>,
    ) -> Result<Checkpoint, LoadError> {
        let hub_error = |file: &str, source: ApiError| LoadError::Hub {
            model: name.repository.to_owned(),
            file: file.to_owned(),
            source: source.into(),
        };
        let client = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_token(self.token.clone())
            .with_progress(self.has_progress_bar);
        let client = match &self.endpoint {
            Some(endpoint) => client.with_endpoint(endpoint.clone()),
            None => client,
        };
        let client = client.build().map_err(|error| hub_error("any file", error))?;
        let repo = |revision: &str| {
            Repo::with_revision(name.repository.to_owned(), RepoType::Model, revision.to_owned())
        };
        // A branch may move at any time. So all files are those of one commit.
        let cached = snapshot.and_then(Path::file_name).and_then(|commit| commit.to_str());
        let listing = match client.repo(repo(cached.unwrap_or(revision))).info() {
            Ok(listing) => listing,
            // If the hub cannot be reached, use the files in the cache.
            Err(error) => match snapshot.map(|folder| (folder, files_in(folder))) {
                Some((folder, files)) if !files.is_empty() => {
                    return open_listed(name, revision, &files, &mut |file| Ok(folder.join(file)));
                }
                _ => return Err(hub_error("the list of files", error)),
            },
        };
        let commit = cached.unwrap_or(&listing.sha);
        if !is_name(commit) {
            return Err(LoadError::Hub {
                model: name.repository.to_owned(),
                file: "the list of files".into(),
                source: format!("its commit is {commit:?}, which is not a valid name of a commit")
                    .into(),
            });
        }
        let listed: Vec<String> = listing.siblings.into_iter().map(|file| file.rfilename).collect();
        let (folder, of_commit) =
            (snapshot_folder(&self.cache, name.repository, commit), client.repo(repo(commit)));
        let checkpoint = open_listed(name, revision, &listed, &mut |file| {
            let path = folder.join(file);
            match path.exists() {
                true => Ok(path),
                false => of_commit.download(file).map_err(|error| hub_error(file, error)),
            }
        })?;
        if cached.is_none() {
            // An error is ignored: without the reference, the next call asks the hub for the commit again.
            let _ = Cache::new(self.cache.clone()).repo(repo(revision)).create_ref(commit);
        }
        Ok(checkpoint)
    }
}

/// Opens a model whose files are `listed`. `locate` returns the path of one of them.
fn open_listed(
    name: &HubName<'_>,
    revision: &str,
    listed: &[String],
    locate: &mut dyn FnMut(&str) -> Result<PathBuf, LoadError>,
) -> Result<Checkpoint, LoadError> {
    let repository = name.repository;
    let exists = |file: &str| listed.iter().any(|listed| listed == file);
    let mut locate = |file: &str| match exists(file) {
        true => locate(file),
        false if file == CONFIG => {
            let reason = format!(
                "{repository}@{revision} does not have it, or the hub's cache does not; download the model with a \
                 network, or choose another model"
            );
            Err(LoadError::invalid(file, reason))
        }
        // This path does not exist, so the file is reported as missing if it is required.
        false => Ok(format!("{repository}@{revision}/{file}").into()),
    };
    match choose_gguf(listed, name.file) {
        Ok(Some(path)) => {
            let full_name = name.file.map(|file| format!("{repository}:{file}"));
            let (folder, file) = path
                .rsplit_once('/')
                .map_or(("", &*path), |(folder, file)| (&path[..=folder.len()], file));
            let full_name = full_name.as_deref().unwrap_or(repository);
            Checkpoint::from_gguf(Some(full_name), file, &mut |file| {
                locate(&format!("{folder}{file}"))
            })
        }
        Ok(None) => Checkpoint::from_source(repository, listed, &mut locate),
        Err(reason) => Err(LoadError::Setting(format!("{repository} has {reason}"))),
    }
}

/// Returns the folder with the cached files of a revision: a branch or tag that the cache knows, or a commit.
fn snapshot(cache: &Path, repository: &str, revision: &str) -> Option<PathBuf> {
    let commit =
        fs::read_to_string(repository_folder(cache, repository).join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
    let snapshot = snapshot_folder(cache, repository, &commit);
    (is_name(&commit) && snapshot.is_dir()).then_some(snapshot)
}

fn repository_folder(cache: &Path, repository: &str) -> PathBuf {
    cache.join(format!("models--{}", repository.replace('/', "--")))
}

fn snapshot_folder(cache: &Path, repository: &str, commit: &str) -> PathBuf {
    repository_folder(cache, repository).join("snapshots").join(commit)
}

/// Returns the GGUF file that is meant, or the first of several files of one model, or `None` if a folder with
/// safetensors files is meant.
///
/// # Errors
/// Returns the files to choose from, if not exactly one is meant.
fn choose_gguf(listed: &[String], selected: Option<&str>) -> Result<Option<String>, String> {
    // Names that lead to other folders are ignored.
    let is_inside = |file: &&String| {
        Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
    };
    let files: Vec<String> =
        listed.iter().filter(|file| gguf::is_model_file(file)).filter(is_inside).cloned().collect();
    let models = gguf::one_per_set(files.clone());
    let matching: Vec<&String> = match selected {
        None if models.is_empty() || has_safetensors(listed) => return Ok(None),
        None => models.iter().collect(),
        Some(file) if file.ends_with(".gguf") => {
            files.iter().filter(|name| *name == file).collect()
        }
        Some(name) => models.iter().filter(|file| has_quantisation(file, name)).collect(),
    };
    let list = |files: &[&String]| {
        let files: Vec<&str> = files.iter().map(|file| &***file).collect();
        if files.is_empty() { "none".to_owned() } else { files.join(", ") }
    };
    match (&matching[..], selected) {
        ([file], _) => Ok(Some((*file).clone())),
        ([], _) => Err(format!(
            "no GGUF file {:?}; its GGUF files: {}",
            selected.unwrap_or_default(),
            list(&models.iter().collect::<Vec<_>>())
        )),
        (several, None) => Err(format!(
            "several models; give one after a colon (NAME:FILE.gguf): {}",
            list(several)
        )),
        (several, Some(name)) => {
            Err(format!("several GGUF files {name:?}; give the name of one: {}", list(several)))
        }
    }
}

/// Returns whether a file's name has the name of a quantisation, as a whole word. Case does not matter.
fn has_quantisation(file: &str, name: &str) -> bool {
    let (file, name) = (file.to_ascii_lowercase(), name.to_ascii_lowercase());
    !name.is_empty()
        && file.match_indices(&name).any(|(start, _)| {
            let before = file[..start].chars().next_back();
            let after = file[start + name.len()..].chars().next();
            // "Q4_K" is neither "Q4_K_M" nor "IQ4_K".
            !before.is_some_and(char::is_alphanumeric)
                && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;
    use crate::checkpoint::gguf::tests::Content;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use tempfile::tempdir;

    /// Serves a folder over HTTP as the hub serves a model. The branch `v1` is the commit `abc`.
    fn serve(folder: PathBuf) -> String {
        serve_branch(folder, "abc")
    }

    /// Serves a folder as the commits `abc` and `def`, and the branch `v1` as `head`. Files are served by commit, not
    /// by branch. Returns the address of the server.
    fn serve_branch(folder: PathBuf, head: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
        let address = format!("http://{}", listener.local_addr().expect("local address"));
        // A test makes far fewer than 100 requests. The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().take(100) {
                respond(stream.expect("connection"), &folder, head).expect("response sent");
            }
        });
        address
    }

    fn respond(mut stream: TcpStream, folder: &Path, head: &str) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let range = lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let path = request.split(' ').nth(1).unwrap_or("");
        let commits = ["abc", "def"];
        let resolved =
            path.strip_prefix("/team/model/resolve/").and_then(|path| path.split_once('/'));
        let revision = path.strip_prefix("/api/models/team/model/revision/");
        let (status, body, headers) = match (resolved, revision) {
            (Some((commit, file)), _) if commits.contains(&commit) => {
                let whole = fs::read(folder.join(file))?;
                let range = range.unwrap_or_else(|| "0-".into());
                let (from, to) = range.split_once('-').unwrap_or(("0", ""));
                let from: usize = from.parse().unwrap_or(0);
                let to = to.parse().unwrap_or(whole.len() - 1);
                let headers = format!(
                    "etag: \"{}-1\"\r\nx-repo-commit: {commit}\r\ncontent-range: bytes {from}-{to}/{}\r\n",
                    file.replace('/', "-"),
                    whole.len()
                );
                ("206 Partial Content", whole[from..=to].to_vec(), headers)
            }
            (_, Some("v1")) => ("200 OK", listing(folder, head)?.into_bytes(), String::new()),
            (_, Some(commit)) if commits.contains(&commit) => {
                ("200 OK", listing(folder, commit)?.into_bytes(), String::new())
            }
            _ => ("404 Not Found", Vec::new(), String::new()),
        };
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n")?;
        write!(stream, "connection: close\r\n{headers}\r\n")?;
        stream.write_all(&body)
    }

    fn listing(folder: &Path, commit: &str) -> std::io::Result<String> {
        let mut names = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            match fs::read_dir(file.path()) {
                Ok(inside) => {
                    for file in inside {
                        names.push(format!("{name}/{}", file?.file_name().to_string_lossy()));
                    }
                }
                Err(_) => names.push(name),
            }
        }
        let names: Vec<_> =
            names.iter().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
        Ok(format!("{{\"siblings\": [{}], \"sha\": {commit:?}}}", names.join(",")))
    }

    /// No server listens on this port.
    const UNREACHABLE: &str = "http://127.0.0.1:9";

    fn environment(address: &str, cache: &Path) -> Environment {
        Environment {
            cache: cache.to_owned(),
            token: None,
            endpoint: Some(address.to_owned()),
            offline: None,
            has_progress_bar: false,
        }
    }

    #[test]
    fn open_uses_cached_files_without_network() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-model");
        let cache = tempdir().expect("temporary folder");
        let online = environment(&serve(model), cache.path());
        let downloaded = online.open("team/model", Some("v1")).expect("model downloaded");
        let bundled = Checkpoint::tiny();
        assert_eq!(downloaded.config, bundled.config);
        assert_eq!(downloaded.tokenizer, bundled.tokenizer);
        assert_eq!(downloaded.shards[0].bytes(), bundled.shards[0].bytes());

        let unreachable = environment(UNREACHABLE, cache.path());
        let offline = Environment { offline: Some("HF_HUB_OFFLINE is set"), ..unreachable };
        let unreachable = environment(UNREACHABLE, cache.path());
        for environment in [&unreachable, &offline] {
            // Python's cache has no ref for a commit; the server's commit is "abc".
            for name in ["team/model@v1", "team/model@abc"] {
                let again = environment.open(name, None).expect("cached model");
                assert_eq!((again.name(), &again.config), ("team/model", &bundled.config));
            }
        }
        let error = offline.open("team/model", None).expect_err("not cached").to_string();
        for expected in ["team/model@main", "HF_HUB_OFFLINE", &*cache.path().to_string_lossy()] {
            assert!(error.contains(expected), "{error}");
        }
        assert!(matches!(unreachable.open("team/model", None), Err(LoadError::Hub { .. })));
    }

    #[test]
    fn open_takes_all_files_from_one_commit() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-model");
        let cache = tempdir().expect("temporary folder");
        let folder = |commit| snapshot_folder(cache.path(), "team/model", commit);
        let open = |head| {
            let server = serve_branch(model.clone(), head);
            environment(&server, cache.path()).open("team/model", Some("v1")).expect("a model")
        };
        open("abc");
        // The branch has moved, and the cache has lost a file.
        fs::remove_file(folder("abc").join("tokenizer.json")).expect("removed");
        open("def");
        assert!(folder("abc").join("tokenizer.json").exists() && !folder("def").exists());
        // A commit that is not in the cache is that of the list of files.
        fs::remove_dir_all(cache.path()).expect("removed");
        open("def");
        assert!(folder("def").join("tokenizer.json").exists() && !folder("abc").exists());
    }

    #[test]
    fn open_reports_missing_file_missing_model_and_invalid_names() {
        let cache = tempdir().expect("temporary folder");
        let empty = tempdir().expect("temporary folder");
        let environment = environment(&serve(empty.path().to_owned()), cache.path());
        let error = |name, revision| {
            environment.open(name, revision).expect_err("missing on the server").to_string()
        };
        assert!(error("team/model", Some("v1")).contains("config.json"));
        assert!(error("team/other", Some("v1")).contains("team/other"));
        assert!(error("team/model@v1", Some("v1")).contains("another one is given"));
        assert!(error("team/model", Some("../v1")).contains("revision \"../v1\""));
        assert!(error("model", None).contains("OWNER/NAME"));
    }

    #[test]
    fn hub_name_parses_file_and_revision_in_any_order() {
        let parsed =
            |name| HubName::parse(name).map(|name| (name.repository, name.file, name.revision));
        for (name, expected) in [
            ("a/b", ("a/b", None, None)),
            ("a/b:Q4_K_M", ("a/b", Some("Q4_K_M"), None)),
            ("a/b@v1.0+x/y", ("a/b", None, Some("v1.0+x/y"))),
            ("a/b:c/d.gguf@v1", ("a/b", Some("c/d.gguf"), Some("v1"))),
            ("a/b@refs/pr/3:Q8_0", ("a/b", Some("Q8_0"), Some("refs/pr/3"))),
        ] {
            assert_eq!(parsed(name), Some(expected), "{name}");
        }
        for name in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../a",
            "a/..",
            "a/b@",
            "a/b:",
            "a/b@v:",
            "a/b@v@w",
            "a/b:c:d",
            "a/b@../v",
            "a/b@/v",
            "a/b@v/",
            "a/b:../m.gguf",
            "a/b@v w",
            "a/\u{1b}",
            "a/b@-v",
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }

    #[test]
    fn environment_has_the_meaning_of_python() {
        let read = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            Environment::read(&variable).map_err(|error| error.to_string())
        };
        let home = ("HOME", "/home/u");
        let cache = |variables: &[(&str, &str)]| {
            read(&[variables, &[home]].concat()).expect("a cache").cache
        };
        for (variables, expected) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")], "/home/u/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HUB_CACHE", "~"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/home/u"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", " ")], "/home/u/.cache/huggingface/hub"),
        ] {
            assert_eq!(cache(variables), Path::new(expected), "{variables:?}");
        }
        assert!(read(&[]).expect_err("no folder").contains("HF_HOME"));

        let offline = |variables: &[(&str, &str)]| {
            read(&[variables, &[home]].concat()).expect("a cache").offline.is_some()
        };
        for value in ["1", "on", "Yes", "TRUE"] {
            assert!(offline(&[("HF_HUB_OFFLINE", value)]), "{value}");
            assert!(offline(&[("TRANSFORMERS_OFFLINE", value), ("HF_HUB_OFFLINE", "")]), "{value}");
        }
        for value in ["0", "off", "", "2"] {
            assert!(!offline(&[("HF_HUB_OFFLINE", value)]), "{value}");
        }
        assert!(!offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]));

        let folder = tempdir().expect("temporary folder");
        fs::write(folder.path().join("token"), " saved\n").expect("written");
        let path = folder.path().to_string_lossy();
        let token = |variables: &[(&str, &str)]| {
            read(&[variables, &[("HF_HOME", &*path)]].concat()).expect("a cache").token
        };
        assert_eq!(token(&[]).as_deref(), Some("saved"));
        assert_eq!(
            token(&[("HF_TOKEN", "a "), ("HUGGING_FACE_HUB_TOKEN", "b")]).as_deref(),
            Some("a")
        );
        assert_eq!(
            token(&[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "b")]).as_deref(),
            Some("b")
        );
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "a")]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere/token")]), None);
        let others = [("HF_ENDPOINT", "http://h/"), ("HF_HUB_DISABLE_PROGRESS_BARS", "1"), home];
        let others = read(&others).expect("a cache");
        assert_eq!(
            (others.endpoint.as_deref(), others.has_progress_bar),
            (Some("http://h"), false)
        );
    }

    #[test]
    fn open_downloads_gguf_files_by_name_and_by_quantisation() {
        let served = tempdir().expect("temporary folder");
        let whole = Content::small().bytes();
        let [first, second] = Content::two_files().map(|content| content.bytes());
        fs::create_dir(served.path().join("BF16")).expect("a folder");
        for (name, bytes) in [
            ("m-Q8_0.gguf", &whole),
            ("m-Q4_K_M.gguf", &whole),
            ("m-IQ4_XS.gguf", &whole),
            ("m-UD-IQ4_XS.gguf", &whole),
            ("BF16/m-BF16-00001-of-00002.gguf", &first),
            ("BF16/m-BF16-00002-of-00002.gguf", &second),
        ] {
            fs::write(served.path().join(name), bytes).expect("written");
        }
        let cache = tempdir().expect("temporary folder");
        let address = serve(served.path().to_owned());
        let get = |address: &str, name: &str| {
            environment(address, cache.path()).open(&format!("team/model{name}"), Some("v1"))
        };
        let error = |name: &str| get(&address, name).expect_err("not one file").to_string();
        for address in [&*address, UNREACHABLE] {
            let files = [
                (":m-Q8_0.gguf", "m-Q8_0.gguf", 1),
                (":q8_0", "m-Q8_0.gguf", 1),
                (":Q4_K_M", "m-Q4_K_M.gguf", 1),
                (":bf16", "m-BF16-00001-of-00002.gguf", 2),
                (":BF16/m-BF16-00002-of-00002.gguf", "m-BF16-00001-of-00002.gguf", 2),
            ];
            for (name, file, shards) in files {
                let opened = get(address, name).expect("one file");
                assert_eq!((&*opened.shards[0].file, opened.shards.len()), (file, shards));
                assert_eq!(opened.name(), format!("team/model{name}"));
            }
        }
        for (name, expected) in [
            (
                ":Q4_K",
                "no GGUF file \"Q4_K\"; its GGUF files: BF16/m-BF16-00001-of-00002.gguf, m-IQ4_XS",
            ),
            (":Q4_XS", "no GGUF file"),
            (":x.gguf", "no GGUF file \"x.gguf\""),
            (
                ":IQ4_XS",
                "several GGUF files \"IQ4_XS\"; give the name of one: m-IQ4_XS.gguf, m-UD-IQ4_XS.gguf",
            ),
            ("", "several models"),
        ] {
            let message = error(name);
            assert!(message.contains("team/model has ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn choose_gguf_ignores_names_that_lead_to_other_folders() {
        let listed = ["../m-Q8_0.gguf", "/m-Q8_0.gguf", "m.gguf"].map(str::to_owned);
        assert!(choose_gguf(&listed, Some("Q8_0")).is_err());
        assert!(choose_gguf(&listed, Some("../m-Q8_0.gguf")).is_err());
        assert_eq!(choose_gguf(&listed, None), Ok(Some("m.gguf".into())));
        let with = |file: &str| choose_gguf(&["m.gguf".into(), CONFIG.into(), file.into()], None);
        assert_eq!(with("model.safetensors"), Ok(None));
        assert_eq!(with("mmproj-F16.gguf"), Ok(Some("m.gguf".into())));
        assert_eq!(choose_gguf(&[], None), Ok(None));
    }
}

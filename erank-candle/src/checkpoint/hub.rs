//! Checkpoints from the Hugging Face hub.

use std::path::{Component, Path};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::gguf;
use crate::checkpoint::{CONFIG, Checkpoint};
use crate::error::LoadError;

impl Checkpoint {
    /// Opens a model of the Hugging Face hub, such as `Alibaba-NLP/ERank-4B`.
    ///
    /// A repository of GGUF files takes the name of a file after a colon, `OWNER/NAME:FILE.gguf`, or the name of
    /// a quantisation, such as `OWNER/NAME:Q4_K_M`, if one file has it in its name. A colon is not needed if there
    /// is one GGUF file and no `config.json`. All files of a model in several files are downloaded.
    ///
    /// `revision` is a branch, a tag or a commit; `None` is `main`. Files that the hub's local cache
    /// lacks are downloaded into it, with a progress bar on standard error. Cached files are used
    /// without a network. The environment variables `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` and the
    /// token that the hub's login command saved have their usual meaning.
    ///
    /// # Errors
    /// Returns [`LoadError::Hub`] with the file that cannot be downloaded, [`LoadError::Setting`] with the
    /// repository's GGUF files if not exactly one is meant, and the errors of [`open`](Self::open).
    pub fn from_hub(name: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        let mut client = ApiBuilder::from_env();
        if let Ok(token) = std::env::var("HF_TOKEN") {
            client = client.with_token(Some(token));
        }
        fetch(client, &Cache::from_env(), name, revision.unwrap_or("main"))
    }
}

fn fetch(
    client: ApiBuilder,
    cache: &Cache,
    name: &str,
    revision: &str,
) -> Result<Checkpoint, LoadError> {
    let hub_error = |file: &str, source: ApiError| LoadError::Hub {
        model: name.to_owned(),
        file: file.to_owned(),
        source: source.into(),
    };
    let (repository, selected) = match name.split_once(':') {
        Some((repository, selected)) => (repository, Some(selected)),
        None => (name, None),
    };
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let cache = cache.repo(repo.clone());
    let client = client.build().map_err(|error| hub_error("any file", error))?.repo(repo);

    let listed = match client.info() {
        Ok(listing) => listing.siblings.into_iter().map(|file| file.rfilename).collect(),
        // If the hub cannot be reached, use the files in the cache.
        Err(error) => match cached_files(&cache) {
            files if files.is_empty() => return Err(hub_error("the list of files", error)),
            files => files,
        },
    };
    let locate = |file: &str| match listed.iter().any(|listed| listed == file) {
        true => client.get(file).map_err(|error| hub_error(file, error)),
        // This path does not exist, so the file is reported as missing if it is required.
        false => Ok(format!("{repository}@{revision}/{file}").into()),
    };
    match choose_gguf(&listed, selected) {
        Ok(Some(path)) => {
            let (folder, file) = path
                .rsplit_once('/')
                .map_or(("", &*path), |(folder, file)| (&path[..=folder.len()], file));
            Checkpoint::from_gguf(Some(name), file, &mut |file| locate(&format!("{folder}{file}")))
        }
        Ok(None) => Checkpoint::from_source(name, &mut |file| locate(file)),
        Err(reason) => Err(LoadError::Setting(format!("{repository} has {reason}"))),
    }
}

/// Returns the names of the cached files of a repository, in its folder and the folders inside.
fn cached_files(cache: &CacheRepo) -> Vec<String> {
    let Some(root) = cache.get(".") else { return Vec::new() };
    let names = |folder: &Path| -> Vec<String> {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.filter_map(|file| file.file_name().into_string().ok()).collect()
    };
    let inside = |name: String| {
        let files = names(&root.join(&name)).into_iter().map(|file| format!("{name}/{file}"));
        let files: Vec<String> = files.collect();
        if files.is_empty() { vec![name] } else { files }
    };
    names(&root).into_iter().flat_map(inside).collect()
}

/// Returns the GGUF file that is meant, or the first of several files of one model, or `None` if a folder with
/// `config.json` is meant.
///
/// # Errors
/// Returns the files to choose from, if not exactly one is meant.
fn choose_gguf(listed: &[String], selected: Option<&str>) -> Result<Option<String>, String> {
    // Names that lead to other folders are ignored.
    let is_inside = |file: &&String| {
        Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
    };
    let files: Vec<String> =
        listed.iter().filter(|file| file.ends_with(".gguf")).filter(is_inside).cloned().collect();
    let models = gguf::one_per_set(files.clone());
    let matching: Vec<&String> = match selected {
        None if models.is_empty() || listed.iter().any(|file| file == CONFIG) => return Ok(None),
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
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;
    use tempfile::tempdir;

    /// Serves a folder over HTTP as the hub serves a model. Returns the address of the server.
    fn serve(folder: PathBuf) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
        let address = format!("http://{}", listener.local_addr().expect("local address"));
        // A test makes far fewer than 100 requests. The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().take(100) {
                respond(stream.expect("connection"), &folder).expect("response sent");
            }
        });
        address
    }

    fn respond(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let range = lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let path = request.split(' ').nth(1).unwrap_or("");
        let (status, body, headers) = match path.strip_prefix("/team/model/resolve/v1/") {
            Some(file) => {
                let whole = fs::read(folder.join(file))?;
                let range = range.unwrap_or_else(|| "0-".into());
                let (from, to) = range.split_once('-').unwrap_or(("0", ""));
                let from: usize = from.parse().unwrap_or(0);
                let to = to.parse().unwrap_or(whole.len() - 1);
                let headers = format!(
                    "etag: \"{}-1\"\r\nx-repo-commit: abc\r\ncontent-range: bytes {from}-{to}/{}\r\n",
                    file.replace('/', "-"),
                    whole.len()
                );
                ("206 Partial Content", whole[from..=to].to_vec(), headers)
            }
            None if path == "/api/models/team/model/revision/v1" => {
                ("200 OK", listing(folder)?.into_bytes(), String::new())
            }
            None => ("404 Not Found", Vec::new(), String::new()),
        };
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n")?;
        write!(stream, "connection: close\r\n{headers}\r\n")?;
        stream.write_all(&body)
    }

    fn listing(folder: &Path) -> std::io::Result<String> {
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
        Ok(format!("{{\"siblings\": [{}], \"sha\": \"abc\"}}", names.join(",")))
    }

    fn client(address: &str, cache: &Path) -> ApiBuilder {
        ApiBuilder::from_cache(Cache::new(cache.to_owned()))
            .with_endpoint(address.to_owned())
            .with_token(None)
            .with_progress(false)
    }

    #[test]
    fn fetch_uses_cached_files_without_network() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-model");
        let cache = tempdir().expect("temporary folder");
        let hub_cache = Cache::new(cache.path().to_owned());
        let address = serve(model);
        let downloaded = fetch(client(&address, cache.path()), &hub_cache, "team/model", "v1")
            .expect("model downloaded");
        let bundled = Checkpoint::tiny();
        assert_eq!(downloaded.config, bundled.config);
        assert_eq!(downloaded.tokenizer, bundled.tokenizer);
        assert_eq!(downloaded.shards[0].bytes(), bundled.shards[0].bytes());

        // No server listens on this port.
        let unreachable = "http://127.0.0.1:9";
        let again = fetch(client(unreachable, cache.path()), &hub_cache, "team/model", "v1");
        assert_eq!(again.expect("cached model").config, bundled.config);
    }

    #[test]
    fn fetch_reports_missing_file_and_missing_model() {
        let cache = tempdir().expect("temporary folder");
        let hub_cache = Cache::new(cache.path().to_owned());
        let empty = tempdir().expect("temporary folder");
        let address = serve(empty.path().to_owned());
        let error = |name, revision| {
            let fetched = fetch(client(&address, cache.path()), &hub_cache, name, revision);
            fetched.expect_err("missing on the server").to_string()
        };
        assert!(error("team/model", "v1").contains("config.json"));
        assert!(error("team/other", "v1").contains("team/other"));
    }

    #[test]
    fn fetch_downloads_gguf_files_by_name_and_by_quantisation() {
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
        let hub_cache = Cache::new(cache.path().to_owned());
        let address = serve(served.path().to_owned());
        let get = |address: &str, name: &str| {
            fetch(client(address, cache.path()), &hub_cache, &format!("team/model{name}"), "v1")
        };
        let error = |name: &str| get(&address, name).expect_err("not one file").to_string();
        // No server listens on the second port: the files are in the cache then.
        for address in [&*address, "http://127.0.0.1:9"] {
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
            (":", "no GGUF file"),
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
        assert_eq!(choose_gguf(&["m.gguf".into(), CONFIG.into()], None), Ok(None));
        assert_eq!(choose_gguf(&[], None), Ok(None));
    }
}

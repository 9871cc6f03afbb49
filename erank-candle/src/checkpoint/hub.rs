//! Checkpoints from the Hugging Face hub.

use std::collections::HashSet;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;

impl Checkpoint {
    /// Opens a model of the Hugging Face hub, such as `Alibaba-NLP/ERank-4B`.
    ///
    /// `revision` is a branch, a tag or a commit; `None` is `main`. Files that the hub's local cache
    /// lacks are downloaded into it, with a progress bar on standard error. Cached files are used
    /// without a network. The environment variables `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` and the
    /// token that the hub's login command saved have their usual meaning.
    ///
    /// # Errors
    /// Returns [`LoadError::Hub`] with the file that cannot be downloaded, and the errors of
    /// [`open`](Self::open).
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
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let cache = cache.repo(repo.clone());
    let client = client.build().map_err(|error| hub_error("any file", error))?.repo(repo);

    // If the hub cannot be reached, use the files in the cache.
    let listed: Option<HashSet<String>> = match client.info() {
        Ok(listing) => Some(listing.siblings.into_iter().map(|file| file.rfilename).collect()),
        Err(_) if cache.get("config.json").is_some() => None,
        Err(error) => return Err(hub_error("the list of files", error)),
    };
    let exists = |file: &str| match &listed {
        Some(names) => names.contains(file),
        None => cache.get(file).is_some(),
    };
    Checkpoint::from_source(name, &mut |file| match exists(file) {
        true => client.get(file).map_err(|error| hub_error(file, error)),
        // This path does not exist, so the file is reported as missing if it is required.
        false => Ok(format!("{name}@{revision}/{file}").into()),
    })
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
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
                    "etag: \"{file}-1\"\r\nx-repo-commit: abc\r\ncontent-range: bytes {from}-{to}/{}\r\n",
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
            names.push(format!("{{\"rfilename\": {:?}}}", file?.file_name().to_string_lossy()));
        }
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
}

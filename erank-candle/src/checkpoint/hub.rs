//! Checkpoints from the model hub.

use std::collections::HashSet;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;

impl Checkpoint {
    /// Gets a model by its name on the hub, such as `Alibaba-NLP/ERank-4B`; `revision` is a branch,
    /// tag or commit, `main` if none is given.
    ///
    /// Files that are not in the hub's usual cache yet are downloaded to it, with a progress bar on
    /// standard error. The usual environment variables (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`) and the
    /// token that was saved by logging in are respected. Without a network, files that are in the
    /// cache suffice.
    ///
    /// # Errors
    /// [`LoadError::Hub`] names the file that could not be had.
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
    let fail = |file: &str, source: ApiError| LoadError::Hub {
        model: name.to_owned(),
        file: file.to_owned(),
        source: source.into(),
    };
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let cache = cache.repo(repo.clone());
    let client = client.build().map_err(|error| fail("any file", error))?.repo(repo);

    // Without a network, what was downloaded before is all there is.
    let listed: Option<HashSet<String>> = match client.info() {
        Ok(listing) => Some(listing.siblings.into_iter().map(|file| file.rfilename).collect()),
        Err(_) if cache.get("config.json").is_some() => None,
        Err(error) => return Err(fail("the list of files", error)),
    };
    let is_there = |file: &str| match &listed {
        Some(names) => names.contains(file),
        None => cache.get(file).is_some(),
    };
    Checkpoint::from_source(name, &mut |file| match is_there(file) {
        true => client.get(file).map_err(|error| fail(file, error)),
        // A path where nothing is: the file is missing, as it may be in a folder.
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

    /// Serves a folder as the hub serves a model; gives the server's address.
    fn serve(folder: PathBuf) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        // Far more requests than a test makes; the thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().take(100) {
                answer(stream.expect("a connection"), &folder).expect("an answer");
            }
        });
        address
    }

    fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
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
    fn a_model_is_downloaded_once_and_then_needs_no_network() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-model");
        let cache = tempdir().expect("a folder");
        let hub_cache = Cache::new(cache.path().to_owned());
        let address = serve(model);
        let downloaded = fetch(client(&address, cache.path()), &hub_cache, "team/model", "v1")
            .expect("the model");
        let bundled = Checkpoint::tiny();
        assert_eq!(downloaded.config, bundled.config);
        assert_eq!(downloaded.tokenizer, bundled.tokenizer);
        assert_eq!(downloaded.shards[0].bytes(), bundled.shards[0].bytes());

        // Nobody listens here.
        let nowhere = "http://127.0.0.1:9";
        let again = fetch(client(nowhere, cache.path()), &hub_cache, "team/model", "v1");
        assert_eq!(again.expect("the cached model").config, bundled.config);
    }

    #[test]
    fn what_the_hub_does_not_have_is_named() {
        let cache = tempdir().expect("a folder");
        let hub_cache = Cache::new(cache.path().to_owned());
        let empty = tempdir().expect("a folder");
        let address = serve(empty.path().to_owned());
        let error = |name, revision| {
            let fetched = fetch(client(&address, cache.path()), &hub_cache, name, revision);
            fetched.expect_err("nothing is there").to_string()
        };
        assert!(error("team/model", "v1").contains("config.json"));
        assert!(error("team/other", "v1").contains("team/other"));
    }
}

//! Checkpoints from the model hub.

use std::collections::HashSet;

use hf_hub::api::sync::ApiBuilder;
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
        let fail = |file: &str, source: hf_hub::api::sync::ApiError| LoadError::Hub {
            model: name.to_owned(),
            file: file.to_owned(),
            source: source.into(),
        };
        let revision = revision.unwrap_or("main");
        let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        let cache = Cache::from_env().repo(repo.clone());
        let mut client = ApiBuilder::from_env();
        if let Ok(token) = std::env::var("HF_TOKEN") {
            client = client.with_token(Some(token));
        }
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
        Self::from_source(name, &mut |file| match is_there(file) {
            true => client.get(file).map_err(|error| fail(file, error)),
            // A path where nothing is: the file is missing, as it may be in a folder.
            false => Ok(format!("{name}@{revision}/{file}").into()),
        })
    }
}

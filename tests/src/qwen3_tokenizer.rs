//! Qwen3's tokenizer, which is not in the repository.

use std::path::{Path, PathBuf};

/// Returns the folder of Qwen3's tokenizer. If there is none, prints a message and returns `None`.
///
/// `tests/fetch_qwen3_tokenizer.sh` downloads the tokenizer; the environment variable `ERANK_QWEN3_TOKENIZER` names
/// another folder.
///
/// # Panics
/// Panics if there is none and `ERANK_REQUIRE_ALL` is set.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ERANK_QWEN3_TOKENIZER").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/qwen3-tokenizer"),
        PathBuf::from,
    );
    if !folder.join("tokenizer.json").exists() {
        let missing = format!(
            "no Qwen3 tokenizer in {}; run tests/fetch_qwen3_tokenizer.sh to download it",
            folder.display()
        );
        assert!(std::env::var_os("ERANK_REQUIRE_ALL").is_none(), "{missing}");
        eprintln!("\n*** SKIPPED: {missing} ***\n");
        return None;
    }
    Some(folder)
}

//! Qwen3's tokenizer, which is not in the repository.

use std::path::{Path, PathBuf};

/// Returns the folder of Qwen3's tokenizer. Returns `None` if it is missing, with a message on standard error.
///
/// `fetch_qwen3_tokenizer.sh` downloads the tokenizer to `.cache/qwen3-tokenizer`; `ERANK_QWEN3_TOKENIZER` can name
/// another folder.
///
/// # Panics
/// Panics if the tokenizer is missing and `ERANK_REQUIRE_ALL` is set.
pub fn tokenizer_folder() -> Option<PathBuf> {
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

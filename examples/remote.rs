//! Runs ERank on one or several servers with an OpenAI-compatible API, such as vLLM or llama.cpp.
//!
//! ```sh
//! vllm serve Alibaba-NLP/ERank-4B --max-model-len 8192     # on a machine with a GPU
//! cargo run -p erank-examples --example remote -- http://gpu-1:8000
//! ```

use std::time::Duration;

use erank_core::{BackendError, Request, Reranker};
use erank_openai::{ApiKey, OpenAiBackend, OpenAiSettings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let servers: Vec<String> = std::env::args().skip(1).collect();
    if servers.is_empty() {
        return Err("give the servers' addresses, such as http://gpu-1:8000".into());
    }
    let mut settings = OpenAiSettings::default();
    settings.api_key = std::env::var("ERANK_API_KEY").ok().map(ApiKey::new);
    settings.request_timeout = Duration::from_secs(120);
    // From here on, the code is the same as with a local model.
    let backend = OpenAiBackend::new(servers, settings)?;
    let reranker = Reranker::builder(backend).max_tokens(512).build()?;

    let request = Request::new("how do bees make honey", DOCUMENTS);
    let ranking = match reranker.rerank(&request) {
        Ok(ranking) => ranking,
        // If no server is reachable any more, the documents scored until then are still returned.
        Err(error) if matches!(error.source, BackendError::Unavailable(_)) => {
            eprintln!("{}", error.source);
            *error.partial
        }
        Err(error) => return Err(error.source.into()),
    };
    for document in &ranking.documents {
        println!("{:6.3}  {}", document.score, DOCUMENTS[document.index]);
    }
    for document in &ranking.unscored {
        println!("     -  {}: {}", DOCUMENTS[document.index], document.error);
    }
    Ok(())
}

const DOCUMENTS: [&str; 3] = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
];

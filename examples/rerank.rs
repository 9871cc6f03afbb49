//! Reranks ten strings and prints them, best first.
//!
//! ```sh
//! cargo run -p erank-examples --example rerank
//! ```

use erank_candle::CandleBackend;
use erank_core::{Request, Reranker};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The bundled demonstration model. For ERank itself:
    // `CandleBackend::from_hub("Alibaba-NLP/ERank-4B", None)?`, or `open` with a folder.
    let reranker = Reranker::builder(CandleBackend::tiny()?).build()?;

    let request = Request::new(
        "how do bees make honey",
        [
            "Honey is made by bees from the nectar of flowers, which they thicken in the comb.",
            "Bees dance to tell each other where flowers are.",
            "The town of Beeston is known for its cakes.",
            "Maple syrup is boiled from the sap of trees.",
            "A hive holds one queen and thousands of workers.",
            "Wasps make paper nests from wood.",
            "Nectar becomes honey when bees fan it dry with their wings.",
            "How to make candles from beeswax.",
            "Sugar was once a luxury.",
            "Do bears like honey?",
        ],
    );
    let ranking = reranker.rerank(&request)?;

    for document in &ranking.documents {
        let text = &request.documents[document.index].text;
        println!("{:6.3}  {:2}  {text}", document.score, document.answer.integer);
    }
    // A document without an answer has an error instead of a score.
    for document in &ranking.unscored {
        println!("     -   -  document {}: {}", document.index, document.error);
    }
    Ok(())
}

//! Compares how much the model thinks: about every document, not at all, about the best documents only,
//! or several times about each.
//!
//! ```sh
//! cargo run -p erank-examples --example thinking
//! ```

use erank_candle::CandleBackend;
use erank_core::{Cascade, Request, Reranker, RerankerBuilder, Sampling, ScoreKind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = CandleBackend::tiny()?;
    type Choose<'a> = fn(RerankerBuilder<&'a CandleBackend>) -> RerankerBuilder<&'a CandleBackend>;
    let choices: [(&str, Choose<'_>); 5] = [
        // Greedy decoding, as ERank's authors do. A thought ends after 4,096 tokens; then the answer is
        // forced.
        ("about each", |builder| builder),
        ("briefly", |builder| builder.max_tokens(4)),
        // One pass over the prompt, without a thought.
        ("not at all", |builder| builder.answer_only()),
        // Answers without a thought for all documents, then a thought about the best two.
        // `Cascade::uncertain` selects the documents whose answer distributions overlap instead.
        ("about the best", |builder| builder.cascade(Cascade::best(2))),
        // The mean score of five sampled thoughts, and its standard deviation.
        ("five times", |builder| builder.sampling(Sampling::with_temperature(0.8)).samples(5)),
    ];

    println!("{:<15} {:>6}  best to worst, with score ± standard deviation", "", "tokens");
    for (name, choose) in choices {
        // Without a thought, the expected value is a finer score than the most probable integer.
        let builder = Reranker::builder(&backend).score(ScoreKind::ExpectedValue);
        let reranker = choose(builder).build()?;
        let ranking = reranker.rerank(&Request::new("how do bees make honey", DOCUMENTS))?;
        print!("{name:<15} {:>6} ", ranking.tokens.generated);
        for document in &ranking.documents {
            let word = DOCUMENTS[document.index].split(' ').next().unwrap_or_default();
            let thought = if document.mode.is_reason() { "" } else { "*" };
            print!(" {word}{thought} {:.2} ± {:.2},", document.score, document.std_dev);
        }
        println!();
    }
    println!("* answered without a thought");
    Ok(())
}

const DOCUMENTS: [&str; 4] = [
    "Beeston is a town that is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Syrup of maple is boiled from the sap of trees.",
    "Bears like honey, but how do they find it?",
];

//! Ranks with two models: a small one scores every document, and a large one thinks about the best of them. Prints
//! what this costs, beside each model alone.
//!
//! ```sh
//! cargo run -p erank-examples --example cascade         # the bundled model in both places
//! cargo run --release -p erank-examples --example cascade -- models/Qwen3-Reranker-0.6B models/ERank-4B
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use erank_candle::{CandleBackend, CandleSettings, Checkpoint};
use erank_core::{Cascade, FirstPass, PromptTemplate, Request, Reranker};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ((small, small_template), (large, large_template)) = match arguments.as_slice() {
        [] => {
            let tiny = Arc::new(CandleBackend::tiny()?);
            ((Arc::clone(&tiny), PromptTemplate::erank()), (tiny, PromptTemplate::erank()))
        }
        [small, large] => (load(small)?, load(large)?),
        _ => return Err("give two models: SMALL LARGE".into()),
    };
    // Each model gets its own prompt, and the scores of two models are not comparable: the documents that the large
    // model thought about come first, and the others follow in the order of the small model.
    let first_pass = FirstPass::new(Arc::clone(&small), small_template.clone());
    let small = Reranker::builder(small).template(small_template);
    let large = || Reranker::builder(Arc::clone(&large)).template(large_template.clone());
    let rerankers = [
        ("small, no thoughts", small.answer_only().build()?),
        ("large, all thoughts", large().build()?),
        ("cascade, best three", large().cascade(Cascade::best(3)).first_pass(first_pass).build()?),
    ];

    println!("{:<20} thoughts  generated  seconds  best three", "");
    for (name, reranker) in rerankers {
        let begin = Instant::now();
        let ranking = reranker.rerank(&Request::new("how do bees make honey", DOCUMENTS))?;
        let seconds = begin.elapsed().as_secs_f64();
        let thoughts =
            ranking.documents.iter().filter(|document| document.mode.is_reason()).count();
        let best = ranking.documents.iter().take(3).map(|document| DOCUMENTS[document.index]);
        let best: Vec<&str> = best.filter_map(|text| text.split(' ').next()).collect();
        let (generated, best) = (ranking.tokens.generated, best.join(", "));
        println!("{name:<20} {thoughts:>8}  {generated:>9}  {seconds:>7.2}  {best}");
    }
    Ok(())
}

/// Loads a model and the prompt that it was trained with.
fn load(folder: &str) -> Result<(Arc<CandleBackend>, PromptTemplate), Box<dyn Error>> {
    let checkpoint = Checkpoint::open(folder)?;
    let template = checkpoint.recognise_prompt()?.family.template();
    Ok((Arc::new(CandleBackend::load(&checkpoint, &CandleSettings::default())?), template))
}

const DOCUMENTS: [&str; 10] = [
    "Beeston is a town that is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Syrup of maple is boiled from the sap of trees.",
    "Bears like honey, but how do they find it?",
    "Honey is made by bees from the nectar of flowers.",
    "Wasps build nests of paper.",
    "The price of honey rose again this year.",
    "A hive holds up to sixty thousand bees.",
    "How to make bread without yeast.",
    "Bees collect nectar, and the hive makes honey from it.",
];

//! Replaces the instruction in ERank's prompt, and then the prompt.
//!
//! ```sh
//! cargo run -p erank-examples --example prompt
//! ```

use erank_candle::CandleBackend;
use erank_core::prompt::instructions;
use erank_core::{AnswerFormat, PromptTemplate, Request, Reranker, ScoreKind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = CandleBackend::tiny()?;
    let request = Request::new("how do bees make honey", DOCUMENTS);

    // The instruction defines what "relevant" means. The module `instructions` holds those that ERank was
    // evaluated with. A request may have one of its own. Like the query, it is data: control tokens in it are
    // plain text.
    let reranker = Reranker::builder(&backend).instruction(instructions::BRIGHT).build()?;
    let own = "A document is relevant if it says how honey is made, not merely that it is liked.";
    for request in [request.clone(), request.clone().with_instruction(own)] {
        let best = &reranker.rerank(&request)?.documents[0];
        println!("{:.2}  {}", best.score, DOCUMENTS[best.index]);
    }

    // A custom prompt with the scale 0 to 3; `AnswerFormat` has one of yes and no as well. The text before
    // `{doc}` is computed once for all documents. A model answers best with the prompt that it was
    // trained on. If an answer is not on the scale, its document is unscored.
    let template = PromptTemplate::custom(
        "How well does the document answer the query?\nQuery: {query}\nDocument: {doc}\n\
         Answer as <think>your thoughts</think><answer>0, 1, 2 or 3</answer>.",
        AnswerFormat::zero_to_three(),
    )?;
    let reranker = Reranker::builder(&backend)
        .template(template)
        .answer_only()
        .score(ScoreKind::ExpectedValue)
        .build()?;
    let ranking = reranker.rerank(&request)?;
    for document in ranking.documents {
        println!("{:.2} of 3  {}", document.score, DOCUMENTS[document.index]);
    }
    for document in ranking.unscored {
        println!("{}  {}", document.error, DOCUMENTS[document.index]);
    }
    Ok(())
}

const DOCUMENTS: [&str; 3] = [
    "Do bears like honey?",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
];

//! A backend without a model. It counts the query's words in a document. `docs/backends.md` explains the code.

use erank_core::{AnswerDistribution, Request, Reranker, ScoreKind, ScoringBackend};
use erank_core::{BackendError, Completion, DocumentError, Job, Sink};

pub(crate) struct Words;

impl ScoringBackend for Words {
    fn name(&self) -> &str {
        "words"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        if job.options.samples > 1 || !job.options.sampling.is_greedy() {
            return Err(BackendError::Unsupported("words are counted, not sampled".into()));
        }
        for (index, document) in job.documents.iter().enumerate() {
            sink.completed(index, judge(job, document));
        }
        Ok(())
    }
}

fn judge(job: &Job<'_>, document: &str) -> Result<Completion, DocumentError> {
    if job.cancellation.is_cancelled() {
        return Err(DocumentError::Cancelled);
    }
    let (query, query_cut) = words(job.prompt.query(), job.options.max_query_tokens);
    let (document, document_cut) = words(document, job.options.max_document_tokens);
    let found = query.iter().filter(|word| document.contains(word)).count();
    let labels: Vec<&str> = job.prompt.answers().answers().map(|(label, _)| label).collect();
    let expected = (labels.len() - 1) as f64 * found as f64 / query.len().max(1) as f64;
    // An expected value of 6.3 is the answer 6 with probability 0.7 and 7 with probability 0.3.
    let probability = |answer: usize| (1.0 - (answer as f64 - expected).abs()).max(0.0);
    let answers = AnswerDistribution::new((0..labels.len()).map(|n| probability(n).ln()))?;
    let best = answers.most_probable();
    let mut completion = Completion::new(format!("<think>{found} words</think><answer>"));
    completion.push(labels[best], answers.log_probs()[best] as f32);
    completion.push("</answer>", 0.0);
    completion.answer_distribution = Some(answers);
    (completion.query_truncated, completion.document_truncated) = (query_cut, document_cut);
    Ok(completion)
}

/// Returns the first `limit` words of a text in lower case, and whether more words follow.
fn words(text: &str, limit: usize) -> (Vec<String>, bool) {
    let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let first = words.by_ref().take(limit).map(str::to_lowercase).collect();
    (first, words.next().is_some())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reranker = Reranker::builder(Words).score(ScoreKind::ExpectedValue).build()?;
    let request = Request::new("how bees make honey", ["Do bears like honey?", "Bees make honey."]);
    for document in reranker.rerank(&request)?.documents {
        println!("{:5.2}  {}", document.score, request.documents[document.index].text);
    }
    Ok(())
}

//! `erank inspect`: shows a model's cost, a prompt with its tokens and the most probable next tokens, and a verdict on
//! the model. Or it compares two models, or a device with the CPU.

mod compare;
mod cost;
mod self_test;
mod verdict;

use std::io::{self, BufWriter, Read, Write};

use erank_candle::{CandleBackend, Config, PromptTokenizer, TokenLogProb};
use erank_core::{BackendError, PromptTemplate, tags};
use serde::Serialize;

use crate::args::InspectArguments;
use crate::error::{CommandError, Exit};
use crate::{model, text};
use cost::ModelReport;
use verdict::Verdict;

pub(crate) fn run(arguments: &InspectArguments) -> Result<Exit, CommandError> {
    if arguments.self_test {
        return self_test::run(arguments);
    }
    if let Some(reference) = &arguments.compare {
        return compare::run(arguments, reference);
    }
    let given_ids = arguments.ids.as_deref().map(read_ids).transpose()?;
    let given = &arguments.model.model;
    let checkpoint = model::checkpoint(given, arguments.model.offline)?;
    let settings = model::settings(&arguments.model);
    let cost = checkpoint.cost(&settings).map_err(model::failed(given))?;
    let report = ModelReport::new(&checkpoint, &cost);
    let config = checkpoint.config().map_err(model::failed(given))?;
    let tokenizer = checkpoint.tokenizer().map_err(model::failed(given))?;
    let verdict = Verdict::new(given, &checkpoint, &config, &tokenizer, &settings, &cost)?;
    let prompt = match given_ids {
        Some(ids) => Prompt { ids, ..Prompt::default() },
        None => {
            let template = model::family(&arguments.model, &checkpoint)?.template();
            Prompt::rendered(&tokenizer, &config, &template, arguments)?
        }
    };
    let vocab_size = config.vocab_size;
    if let Some(&id) = prompt.ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(CommandError::UnknownTokenId { id, vocab_size });
    }
    // The weights are loaded only if they are needed, so that the cost of any model can be shown.
    let next = match arguments.logprobs {
        Some(k) => CandleBackend::load(&checkpoint, &settings)
            .map_err(model::failed(given))?
            .most_probable(&prompt.ids, k.get())?,
        None => Vec::new(),
    };

    let findings = Findings::new(report, verdict, &tokenizer, vocab_size, prompt, &next);
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.json {
        let json = serde_json::to_string(&findings).map_err(io::Error::from)?;
        writeln!(out, "{}", text::json(&json))?;
    } else {
        findings.write_text(&mut out)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Reads token ids from the command line, or from standard input if `given` is `-`.
///
/// The ids are separated by commas or white space, or form a JSON array.
fn read_ids(given: &str) -> Result<Vec<u32>, CommandError> {
    let mut list = given.to_owned();
    if given == "-" {
        list.clear();
        io::stdin().read_to_string(&mut list).map_err(|source| CommandError::Read {
            what: "the token ids from standard input".into(),
            source,
        })?;
    }
    let pieces = list.split(|c: char| c.is_whitespace() || ",[]".contains(c));
    let pieces = pieces.filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| {
            piece.parse().map_err(|_| CommandError::NoTokenId { piece: text::beginning(piece) })
        })
        .collect()
}

/// The prompt as the model reads it.
#[derive(Default)]
struct Prompt {
    text: Option<String>,
    ids: Vec<u32>,
    query_truncated: bool,
    document_truncated: bool,
}

impl Prompt {
    /// Renders and tokenizes the prompt that ranking uses.
    fn rendered(
        tokenizer: &PromptTokenizer,
        config: &Config,
        template: &PromptTemplate,
        arguments: &InspectArguments,
    ) -> Result<Self, CommandError> {
        let bound = template.bind(arguments.goal.instruction(template), arguments.query());
        let limits = model::limits(&arguments.model, config);
        let frame = tokenizer.bind(&bound, &limits).map_err(BackendError::from)?;
        let mut text = frame.text(arguments.document())?;
        let encoded = frame.encode(arguments.document())?;
        let mut ids = encoded.ids;

        let prefix = match frame.opens_thought() {
            true => bound.answers().forced_answer_prefix(tags::THINK_OPEN),
            false => bound.answers().answer_only_prefix(),
        };
        let prefix = arguments.answer_only.then_some(prefix);
        if let Some(more) = arguments.append.as_deref().or(prefix) {
            ids.extend(tokenizer.encode_trusted(more).map_err(BackendError::from)?);
            text.push_str(more);
        }
        Ok(Self {
            text: Some(text),
            ids,
            query_truncated: encoded.query_truncated,
            document_truncated: encoded.document_truncated,
        })
    }
}

/// The output. `--help` describes the JSON object.
#[derive(Serialize)]
struct Findings {
    #[serde(flatten)]
    model: ModelReport,
    vocab_size: usize,
    prompt: Option<String>,
    query_truncated: bool,
    document_truncated: bool,
    tokens: Vec<Token>,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Token {
    position: usize,
    id: u32,
    text: String,
    control: bool,
    next: Vec<Next>,
}

#[derive(Serialize)]
struct Next {
    id: u32,
    text: String,
    log_prob: f32,
}

impl Findings {
    fn new(
        model: ModelReport,
        verdict: Verdict,
        tokenizer: &PromptTokenizer,
        vocab_size: usize,
        prompt: Prompt,
        next: &[Vec<TokenLogProb>],
    ) -> Self {
        let tokens = prompt.ids.iter().enumerate().map(|(position, &id)| Token {
            position,
            id,
            text: tokenizer.token_text(id),
            control: tokenizer.is_added(id),
            next: Next::all(tokenizer, next.get(position).map_or(&[], Vec::as_slice)),
        });
        Self {
            model,
            verdict,
            vocab_size,
            tokens: tokens.collect(),
            prompt: prompt.text,
            query_truncated: prompt.query_truncated,
            document_truncated: prompt.document_truncated,
        }
    }

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        self.model.write_text(out)?;
        if let Some(prompt) = &self.prompt {
            writeln!(out, "\n--- prompt ---\n{}\n--- end ---", text::block(prompt))?;
        }
        for (what, is_truncated) in
            [("query", self.query_truncated), ("document", self.document_truncated)]
        {
            if is_truncated {
                writeln!(out, "The {what} was truncated to its limit.")?;
            }
        }
        let tokens = self.tokens.len();
        let control = self.tokens.iter().filter(|token| token.control).count();
        writeln!(out, "\n{tokens} tokens, {control} of them control tokens (marked *)")?;
        self.tokens.iter().try_for_each(|token| token.write_text(out))?;
        self.verdict.write_text(out)
    }
}

impl Token {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let mark = if self.control { '*' } else { ' ' };
        writeln!(out, "{:6} {mark}{:8}  {:?}", self.position, self.id, self.text)?;
        for Next { id, text, log_prob } in &self.next {
            let probability = log_prob.exp();
            writeln!(out, "{:>9}{probability:8.5} {log_prob:10.5}  {id:6}  {text:?}", "→")?;
        }
        Ok(())
    }
}

impl Next {
    fn all(tokenizer: &PromptTokenizer, tokens: &[TokenLogProb]) -> Vec<Self> {
        let next = |token: &TokenLogProb| Self {
            id: token.id,
            text: tokenizer.token_text(token.id),
            log_prob: token.log_prob,
        };
        tokens.iter().map(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_ids_accepts_lists_and_json_and_rejects_other_text() {
        for list in ["1,2,3", "1 2 3", "[1, 2,\n3]", " 1,\t2 3, "] {
            assert_eq!(read_ids(list).expect("ids"), [1, 2, 3], "{list}");
        }
        assert!(read_ids("").expect("ids").is_empty());
        for wrong in ["1,x", "-1", "1.5", "4294967296"] {
            assert!(read_ids(wrong).is_err(), "{wrong}");
        }
    }
}

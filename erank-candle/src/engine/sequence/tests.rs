//! Tests of a sequence with a scripted model.

use super::*;
use crate::tokenizer::tests::{END, END_THINK, THINK, tokenizer};

const PROMPT: &[u32] = &[7, 7, 7];
const VOCAB: usize = 263;

fn task(max_tokens: usize) -> JobContext {
    let tokenizer = tokenizer();
    let format = AnswerFormat::zero_to_ten();
    let labels = format.answers().map(|(label, _)| encode(label)).collect();
    let mut options = ScoringOptions::default();
    options.mode = Mode::Reason { max_tokens };
    JobContext {
        tokenizer,
        format,
        head: Head::LanguageModel,
        answers: AnswerTrie::new(labels),
        options,
        eos_token_ids: vec![END],
        thought_end_id: Some(END_THINK),
        prompt_opens_thought: false,
        wants_text: true,
        max_tokens: 1000,
    }
}

/// Encodes a text without control tokens.
fn encode(text: &str) -> Vec<u32> {
    let characters = text.chars().map(|c| tokenizer().encode_trusted(&c.to_string()));
    characters.flat_map(|ids| ids.expect("tokens")).collect()
}

/// Runs a sequence with a model that writes `said`, and that gives the answer 3 after forced text.
fn complete(task: JobContext, said: &[u32]) -> Completion {
    let prompt = tokenizer_prompt();
    let mut sequence = Sequence::new(0, 0, prompt, Arc::new(task)).expect("room");
    for _ in 0..1000 {
        let so_far = &sequence.tokens()[PROMPT.len()..];
        let next = said.strip_prefix(so_far).and_then(|rest| rest.first().copied());
        let mut logits = vec![0.0; VOCAB];
        logits[next.unwrap_or(encode("3")[0]) as usize] = 9.0;
        // The most probable answer is 3, unless the model writes another one.
        logits[encode("3")[0] as usize] += 1.0;
        if let (Some(outcome), _) = sequence.advance(&[], &logits) {
            return outcome.expect("a completion");
        }
    }
    panic!("no end");
}

fn tokenizer_prompt() -> EncodedPrompt {
    let template = erank_core::PromptTemplate::erank();
    let frame = tokenizer().bind(&template.bind("", ""), &ScoringOptions::default());
    let mut prompt = frame.expect("it renders").encode("").expect("tokens");
    prompt.ids = PROMPT.to_vec();
    prompt
}

fn integer(completion: &Completion) -> u32 {
    let answer = AnswerFormat::zero_to_ten().parse(completion, Default::default());
    answer.expect("an answer").integer
}

#[test]
fn classifier_reads_its_answer_from_the_logits_after_the_prompt() {
    let format = AnswerFormat::labels([("poor", 1), ("fair", 5), ("good", 9)]).expect("labels");
    for prompt_opens_thought in [false, true] {
        let mut task = task(0);
        task.options.mode = Mode::AnswerOnly;
        task.head = Head::Classifier;
        task.answers = AnswerTrie::new(vec![vec![0], vec![1], vec![2]]);
        task.format = format.clone();
        task.prompt_opens_thought = prompt_opens_thought;
        let mut sequence = Sequence::new(0, 0, tokenizer_prompt(), Arc::new(task)).expect("room");
        assert_eq!((sequence.pending(), sequence.draft(8)), (PROMPT, &[][..]));

        let (outcome, _) = sequence.advance(&[], &[0.0, 2.0, 1.0]);
        let completion = outcome.expect("the end").expect("a completion");
        let answer = format.parse(&completion, Default::default()).expect("an answer");
        assert_eq!((answer.integer, completion.usage.generated), (5, 0));
        let sum = 1.0 + 2f64.exp() + 1f64.exp();
        let close =
            |found: Option<f64>, expected: f64| (found.expect("known") - expected).abs() < 1e-6;
        assert!(close(answer.probability, 2f64.exp() / sum), "{answer:?}");
        let mean = (1.0 + 5.0 * 2f64.exp() + 9.0 * 1f64.exp()) / sum;
        assert!(close(answer.expected_value, mean), "{answer:?}");
    }
}

#[test]
fn thought_with_quoted_end_tag_continues() {
    let quotation = "it says </think><answer>10</answer>";
    let said = [&[THINK], &encode(quotation)[..], &[END_THINK], &encode("<answer>2")].concat();
    let completion = complete(task(100), &said);
    assert_eq!((integer(&completion), completion.finish_reason), (2, FinishReason::Answered));
    let end = completion.thought_end.expect("known");
    assert_eq!(&completion.text[..end], format!("<think>{quotation}</think>"));

    // The prompt opens the thought.
    let opened = JobContext { prompt_opens_thought: true, ..task(100) };
    assert_eq!(complete(opened, &said[1..]), completion_without_first_token(&completion));

    // The budget ends within the thought.
    let completion = complete(task(1 + encode(quotation).len()), &said);
    assert_eq!((integer(&completion), completion.finish_reason), (2, FinishReason::Forced));
    assert_eq!(completion.text, format!("<think>{quotation}</think><answer>2</answer>"));
    assert_eq!(completion.thought_end, Some(end));

    // Without a token for </think>, the first such text ends the thought.
    let by_text = JobContext { thought_end_id: None, ..task(100) };
    assert_eq!(integer(&complete(by_text, &said)), 10);
}

/// Returns the completion of a prompt that ends with `<think>`.
fn completion_without_first_token(completion: &Completion) -> Completion {
    let mut completion = completion.clone();
    completion.tokens.remove(0);
    completion.usage.generated -= 1;
    completion
}

#[test]
fn invalid_answer_is_replaced_by_the_most_probable_one() {
    for (said, expected, finish) in [
        ("<answer>7</answer>", 7, FinishReason::Answered),
        ("<answer>10</answer>", 10, FinishReason::Answered),
        ("<answer> \n7</answer>", 7, FinishReason::Answered),
        // The answer is complete before the model continues.
        ("<answer>7.5</answer>", 7, FinishReason::Answered),
        ("<answer>11</answer>", 1, FinishReason::Answered),
        ("<answer>seven</answer>", 3, FinishReason::Forced),
        ("<answer></answer>", 3, FinishReason::Forced),
        ("<answer>-1</answer>", 3, FinishReason::Forced),
    ] {
        let said = [&[THINK, END_THINK], &encode(said)[..]].concat();
        let completion = complete(task(100), &said);
        assert_eq!(
            (integer(&completion), completion.finish_reason),
            (expected, finish),
            "{said:?}"
        );
        let distribution = completion.answer_distribution.as_ref().expect("a distribution");
        assert_eq!(distribution.most_probable() as u32, expected);
    }
    // The turn ends where the answer should be, or earlier.
    for said in ["<answer>", "", "hm"] {
        let said = [&[THINK, END_THINK], &encode(said)[..], &[END]].concat();
        let completion = complete(task(100), &said);
        assert_eq!((integer(&completion), completion.finish_reason), (3, FinishReason::Forced));
    }
}

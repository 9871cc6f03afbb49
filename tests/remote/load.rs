//! How many requests get through, how much memory it takes. By hand:
//! `cargo test --release -p erank-tests --test remote -- --ignored --nocapture load`

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use erank_core::prompt::instructions;
use erank_core::{
    Completion, DocumentError, Job, ScoringBackend, ScoringOptions, Sink, TokenCounts,
};
use erank_core::{Mode, PromptTemplate};
use erank_openai::{OpenAiBackend, OpenAiSettings, Prompts};
use serde_json::json;

use crate::llama_cpp::{self, LlamaCpp};
use crate::{DOCUMENTS, QUERIES};

const MANY: usize = 10_000;
const AT_ONCE: usize = 8;

/// Counts what reaches it.
#[derive(Default)]
struct Count {
    done: Vec<usize>,
    failed: usize,
    /// Each generates one token.
    requests: usize,
}

impl Sink for Count {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        self.done[index] += 1;
        self.failed += usize::from(outcome.is_err());
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.requests += tokens.generated;
    }
}

/// The most memory that this process has had resident, in MiB.
fn most_resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? / 1024)
}

#[test]
#[ignore = "takes minutes; its figures are for docs/scaling.md"]
fn load_of_ten_thousand_documents() {
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = llama_cpp::tiny_model(&python, folder.path());
    let server = LlamaCpp::start(&python, &model, AT_ONCE, 2048);
    let documents: Vec<String> = (0..MANY)
        .map(|number| format!("{number}: {}", DOCUMENTS[number % DOCUMENTS.len()]))
        .collect();
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let template = PromptTemplate::erank();
    let prompt = template.bind(instructions::GENERIC, QUERIES[0]);

    let mut settings = OpenAiSettings::default();
    settings.prompts = Prompts::chat_ml();
    settings.max_concurrency = AT_ONCE;
    let backend = OpenAiBackend::new([server.url()], settings).expect("valid settings");
    let mut options = ScoringOptions::default();
    options.mode = Mode::AnswerOnly;
    let mut count = Count { done: vec![0; MANY], ..Count::default() };
    let before = most_resident();
    let begin = Instant::now();
    let job = Job::new(prompt, &texts).with_options(options);
    backend.score(&job, &mut count).expect("a job");
    let seconds = begin.elapsed().as_secs_f64();
    assert!(count.done.iter().all(|done| *done == 1), "each once");
    println!(
        "erank: {MANY} documents, {} without an answer, {} requests in {seconds:.1} s: {:.0} \
         requests/s; most memory {before:?} MiB before, {:?} MiB after",
        count.failed,
        count.requests,
        count.requests as f64 / seconds,
        most_resident()
    );

    // The plainest generator of the same load: one request a document, on as many connections.
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let mut stream = connect(&server);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(text) = texts.get(number) else { return };
                    let prompt = format!(
                        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<answer>",
                        prompt.render(text)
                    );
                    let body = json!({
                        "prompt": prompt, "max_tokens": 1, "logprobs": 20, "temperature": 0,
                    });
                    if !post(&mut stream, &body.to_string()) {
                        stream = connect(&server);
                    }
                }
            });
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    println!("plain: {MANY} requests in {seconds:.1} s: {:.0} requests/s", MANY as f64 / seconds);
}

fn connect(server: &LlamaCpp) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", server.port)).expect("it listens");
    stream.set_nodelay(true).expect("an open socket");
    BufReader::new(stream)
}

/// Sends a completion and reads the reply to its end; false if the connection cannot go on.
fn post(stream: &mut BufReader<TcpStream>, body: &str) -> bool {
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(request.as_bytes()).expect("it reads");
    let (mut length, mut goes_on) = (0, true);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("it replies");
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a number"),
            Some(("connection", "close")) => goes_on = false,
            None if line.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole body");
    goes_on
}

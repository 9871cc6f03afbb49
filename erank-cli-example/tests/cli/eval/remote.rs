//! Evaluation with a remote model, on a mock server that imitates llama.cpp.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::Collection;

/// A server whose model answers with a number that depends on the length of the prompt.
struct Server {
    url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Number of documents with reasoning.
    thoughts: AtomicUsize,
    /// Whether documents about wasps are rejected.
    rejects_wasps: AtomicBool,
    /// Whether all requests are rejected.
    is_down: AtomicBool,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        // The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(&state, stream));
            }
        });
        Self { url, state }
    }
}

fn serve(state: &State, mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut lines = (&mut reader).lines().map_while(Result::ok);
        let route = lines.next()?.split(' ').nth(1)?.to_owned();
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let length = head.iter().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let (status, reply) =
            reply(state, &route, &serde_json::from_slice(&body).unwrap_or(Value::Null));
        let reply = reply.to_string();
        let length = reply.len();
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &reply).as_bytes()).ok()?;
    }
}

fn reply(state: &State, route: &str, body: &Value) -> (u16, Value) {
    const ASSISTANT: &str = "<|im_start|>assistant\n";
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 3});
    let completion = |choice: Value| {
        let verbose = json!({"stop_type": "word"});
        (200, json!({"choices": [choice], "usage": usage, "__verbose": verbose}))
    };
    let prompt = body["prompt"].as_str().unwrap_or_default();
    match route {
        _ if state.is_down.load(Ordering::SeqCst) => (401, json!({"error": {"message": "no"}})),
        "/v1/models" => (
            200,
            json!({"data": [{"id": "erank", "owned_by": "llamacpp", "meta": {"n_ctx": 9999}}]}),
        ),
        "/apply-template" => {
            let message = body["messages"][0]["content"].as_str().unwrap_or_default();
            let prompt = format!("<|im_start|>user\n{message}<|im_end|>\n{ASSISTANT}");
            (200, json!({ "prompt": prompt }))
        }
        "/v1/completions" if body["logprobs"].is_u64() => {
            let digit = (2 + prompt.len() % 8).to_string();
            let entry = json!({"token": digit, "logprob": 0.75f64.ln()});
            let alternatives = json!([entry, {"token": " ", "logprob": 0.125f64.ln()}]);
            let mut first = entry.clone();
            first["top_logprobs"] = alternatives;
            let log_probs = json!({ "content": [first] });
            completion(json!({"text": digit, "finish_reason": "length", "logprobs": log_probs}))
        }
        "/v1/completions" => {
            // The shared prefix of the prompts is sent first, without an assistant turn.
            if prompt.contains(ASSISTANT) {
                if prompt.contains("Wasps") && state.rejects_wasps.load(Ordering::SeqCst) {
                    return (400, json!({"error": {"message": "no wasps, please"}}));
                }
                state.thoughts.fetch_add(1, Ordering::SeqCst);
            }
            completion(json!({"text": "<think>so</think>\n", "finish_reason": "stop"}))
        }
        _ => (404, json!({})),
    }
}

#[test]
fn eval_retries_failed_documents_of_a_remote_model() {
    let collection = Collection::new();
    let server = Server::start();
    let thoughts = || server.state.thoughts.load(Ordering::SeqCst);
    let eval = || {
        collection.eval(
            "trec",
            "out",
            &format!("--backend openai --url {} --model erank", server.url),
        )
    };
    server.state.rejects_wasps.store(true, Ordering::SeqCst);
    let run = eval();
    assert_eq!(run.code, Some(3), "{run:?}");
    assert_eq!(thoughts(), 47);
    assert!(run.err.contains("query bees, document bees-8: "), "{}", run.err);
    assert!(run.err.contains("no wasps, please"), "{}", run.err);
    assert_eq!(collection.report("out")["counts"]["unscored"], 1);
    assert_eq!(collection.ranking("out/reranked.run", "bees")[7], "bees-8");

    server.state.rejects_wasps.store(false, Ordering::SeqCst);
    let run = eval();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(thoughts(), 48);
    let report = collection.report("out");
    assert_eq!(report["settings"]["backend"], "openai");
    assert_eq!(report["settings"]["model"], "erank");
    assert_eq!(report["tokens"]["prompt"], 48 * 100);
    let again = eval();
    assert_eq!((again.code, thoughts()), (Some(0), 48));
    assert_eq!(again.out, run.out);
}

#[test]
fn eval_fails_if_the_server_rejects_all_requests() {
    let collection = Collection::new();
    let server = Server::start();
    server.state.is_down.store(true, Ordering::SeqCst);
    let run = collection.eval("jsonl", "out", &format!("--backend openai --url {}", server.url));
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{run:?}");
    assert!(run.err.contains("The same command resumes from there"), "{}", run.err);
    server.state.is_down.store(false, Ordering::SeqCst);
    let run = collection.eval("jsonl", "out", &format!("--backend openai --url {}", server.url));
    assert_eq!(run.code, Some(0), "{run:?}");
}

//! The `erank` command: reranks search results with ERank, a reasoning language model, in this process
//! or on your servers.
//!
//! The command is also an example of how to use the library. `erank rerank` passes through these modules:
//!
//! ```text
//! args ─▶ input: lines → documents, bad lines ─▶ model: a backend ─▶ rerank ─▶ report: table or JSON
//! ```
//!
//! Each subcommand has a file of its own:
//!
//! | file | command |
//! |---|---|
//! | [`demo`] | no subcommand: reranks a few queries with the bundled model |
//! | [`rerank`] | ranks documents by their relevance to a query |
//! | `search` | selects documents with BM25, and reranks them |
//! | [`eval`] | reranks a judged run, and measures the gain |
//! | [`inspect`] | shows a model's cost and a prompt's tokens, or compares two models |
//! | [`quantize`] | writes a model as a GGUF file |
//! | `serve` | serves reranking over HTTP |
//!
//! Documents and model folders are untrusted. Text from them is printed through [`text`], which escapes
//! control characters.

mod args;
mod calibration;
mod demo;
mod error;
mod eval;
mod help;
mod inspect;
mod interrupt;
mod model;
mod progress;
mod quantize;
mod report;
mod rerank;
#[cfg(feature = "search")]
mod search;
#[cfg(feature = "serve")]
mod serve;
mod table;

use std::process::ExitCode;

use clap::Parser;
use erank_cli_example::{input, text};

use args::{Arguments, Command};
use error::{CommandError, Exit};
use interrupt::Interrupt;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(exit) => exit.into(),
        Err(error) => error.report().into(),
    }
}

fn run(arguments: &Arguments) -> Result<Exit, CommandError> {
    // `serve` handles Ctrl-C itself, and `inspect` and `quantize` end at once, so the other commands install the handler.
    let interrupt = Interrupt::install;
    match &arguments.command {
        None => demo::run(&interrupt()),
        Some(Command::Rerank(arguments)) => rerank::run(arguments, &interrupt()),
        #[cfg(feature = "search")]
        Some(Command::Search(arguments)) => search::run(arguments, &interrupt()),
        Some(Command::Eval(arguments)) => eval::run(arguments, &interrupt()),
        Some(Command::Inspect(arguments)) => inspect::run(arguments),
        Some(Command::Quantize(arguments)) => quantize::run(arguments),
        #[cfg(feature = "serve")]
        Some(Command::Serve(arguments)) => serve::run(arguments),
    }
}

//! The `erank` command: reranks documents with ERank, a reasoning language model, in this process or
//! on your servers.
//!
//! It is also an example of how the library is used. The path of a `rerank` through the modules:
//!
//! ```text
//! args ─▶ input: lines → documents + bad lines ─▶ model: a backend ─▶ rerank ─▶ report: table or JSON
//! ```
//!
//! `search` finds the documents first, with BM25; `eval` reranks a judged run and measures what it
//! gains; `demo` runs the built-in demonstration, and `inspect` shows prompts, tokens and
//! probabilities.
//! What a person sees on a terminal goes through [`text`]: documents and model folders are untrusted.

mod args;
mod demo;
mod error;
mod eval;
mod input;
mod inspect;
mod interrupt;
mod model;
mod progress;
mod report;
mod rerank;
#[cfg(feature = "search")]
mod search;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;

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
    let interrupt = Interrupt::install();
    match &arguments.command {
        None => demo::run(&interrupt),
        Some(Command::Rerank(arguments)) => rerank::run(arguments, &interrupt),
        #[cfg(feature = "search")]
        Some(Command::Search(arguments)) => search::run(arguments, &interrupt),
        Some(Command::Eval(arguments)) => eval::run(arguments, &interrupt),
        Some(Command::Inspect(arguments)) => inspect::run(arguments),
    }
}

//! `erank quantize`: writes a model as a GGUF file in a chosen format.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::QuantizeArguments;
use crate::error::{CommandError, Exit};
use crate::{model, text};

pub(crate) fn run(arguments: &QuantizeArguments) -> Result<Exit, CommandError> {
    let QuantizeArguments { model, offline, to, out } = arguments;
    if out.exists() {
        return Err(CommandError::OutputExists { path: out.clone() });
    }
    let checkpoint = model::checkpoint(model, *offline)?;
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} tensors") {
        bar.set_style(style);
    }
    let progress = &mut |done: usize, tensors: usize| {
        bar.set_length(tensors as u64);
        bar.set_position(done as u64);
    };
    let written = checkpoint.write_gguf(out, *to, progress);
    bar.finish_and_clear();
    let summary =
        written.map_err(|source| CommandError::Quantize { given: text::line(model), source })?;

    let name = text::line(&out.display().to_string());
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{name}: {:.1} MB, {to} weights", summary.bytes as f64 / 1e6)?;
    for (tensor, format) in &summary.other_formats {
        writeln!(stdout, "  {tensor} is {format}: its rows are not whole blocks of {to}")?;
    }
    if !summary.has_tokenizer {
        writeln!(
            stdout,
            "  The tokenizer does not fit into a GGUF file. Put tokenizer.json and tokenizer_config.json of the \
             model beside the file."
        )?;
    }
    Ok(Exit::Done)
}

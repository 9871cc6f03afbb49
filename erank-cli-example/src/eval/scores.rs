//! The file of scores, in JSON lines. Each score is appended as soon as it is known. The next run of the
//! command reads the file.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use erank_core::{Answer, FinishReason, ScoreKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::EvalError;
use crate::input;
use crate::text;

/// The settings that scores depend on. They are the file's first line.
#[derive(Serialize)]
pub(super) struct Settings<'a> {
    /// The version of the file format.
    pub(super) erank_eval: u32,
    pub(super) model: &'a str,
    /// [`erank_candle::Checkpoint::fingerprint`]. It is null if the model is remote.
    pub(super) fingerprint: Option<u32>,
    pub(super) backend: &'static str,
    /// The format of the weights in memory, and the instruction set or the device, on which the last bits of the
    /// scores depend. It is null if the model is remote.
    pub(super) description: Option<&'a str>,
    /// The form of the prompts for a remote model.
    pub(super) prompts: Option<&'static str>,
    /// Whether the backend gave log-probabilities.
    pub(super) logprobs: bool,
    /// The format of the weights. It is null if the checkpoint's own format is used.
    pub(super) weights: Option<&'static str>,
    /// The format of the KV cache. It is null if the default format is used.
    pub(super) kv_cache: Option<&'static str>,
    /// The name of the prompt.
    pub(super) template: &'static str,
    /// The instruction of queries that have none of their own.
    pub(super) instruction: &'a str,
    /// The limit for reasoning. It is null if answers are without reasoning.
    pub(super) max_tokens: Option<usize>,
    pub(super) max_query_tokens: usize,
    pub(super) max_document_tokens: usize,
    pub(super) max_prompt_tokens: Option<usize>,
}

impl Settings<'_> {
    /// Returns the fields as JSON.
    pub(super) fn fields(&self) -> serde_json::Result<Map<String, Value>> {
        serde_json::from_value(serde_json::to_value(self)?)
    }
}

/// The line of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) query: String,
    pub(super) document: String,
    /// The CRC-32 of the texts and the query's own instruction.
    pub(super) texts_crc32: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// The answer of the model, or a permanent error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Answered(Score),
    Failed { error: String },
}

/// An answer with its scores and token counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) integer: u32,
    probability_weighted: Option<f64>,
    expected_value: Option<f64>,
    finish_reason: Finish,
    truncated: bool,
    pub(super) prompt_tokens: usize,
    pub(super) generated_tokens: usize,
    reasoning: String,
}

/// The [`FinishReason`] in the file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Finish {
    Answered,
    EndOfTurn,
    Forced,
    Other,
}

impl Score {
    /// Returns the line's part for an answer.
    pub(super) fn new(answer: Answer, completion: &erank_core::Completion) -> Self {
        Self {
            integer: answer.integer,
            probability_weighted: answer.probability_weighted(),
            expected_value: answer.expected_value,
            finish_reason: match completion.finish_reason {
                FinishReason::Answered => Finish::Answered,
                FinishReason::EndOfTurn => Finish::EndOfTurn,
                FinishReason::Forced => Finish::Forced,
                _ => Finish::Other,
            },
            truncated: completion.query_truncated || completion.document_truncated,
            prompt_tokens: completion.usage.prompt,
            generated_tokens: completion.usage.generated,
            reasoning: answer.reasoning,
        }
    }

    /// Returns the score of this kind, or `None` if the backend gave no log-probabilities for it.
    pub(super) fn value(&self, kind: ScoreKind) -> Option<f64> {
        match kind {
            ScoreKind::ProbabilityWeighted => self.probability_weighted,
            ScoreKind::ExpectedValue => self.expected_value,
            _ => Some(f64::from(self.integer)),
        }
    }

    /// Returns whether the answer was forced.
    pub(super) fn is_forced(&self) -> bool {
        self.finish_reason == Finish::Forced
    }

    /// Returns whether query or document was truncated.
    pub(super) fn is_truncated(&self) -> bool {
        self.truncated
    }
}

/// The open file and its entries.
pub(super) struct ScoreFile {
    path: PathBuf,
    file: File,
    /// The entries by query, then by document.
    entries: HashMap<String, HashMap<String, Entry>>,
}

impl ScoreFile {
    /// Opens or creates the file. An incomplete last line, left by a killed process, is dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if the scores were made with other settings, if another process is writing the file,
    /// or if a line is invalid.
    pub(super) fn open(path: &Path, settings: &Settings<'_>) -> Result<Self, EvalError> {
        let problem = |error: io::Error| EvalError::file(path, error.to_string());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(problem)?;
        // Other errors are ignored, because some file systems have no locks.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(EvalError::InUse { file: text::path(path) });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(problem)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(problem)?;
            bytes.truncate(whole);
        }
        let mut scores = Self { path: path.to_owned(), file, entries: HashMap::new() };
        let header = serde_json::to_value(settings).map_err(io::Error::from).map_err(problem)?;
        if bytes.is_empty() {
            scores.write(&header).map_err(problem)?;
        } else {
            scores.read(&bytes, &header)?;
        }
        Ok(scores)
    }

    /// Reads the lines of an existing file.
    fn read(&mut self, bytes: &[u8], header: &Value) -> Result<(), EvalError> {
        let mut lines = input::Lines::of(bytes);
        let first = lines.next().and_then(Result::ok).and_then(|line| line.text().ok());
        let found: Map<String, Value> = first
            .and_then(|line| serde_json::from_str(&line).ok())
            .filter(|found: &Map<String, Value>| found.contains_key("erank_eval"))
            .ok_or_else(|| EvalError::NoScores { file: text::path(&self.path) })?;
        let differences = differences(&found, header);
        if !differences.is_empty() {
            return Err(EvalError::OtherScores { file: text::path(&self.path), differences });
        }
        let path = self.path.clone();
        for entry in entries(&path, lines) {
            self.keep(entry?);
        }
        Ok(())
    }

    /// Reads the reasoning of the documents in `wanted`, pairs of query and document, from the file.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read.
    pub(super) fn reasoning(
        &self,
        wanted: &HashSet<(&str, &str)>,
    ) -> Result<HashMap<String, HashMap<String, String>>, EvalError> {
        let mut found: HashMap<String, HashMap<String, String>> = HashMap::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| EvalError::file(&self.path, error.to_string()))?;
        let mut lines = input::Lines::of(BufReader::new(file));
        // The first line holds the settings.
        lines.next();
        for entry in entries(&self.path, lines) {
            let entry = entry?;
            if let Outcome::Answered(score) = entry.outcome
                && wanted.contains(&(entry.query.as_str(), entry.document.as_str()))
            {
                found.entry(entry.query).or_default().insert(entry.document, score.reasoning);
            }
        }
        Ok(found)
    }

    /// Returns the outcome for these texts, if known.
    pub(super) fn get(&self, query: &str, document: &str, texts_crc32: u32) -> Option<&Outcome> {
        let entry = self.entries.get(query)?.get(document)?;
        (entry.texts_crc32 == texts_crc32).then_some(&entry.outcome)
    }

    /// Adds an entry, and writes it immediately.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), EvalError> {
        self.write(&entry).map_err(|error| EvalError::file(&self.path, error.to_string()))?;
        self.keep(entry);
        Ok(())
    }

    /// Adds an entry to the memory.
    fn keep(&mut self, mut entry: Entry) {
        if let Outcome::Answered(score) = &mut entry.outcome {
            // Only the file keeps the reasoning, because that of a large collection would fill the memory.
            score.reasoning = String::new();
        }
        let documents = self.entries.entry(entry.query.clone()).or_default();
        documents.insert(entry.document.clone(), entry);
    }

    /// Writes a line with one system call.
    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        self.file.write_all(&json)
    }
}

/// Parses the lines of documents.
fn entries<R: BufRead>(
    path: &Path,
    lines: input::Lines<R>,
) -> impl Iterator<Item = Result<Entry, EvalError>> {
    let problem = |problem: String| EvalError::file(path, problem);
    lines.map(move |line| {
        let line = line.map_err(|error| problem(error.to_string()))?;
        let number = line.number;
        let entry = line
            .text()
            .and_then(|text| serde_json::from_str(&text).map_err(|error| input::not_json(&error)));
        entry.map_err(|reason| {
            problem(format!("line {number}: {reason}; delete the line to score its document again"))
        })
    })
}

/// Returns the CRC-32 of the query's own instruction and both texts, separated by zero bytes.
pub(super) fn texts_crc32(instruction: Option<&str>, query: &str, document: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if let Some(instruction) = instruction {
        hasher.update(instruction.as_bytes());
        hasher.update(&[0]);
    }
    hasher.update(query.as_bytes());
    hasher.update(&[0]);
    hasher.update(document.as_bytes());
    hasher.finalize()
}

/// Returns the settings that differ, each with both values.
fn differences(found: &Map<String, Value>, now: &Value) -> String {
    let empty = Map::new();
    let now = now.as_object().unwrap_or(&empty);
    // A setting that only the file has comes from another version of the command.
    let names = now.keys().chain(found.keys().filter(|name| !now.contains_key(*name)));
    let different = names.filter(|name| found.get(*name) != now.get(*name));
    let shown = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
    let differences: Vec<String> = different
        .map(|name| {
            let (before, now) = (shown(found.get(name)), shown(now.get(name)));
            text::line(&format!("{name} was {before} and is {now}"))
        })
        .collect();
    differences.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn settings(model: &str) -> Settings<'_> {
        Settings {
            erank_eval: 1,
            model,
            fingerprint: Some(7),
            backend: "candle",
            description: Some("BF16 weights, portable kernels"),
            prompts: None,
            logprobs: true,
            weights: None,
            kv_cache: None,
            template: "erank",
            instruction: "x",
            max_tokens: None,
            max_query_tokens: 1,
            max_document_tokens: 2,
            max_prompt_tokens: None,
        }
    }

    fn entry(document: &str, probability_weighted: f64) -> Entry {
        let score = Score {
            integer: 3,
            probability_weighted: Some(probability_weighted),
            expected_value: None,
            finish_reason: Finish::Answered,
            truncated: false,
            prompt_tokens: 1,
            generated_tokens: 2,
            reasoning: "a\nthought".into(),
        };
        let (query, document) = ("q".to_owned(), document.to_owned());
        Entry { query, document, texts_crc32: 9, outcome: Outcome::Answered(score) }
    }

    #[test]
    fn open_reads_entries_and_drops_an_incomplete_last_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scores.jsonl");
        let mut scores = ScoreFile::open(&path, &settings("m")).expect("created");
        for number in 0..500 {
            scores.add(entry(&number.to_string(), 10.0 / f64::from(number + 1))).expect("added");
        }
        let failed = Outcome::Failed { error: "too long".into() };
        scores.add(Entry { outcome: failed.clone(), ..entry("failed", 0.0) }).expect("added");
        assert_eq!(scores.get("q", "failed", 9), Some(&failed));
        assert_eq!(scores.get("q", "1", 10), None, "the text has changed");
        let kept = scores.entries.clone();
        drop(scores);
        let whole = fs::read(&path).expect("there");
        for cut in [0, 1, 20] {
            let mut bytes = whole.clone();
            bytes.extend_from_slice(&whole[whole.len() - 40..whole.len() - cut - 1]);
            fs::write(&path, bytes).expect("written");
            let scores = ScoreFile::open(&path, &settings("m")).expect("read again");
            assert_eq!(scores.entries, kept);
            drop(scores);
            assert_eq!(fs::read(&path).expect("there"), whole);
        }
    }

    #[test]
    fn open_refuses_other_settings_a_second_writer_and_broken_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scores.jsonl");
        let refused = |model: &str| match ScoreFile::open(&path, &settings(model)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("not refused"),
        };
        let first = ScoreFile::open(&path, &settings("m")).expect("created");
        assert!(refused("m").contains("another process"));
        drop(first);
        assert!(refused("n").contains("model was \"m\" and is \"n\""), "{}", refused("n"));
        let header = fs::read_to_string(&path).expect("there");
        fs::write(&path, format!("{header}{{}}\n{{\"query\": \"q\"}}\n")).expect("written");
        assert!(refused("m").contains("line 2: bad JSON: missing field `query`"));
        fs::write(&path, "something else\n").expect("written");
        assert!(refused("m").contains("is not a score file"), "{}", refused("m"));
    }
}

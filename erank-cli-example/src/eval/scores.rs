//! The file of scores: JSON lines, added to as soon as something is known, and read again by the
//! next start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use erank_core::{Answer, FinishReason, ScoreKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::EvalError;
use crate::input;
use crate::text;

/// What the scores depend on besides the texts: the file's first line.
#[derive(Serialize)]
pub(super) struct Settings<'a> {
    /// The version of the file's format.
    pub(super) erank_eval: u32,
    pub(super) model: &'a str,
    /// [`erank_candle::Checkpoint::fingerprint`]; null for a remote model.
    pub(super) fingerprint: Option<u32>,
    pub(super) backend: &'static str,
    /// Null for the model's own.
    pub(super) dtype: Option<&'static str>,
    pub(super) instruction: &'a str,
    /// Of a thought; null for answers without one.
    pub(super) max_tokens: Option<usize>,
    pub(super) max_query_tokens: usize,
    pub(super) max_document_tokens: usize,
}

/// One document's line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) query: String,
    pub(super) document: String,
    /// CRC-32 of both texts.
    pub(super) texts_crc32: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// What the model answered, or why it cannot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Answered(Score),
    Failed { error: String },
}

/// An answer with what was measured with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Score {
    integer: u32,
    official: Option<f64>,
    expected: Option<f64>,
    finish: Finish,
    truncated: bool,
    pub(super) prompt_tokens: usize,
    pub(super) generated_tokens: usize,
    reasoning: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Finish {
    Answered,
    EndOfText,
    Forced,
    Other,
}

impl Score {
    pub(super) fn new(answer: Answer, completion: &erank_core::Completion) -> Self {
        Self {
            integer: answer.integer,
            official: answer.probability_weighted(),
            expected: answer.expected_value,
            finish: match completion.finish_reason {
                FinishReason::Answered => Finish::Answered,
                FinishReason::EndOfTurn => Finish::EndOfText,
                FinishReason::Forced => Finish::Forced,
                _ => Finish::Other,
            },
            truncated: completion.query_truncated || completion.document_truncated,
            prompt_tokens: completion.usage.prompt,
            generated_tokens: completion.usage.generated,
            reasoning: answer.reasoning,
        }
    }

    /// The number to rank by, if the backend gave what it needs.
    pub(super) fn value(&self, kind: ScoreKind) -> Option<f64> {
        match kind {
            ScoreKind::ProbabilityWeighted => self.official,
            ScoreKind::ExpectedValue => self.expected,
            _ => Some(f64::from(self.integer)),
        }
    }

    /// Whether the answer had to be forced.
    pub(super) fn is_forced(&self) -> bool {
        self.finish == Finish::Forced
    }

    /// Whether query or document were cut.
    pub(super) fn is_truncated(&self) -> bool {
        self.truncated
    }
}

/// The file, open for more.
pub(super) struct ScoreFile {
    path: PathBuf,
    file: File,
    /// By query, then by document.
    entries: HashMap<String, HashMap<String, Entry>>,
}

impl ScoreFile {
    /// Opens the file, or begins it. A last line that was cut off by the end of the command is
    /// dropped.
    ///
    /// Scores that were made with other settings are refused, and so is a file that another process
    /// is writing.
    pub(super) fn open(path: &Path, settings: &Settings<'_>) -> Result<Self, EvalError> {
        let problem = |error: io::Error| EvalError::file(path, error.to_string());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(problem)?;
        // Not every file system has locks.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(EvalError::InUse { file: shown(path) });
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

    fn read(&mut self, bytes: &[u8], header: &Value) -> Result<(), EvalError> {
        let mut lines = input::Lines::of(bytes);
        let first = lines.next().and_then(Result::ok).and_then(|line| line.text().ok());
        let found: Map<String, Value> = first
            .and_then(|line| serde_json::from_str(&line).ok())
            .filter(|found: &Map<String, Value>| found.contains_key("erank_eval"))
            .ok_or_else(|| EvalError::NoScores { file: shown(&self.path) })?;
        let differences = differences(&found, header);
        if !differences.is_empty() {
            return Err(EvalError::OtherScores { file: shown(&self.path), differences });
        }
        for line in lines {
            let problem = |problem: String| EvalError::file(&self.path, problem);
            let line = line.map_err(|error| problem(error.to_string()))?;
            let number = line.number;
            let entry = line.text().and_then(|text| {
                serde_json::from_str(&text).map_err(|error| input::not_json(&error))
            });
            let entry = entry.map_err(|reason| {
                problem(format!("line {number}: {reason}; delete the line to have it done anew"))
            })?;
            self.keep(entry);
        }
        Ok(())
    }

    /// What is known of these texts.
    pub(super) fn get(&self, query: &str, document: &str, texts_crc32: u32) -> Option<&Outcome> {
        let entry = self.entries.get(query)?.get(document)?;
        (entry.texts_crc32 == texts_crc32).then_some(&entry.outcome)
    }

    /// Adds a line, at once.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), EvalError> {
        self.write(&entry).map_err(|error| EvalError::file(&self.path, error.to_string()))?;
        self.keep(entry);
        Ok(())
    }

    fn keep(&mut self, mut entry: Entry) {
        if let Outcome::Answered(score) = &mut entry.outcome {
            // For people who read the file; a large collection's thoughts would fill the memory.
            score.reasoning = String::new();
        }
        let documents = self.entries.entry(entry.query.clone()).or_default();
        documents.insert(entry.document.clone(), entry);
    }

    /// Writes a line in one call.
    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        self.file.write_all(&json)
    }
}

/// What a score was made from.
pub(super) fn texts_crc32(query: &str, document: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(query.as_bytes());
    hasher.update(&[0]);
    hasher.update(document.as_bytes());
    hasher.finalize()
}

/// The settings that are not the same, each with both values.
fn differences(found: &Map<String, Value>, now: &Value) -> String {
    let now = now.as_object().into_iter().flatten();
    let different = now.filter(|(name, value)| found.get(*name) != Some(*value));
    let differences: Vec<String> = different
        .map(|(name, value)| {
            let before = found.get(name).map_or("nothing".into(), Value::to_string);
            text::line(&format!("{name} was {before} and is {value}"))
        })
        .collect();
    differences.join("; ")
}

fn shown(path: &Path) -> String {
    text::line(&path.display().to_string())
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
            dtype: None,
            instruction: "x",
            max_tokens: None,
            max_query_tokens: 1,
            max_document_tokens: 2,
        }
    }

    fn entry(document: &str, official: f64) -> Entry {
        let score = Score {
            integer: 3,
            official: Some(official),
            expected: None,
            finish: Finish::Answered,
            truncated: false,
            prompt_tokens: 1,
            generated_tokens: 2,
            reasoning: "a\nthought".into(),
        };
        let (query, document) = ("q".to_owned(), document.to_owned());
        Entry { query, document, texts_crc32: 9, outcome: Outcome::Answered(score) }
    }

    #[test]
    fn the_next_start_reads_what_this_one_kept_and_drops_a_cut_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scores.jsonl");
        let mut scores = ScoreFile::open(&path, &settings("m")).expect("begun");
        for number in 0..500 {
            scores.add(entry(&number.to_string(), 10.0 / f64::from(number + 1))).expect("added");
        }
        let failed = Outcome::Failed { error: "too long".into() };
        scores.add(Entry { outcome: failed.clone(), ..entry("failed", 0.0) }).expect("added");
        assert_eq!(scores.get("q", "failed", 9), Some(&failed));
        assert_eq!(scores.get("q", "1", 10), None, "of another text");
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
    fn other_settings_another_writer_and_broken_lines_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scores.jsonl");
        let refused = |model: &str| match ScoreFile::open(&path, &settings(model)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("not refused"),
        };
        let first = ScoreFile::open(&path, &settings("m")).expect("begun");
        assert!(refused("m").contains("another process"));
        drop(first);
        assert!(refused("n").contains("model was \"m\" and is \"n\""), "{}", refused("n"));
        let header = fs::read_to_string(&path).expect("there");
        fs::write(&path, format!("{header}{{}}\n{{\"query\": \"q\"}}\n")).expect("written");
        assert!(refused("m").contains("line 2: bad JSON: missing field `query`"));
        fs::write(&path, "something else\n").expect("written");
        assert!(refused("m").contains("holds no scores"), "{}", refused("m"));
    }
}

//! The file of `erank eval --calibrate` and `erank rerank --calibration`.

use std::fs;
use std::path::Path;

use erank_core::Calibration;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::CommandError;
use crate::text;

/// A calibration with the settings of the scores that it was fitted on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CalibrationFile {
    /// The version of the file format.
    pub(crate) erank_calibration: u32,
    #[serde(flatten)]
    pub(crate) calibration: Calibration,
    /// The first line of `scores.jsonl`.
    pub(crate) settings: Map<String, Value>,
    pub(crate) fitted_on: Documents,
}

/// The judged documents of some queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Documents {
    pub(crate) queries: usize,
    pub(crate) documents: usize,
    pub(crate) relevant: usize,
}

impl CalibrationFile {
    /// The version of the file format that this program writes.
    pub(crate) const VERSION: u32 = 1;

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, CommandError> {
        let problem =
            |problem: String| CommandError::Calibration { file: text::path(path), problem };
        let bytes = fs::read(path).map_err(|error| problem(error.to_string()))?;
        let file: Self = serde_json::from_slice(&bytes).map_err(|error| {
            let error = text::line(&error.to_string());
            problem(format!("{error}; give a file that erank eval --calibrate wrote"))
        })?;
        match file.erank_calibration {
            Self::VERSION => Ok(file),
            version => Err(problem(format!(
                "its format has version {version}, and this erank reads version {}; fit it again",
                Self::VERSION
            ))),
        }
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), CommandError> {
        let problem =
            |problem: String| CommandError::Calibration { file: text::path(path), problem };
        let json = serde_json::to_string(self).map_err(|error| problem(error.to_string()))?;
        fs::write(path, format!("{}\n", text::json(&json)))
            .map_err(|error| problem(error.to_string()))
    }

    /// Checks that a file can be written at a path later, as far as its folder tells.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder does not exist, or if the path is a folder itself.
    pub(crate) fn check_path(path: &Path) -> Result<(), CommandError> {
        let problem =
            |problem: String| CommandError::Calibration { file: text::path(path), problem };
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        match folder {
            _ if path.is_dir() => Err(problem("it is a folder; name a file".into())),
            Some(folder) if !folder.is_dir() => Err(problem(format!(
                "the folder {} does not exist; make it first",
                text::path(folder)
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the model and the prompt are those whose scores the calibration was fitted on. `now` holds the
    /// model's `fingerprint`, `model` and `template`, as in [`settings`](Self::settings). The library checks the kind
    /// of the score, the mode and the answers.
    ///
    /// # Errors
    ///
    /// Returns an error if the model or the prompt differs. Local models are compared by their fingerprints, and
    /// remote ones by their names.
    pub(crate) fn check(&self, path: &Path, now: &Value) -> Result<(), CommandError> {
        let differs = |name: &str| *self.fitted(name) != now[name];
        let is_local = self.fitted("fingerprint").is_number() && now["fingerprint"].is_number();
        let is_other_model = differs(if is_local { "fingerprint" } else { "model" });
        let (what, field) = match is_other_model {
            true if differs("model") => ("model", "model"),
            true => ("model of the same name", "fingerprint"),
            false if differs("template") => ("template", "template"),
            false => return Ok(()),
        };
        let (fitted, now) = (self.fitted(field), &now[field]);
        let values = if field == "fingerprint" { "fingerprint " } else { "" };
        let problem = text::line(&format!(
            "it was fitted with another {what} ({values}{fitted}, now {now}); use the same, or fit another calibration \
             with erank eval --calibrate"
        ));
        Err(CommandError::Calibration { file: text::path(path), problem })
    }

    /// Notes each setting, other than the model and the template, that differs from `now`, because the probabilities
    /// may then be wrong. Windows and sampling have no settings in the file, because `erank eval` has neither.
    pub(crate) fn note_differences(&self, now: &Value) {
        const SETTINGS: [&str; 8] = [
            "instruction",
            "weights",
            "max_tokens",
            "max_query_tokens",
            "max_document_tokens",
            "max_prompt_tokens",
            "windows",
            "sampling",
        ];
        for what in SETTINGS.into_iter().filter(|what| *self.fitted(what) != now[*what]) {
            text::note(&text::line(&format!(
                "The calibration was fitted with other settings, so its probabilities may be wrong: {what} was {} and \
                 is {}.",
                self.fitted(what),
                now[what]
            )));
        }
    }

    /// Returns a setting of the scores that the calibration was fitted on. It is null if the file lacks it.
    fn fitted(&self, name: &str) -> &Value {
        self.settings.get(name).unwrap_or(&Value::Null)
    }
}

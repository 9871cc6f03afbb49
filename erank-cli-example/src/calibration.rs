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
        let problem = |problem: String| CommandError::Calibration { file: shown(path), problem };
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
        let problem = |problem: String| CommandError::Calibration { file: shown(path), problem };
        let json = serde_json::to_string(self).map_err(|error| problem(error.to_string()))?;
        fs::write(path, format!("{}\n", text::json(&json)))
            .map_err(|error| problem(error.to_string()))
    }

    /// Checks that the scores of a model are like those that the calibration was fitted on. `now` holds the model's
    /// `fingerprint`, `model`, `template`, `instruction` and `weights`, as in [`settings`](Self::settings). The library
    /// checks the kind of the score, the mode and the answers.
    ///
    /// Says which instruction or format of weights differs, because the probabilities may then be wrong.
    ///
    /// # Errors
    ///
    /// Returns an error if the model or the prompt differs. Local models are compared by their fingerprints, and
    /// remote ones by their names.
    pub(crate) fn check(&self, path: &Path, now: &Value) -> Result<(), CommandError> {
        let fitted = |name: &str| self.settings.get(name).unwrap_or(&Value::Null);
        let differs = |name: &str| *fitted(name) != now[name];
        let is_local = fitted("fingerprint").is_number() && now["fingerprint"].is_number();
        let is_other_model = differs(if is_local { "fingerprint" } else { "model" });
        let is_other_prompt = differs("template");
        if is_other_model || is_other_prompt {
            let what = if is_other_model { "model" } else { "template" };
            let problem = text::line(&format!(
                "it was fitted with another {what} ({}, now {}); use the same, or fit another calibration with erank \
                 eval --calibrate",
                fitted(what),
                now[what]
            ));
            return Err(CommandError::Calibration { file: shown(path), problem });
        }
        for what in ["instruction", "weights"].into_iter().filter(|what| differs(what)) {
            text::note(&text::line(&format!(
                "The calibration was fitted with other settings, so its probabilities may be wrong: {what} was {} and \
                 is {}.",
                fitted(what),
                now[what]
            )));
        }
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    text::line(&path.display().to_string())
}

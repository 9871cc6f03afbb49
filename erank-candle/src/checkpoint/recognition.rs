//! The recognition of the prompt that a checkpoint was trained with.

use std::path::{Component, Path};

use erank_core::PromptFamily;
use serde::Deserialize;
use serde_json::Value;

use super::{CONFIG, Checkpoint, LOGIT_SCORE, MODULES, json};
use crate::error::LoadError;
use crate::tokenizer::PromptTokenizer;

/// A sentence of Qwen3-Reranker's prompt.
const QWEN3_RERANKER_SENTENCE: &str = "Judge whether the Document meets the requirements";

/// The prompt that a checkpoint's files name, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecognisedPrompt {
    /// The family of the prompt.
    pub family: PromptFamily,
    /// The reason in words, such as "its name contains \"reranker\"". `None` for the default, ERank's prompt,
    /// which no file names.
    pub reason: Option<&'static str>,
}

/// The keys of the module's `config.json` that matter here.
#[derive(Deserialize)]
struct LogitScore {
    true_token_id: Option<u32>,
    false_token_id: Option<u32>,
}

impl Checkpoint {
    /// Returns the prompt that the checkpoint was trained with, as far as its files tell.
    ///
    /// The checkpoint is a Qwen3-Reranker if its chat template contains a sentence of that prompt, if
    /// `1_LogitScore/config.json` names the tokens `no` and `yes`, or if its name contains `reranker`. Otherwise the
    /// prompt is ERank's. No weights are read.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] if the files describe a classifier or another reranker of one pass whose prompt
    /// is not known, or if one of them cannot be parsed. Choose a [`PromptTemplate`](erank_core::PromptTemplate) for
    /// such a checkpoint.
    pub fn recognise_prompt(&self) -> Result<RecognisedPrompt, LoadError> {
        let reranker = |reason| {
            Ok(RecognisedPrompt { family: PromptFamily::Qwen3Reranker, reason: Some(reason) })
        };
        let unknown = |file: &str, reason: &str| {
            let reason = format!(
                "{reason}, so the model is a reranker whose prompt is not known; choose the prompt template"
            );
            Err(LoadError::invalid(file, reason))
        };
        let files = (self.tokenizer_config.as_deref(), self.chat_template.as_deref());
        let source = PromptTokenizer::chat_template(files.0, files.1);
        let source = source.map_err(|error| self.name_built_file(error))?.unwrap_or_default();
        if source.contains(QWEN3_RERANKER_SENTENCE) {
            return reranker("its chat template is Qwen3-Reranker's");
        }
        if self.has_logit_score()? {
            return match self.scores_no_and_yes()? {
                true => reranker("its module LogitScore names the answers \"no\" and \"yes\""),
                false => {
                    let file = logit_score_file(self.modules[0].as_deref());
                    unknown(&file, "it does not name the answers \"no\" and \"yes\"")
                }
            };
        }
        // The name of a hub's owner says nothing about the model.
        let model_name =
            |name: &String| name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        if self.prompt_names.iter().any(|name| model_name(name).contains("reranker")) {
            return reranker("its name contains \"reranker\"");
        }
        let has_role = |role: &str| {
            source.contains(&format!("'{role}'")) || source.contains(&format!("\"{role}\""))
        };
        if has_role("query") && has_role("document") {
            return unknown("the chat template", "it has the roles \"query\" and \"document\"");
        }
        if self.is_classifier() {
            return unknown(CONFIG, "it names a classifier");
        }
        Ok(RecognisedPrompt { family: PromptFamily::Erank, reason: None })
    }

    /// Returns whether `config.json` names a classifier. Another error in it is reported when the model is loaded.
    fn is_classifier(&self) -> bool {
        let config: Value = json::parse(CONFIG, &self.config).unwrap_or_default();
        let mut names = config["architectures"].as_array().into_iter().flatten();
        names.any(|name| {
            name.as_str().is_some_and(|name| name.ends_with("ForSequenceClassification"))
        })
    }

    /// Returns whether `modules.json` lists a module that scores the logits of the last position.
    fn has_logit_score(&self) -> Result<bool, LoadError> {
        let Some(json) = &self.modules[0] else { return Ok(false) };
        let modules: Vec<Value> = json::parse(MODULES, json)?;
        let mut types = modules.iter().filter_map(|module| module["type"].as_str());
        Ok(types.any(|name| name.ends_with(".LogitScore")))
    }

    /// Returns whether `1_LogitScore/config.json` names the tokens of "no" and "yes".
    fn scores_no_and_yes(&self) -> Result<bool, LoadError> {
        let (Some(json), Some(tokenizer)) = (&self.modules[1], &self.tokenizer) else {
            return Ok(false);
        };
        let file = logit_score_file(self.modules[0].as_deref());
        let LogitScore { true_token_id, false_token_id } = json::parse(&file, json)?;
        let tokenizer = PromptTokenizer::new(tokenizer, None, None)?;
        let ids = ["no", "yes"].map(|label| tokenizer.token_to_id(label));
        Ok(ids.iter().all(Option::is_some) && ids == [false_token_id, true_token_id])
    }
}

/// Returns the file with the labels of the module that scores logits, from the contents of `modules.json`.
pub(super) fn logit_score_file(modules: Option<&[u8]>) -> String {
    let modules: Vec<Value> =
        modules.and_then(|json| json::parse(MODULES, json).ok()).unwrap_or_default();
    let is_scoring =
        |module: &&Value| module["type"].as_str().is_some_and(|name| name.ends_with(".LogitScore"));
    let folder = modules.iter().find(is_scoring).and_then(|module| module["path"].as_str());
    // Names that lead to other folders are ignored.
    let is_inside = |folder: &&str| {
        Path::new(folder).components().all(|part| matches!(part, Component::Normal(_)))
    };
    match folder.filter(is_inside).filter(|folder| !folder.is_empty()) {
        Some(folder) => format!("{folder}/config.json"),
        None => LOGIT_SCORE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Recognises the prompt of a folder of this name with these files, besides a tokenizer whose tokens are
    /// bytes.
    fn recognise(name: &str, files: &[(&str, &str)]) -> Result<RecognisedPrompt, String> {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join(name);
        fs::create_dir(&folder).expect("made");
        let tokenizer = crate::tokenizer::tests::tokenizer_json().to_string();
        let tokenizer = tokenizer.replace("\"hi\":", "\"yes\":").replace("\"Ġhi\":", "\"no\":");
        let tokenizer = tokenizer.replace("\"h i\",\"Ġ hi\",", "");
        let required = [(CONFIG, "{}"), (SAFETENSORS, ""), ("tokenizer.json", &tokenizer)];
        for (file, content) in required.iter().chain(files) {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, content).expect("written");
        }
        let checkpoint = Checkpoint::open(&folder).map_err(|error| error.to_string())?;
        checkpoint.recognise_prompt().map_err(|error| error.to_string())
    }

    const SAFETENSORS: &str = "model.safetensors";
    const LOGIT_SCORE_MODULE: (&str, &str) = (
        MODULES,
        r#"[{"type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}]"#,
    );

    #[test]
    fn recognise_prompt_finds_qwen3_reranker_by_template_answers_or_name() {
        let chatml = ("chat_template.jinja", "<|im_start|>user\n{{ messages[0].content }}");
        let template = (
            "tokenizer_config.json",
            r#"{"chat_template": "system\nJudge whether the Document meets the requirements {{ x }}"}"#,
        );
        let answers = (LOGIT_SCORE, r#"{"true_token_id": 256, "false_token_id": 257}"#);
        let second_module = (MODULES, r#"[{"type": "a.LogitScore", "path": "2_LogitScore"}]"#);
        let second_answers = ("2_LogitScore/config.json", answers.1);
        let classifier = (CONFIG, r#"{"architectures": ["Qwen3ForSequenceClassification"]}"#);
        for (name, files, reason) in [
            ("ERank-4B", &[chatml][..], None),
            ("ERank-4B", &[], None),
            ("m", &[(MODULES, r#"[{"type": "a.Transformer"}]"#), chatml], None),
            ("Qwen3-Reranker-0.6B", &[chatml], Some("its name contains")),
            ("my_reranker", &[], Some("its name contains")),
            ("my_reranker", &[classifier], Some("its name contains")),
            ("m", &[template], Some("its chat template")),
            ("m", &[LOGIT_SCORE_MODULE, answers], Some("its module LogitScore")),
            ("m", &[second_module, second_answers], Some("its module LogitScore")),
        ] {
            let found = recognise(name, files).expect(name);
            let family =
                if reason.is_some() { PromptFamily::Qwen3Reranker } else { PromptFamily::Erank };
            assert_eq!(found.family, family, "{name} {files:?}");
            let found = found.reason.unwrap_or_default();
            assert!(found.starts_with(reason.unwrap_or_default()), "{found}");
        }
    }

    /// The same model has the same prompt, whatever the path to it is.
    #[cfg(unix)]
    #[test]
    fn recognise_prompt_does_not_depend_on_the_path() {
        let parent = tempfile::tempdir().expect("a folder");
        let make = |folder: &str| {
            let folder = parent.path().join(folder);
            fs::create_dir_all(&folder).expect("made");
            for (file, content) in [(CONFIG, "{}"), (SAFETENSORS, "")] {
                fs::write(folder.join(file), content).expect("written");
            }
            folder
        };
        let family = |path: &std::path::Path| {
            let checkpoint = Checkpoint::open(path).expect("opened");
            (checkpoint.recognise_prompt().expect("known").family, checkpoint.name().to_owned())
        };
        let reranker = PromptFamily::Qwen3Reranker;
        let folder = make("Qwen3-Reranker-0.6B");
        fs::create_dir(folder.join("inner")).expect("made");
        let name = || "Qwen3-Reranker-0.6B".to_owned();
        assert_eq!(family(&folder.join("inner/..")), (reranker, name()));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).expect("linked");
        assert_eq!(family(&link), (reranker, "link".into()));
        let cached = make("hub/models--Qwen--Qwen3-Reranker-0.6B/snapshots/e61197ed");
        assert_eq!(family(&cached), (reranker, "Qwen/Qwen3-Reranker-0.6B".into()));
        // The owner's name says nothing about the model.
        let other = make("hub/models--reranker-lab--ERank-4B/snapshots/e61197ed");
        assert_eq!(family(&other), (PromptFamily::Erank, "reranker-lab/ERank-4B".into()));
    }

    #[test]
    fn recognise_prompt_reports_other_rerankers() {
        let roles = (
            "chat_template.jinja",
            "{% for m in messages %}{% if m.role == \"query\" or m.role == 'document' %}{% endif %}{% endfor %}",
        );
        let answers = (LOGIT_SCORE, r#"{"true_token_id": 256, "false_token_id": null}"#);
        let classifier = (CONFIG, r#"{"architectures": ["Qwen3ForSequenceClassification"]}"#);
        for (files, file, expected) in [
            (&[roles][..], "chat template", "not known"),
            (&[classifier], CONFIG, "it names a classifier"),
            (&[LOGIT_SCORE_MODULE, answers], LOGIT_SCORE, "not known"),
            (&[LOGIT_SCORE_MODULE], LOGIT_SCORE, "choose the prompt template"),
            (&[(MODULES, "{")], MODULES, "expected form"),
            (&[LOGIT_SCORE_MODULE, (LOGIT_SCORE, "[]")], LOGIT_SCORE, "expected form"),
        ] {
            let error = recognise("m", files).expect_err(file);
            assert!(error.contains(file) && error.contains(expected), "{error}");
        }
    }
}

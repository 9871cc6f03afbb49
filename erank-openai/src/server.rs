//! Which server this is, and what it can do: found out once.

use std::sync::{Arc, OnceLock};

use erank_core::Sampling;
use serde_json::{Value, json};

use crate::calls::{Calls, Endpoint};
use crate::error::{CapabilityError, RequestError};
use crate::settings::{OpenAiSettings, Prompts};

/// The engines that are told apart, by what `/v1/models` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// llama.cpp's server.
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// Anything else, from which nothing is expected but what OpenAI's API has.
    Other,
}

/// What is known of the server once it has answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Capabilities {
    pub(crate) server: Server,
    /// The name to send.
    pub(crate) model: Option<String>,
    /// Tokens of a prompt with its answer, if the server says.
    pub(crate) context: Option<usize>,
    /// What the server's chat template writes before and after a user's message.
    pub(crate) frame: Option<(String, String)>,
    /// Whether it gives the log-probabilities of tokens that are named by their ids.
    pub(crate) takes_ids: bool,
}

impl Capabilities {
    /// Asks the server.
    fn probe(endpoint: &Endpoint<'_>, settings: &OpenAiSettings) -> Result<Self, RequestError> {
        let models = match endpoint.get(MODELS) {
            Ok(models) if models["data"].is_array() => models,
            Ok(_) => return Err(endpoint.malformed(MODELS, "there is no list of models in it")),
            // A gateway may lack the route.
            Err(RequestError::Refused { status: 404 | 405, .. }) => Value::Null,
            Err(error) => return Err(error),
        };
        let listed: Vec<&Value> = models["data"].as_array().into_iter().flatten().collect();
        let server = settings.server.unwrap_or_else(|| {
            match listed.first().and_then(|model| model["owned_by"].as_str()) {
                Some("llamacpp") => Server::LlamaCpp,
                Some("vllm") => Server::Vllm,
                _ => Server::Other,
            }
        });
        let model = chosen_model(server, settings.model.as_deref(), &listed, endpoint)?;
        let entry = match listed.as_slice() {
            [only] => Some(*only),
            several => {
                several.iter().find(|entry| entry["id"].as_str() == model.as_deref()).copied()
            }
        };
        let context = entry.and_then(|entry| {
            let length = entry["max_model_len"].as_u64().or(entry["meta"]["n_ctx"].as_u64());
            usize::try_from(length?).ok()
        });
        let mut capabilities = Self { server, model, context, frame: None, takes_ids: false };
        if matches!(settings.prompts, Prompts::ServerTemplate) {
            capabilities.frame = Some(capabilities.template(endpoint)?);
        }
        if settings.log_probs || matches!(settings.prompts, Prompts::TokenIds(_)) {
            capabilities.check_replies(endpoint, settings)?;
        }
        let is_raw = !matches!(settings.prompts, Prompts::Chat);
        if server == Server::Vllm && settings.log_probs && is_raw {
            capabilities.takes_ids = capabilities.gives_named_tokens(endpoint)?;
        }
        Ok(capabilities)
    }

    /// What another endpoint has that this one does not.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            ("server", self.server == other.server),
            ("model", self.model == other.model),
            ("context length", self.context == other.context),
            ("chat template", self.frame == other.frame),
            ("version", self.takes_ids == other.takes_ids),
        ]
        .into_iter()
        .find_map(|(what, is_same)| (!is_same).then_some(what))
    }

    /// A request with the model's name, as far as one is needed.
    pub(crate) fn request(&self, fields: Value) -> Value {
        let mut request = fields;
        if let (Some(model), Some(fields)) = (&self.model, request.as_object_mut()) {
            fields.insert("model".into(), model.as_str().into());
        }
        request
    }

    /// Has the server render its chat template around a mark, and splits the text there.
    fn template(&self, endpoint: &Endpoint<'_>) -> Result<(String, String), RequestError> {
        const MARK: &str = "[the user's message of erank]";
        let no_template = |problem: &str| {
            let problem = problem.to_owned();
            CapabilityError::NoTemplate { problem }.at(endpoint.url())
        };
        let messages = json!([{"role": "user", "content": MARK}]);
        let (route, rendered) = match self.server {
            Server::LlamaCpp => {
                const RENDER: &str = "/apply-template";
                let request = json!({ "messages": messages });
                (RENDER, endpoint.post(RENDER, &request)?["prompt"].take())
            }
            Server::Vllm => {
                let fields = json!({"messages": messages, "add_generation_prompt": true});
                let tokens = endpoint.post(TOKENIZE, &self.request(fields))?["tokens"].take();
                const RENDER: &str = "/detokenize";
                let fields = json!({ "tokens": tokens });
                (RENDER, endpoint.post(RENDER, &self.request(fields))?["prompt"].take())
            }
            Server::Other => return Err(no_template("it is neither llama.cpp nor vLLM")),
        };
        let no_text = || endpoint.malformed(route, "there is no text in it");
        let text = rendered.as_str().ok_or_else(no_text)?;
        match text.split_once(MARK) {
            Some((before, after)) if !after.contains(MARK) => Ok((before.into(), after.into())),
            _ => Err(no_template("the message is not in it exactly once")),
        }
    }

    /// Has the server generate one token, and looks for its alternatives and its id.
    fn check_replies(
        &self,
        endpoint: &Endpoint<'_>,
        settings: &OpenAiSettings,
    ) -> Result<(), RequestError> {
        let alternatives = settings.alternatives;
        let refused = |problem: String| {
            CapabilityError::NoLogProbs { alternatives, problem }.at(endpoint.url())
        };
        let needs_ids = matches!(settings.prompts, Prompts::TokenIds(_));
        let (route, mut fields) = match settings.prompts {
            Prompts::Chat => (
                CHAT,
                json!({
                    "messages": [{"role": "user", "content": "0"}],
                    "logprobs": true, "top_logprobs": 1,
                }),
            ),
            // Whatever it means to the tokenizer, the id is there.
            Prompts::TokenIds(_) => (
                COMPLETIONS,
                json!({"prompt": [0], "logprobs": alternatives, "return_token_ids": true}),
            ),
            _ => (COMPLETIONS, json!({"prompt": "<answer>", "logprobs": alternatives})),
        };
        fields["max_tokens"] = 1.into();
        fields["temperature"] = 0.into();
        let reply =
            endpoint.generate(route, &self.request(fields)).map_err(|error| match error {
                RequestError::Refused { status: 400, message, .. } => refused(message),
                error => error,
            })?;
        if needs_ids && reply.ids.is_none_or(|ids| ids.is_empty()) {
            return Err(CapabilityError::NoTokenIds.at(endpoint.url()));
        }
        match reply.tokens.first() {
            _ if !settings.log_probs => Ok(()),
            Some(token) if !token.alternatives.is_empty() => Ok(()),
            Some(_) => Err(refused("the tokens come without alternatives".into())),
            None => Err(refused("the reply has none".into())),
        }
    }

    /// Asks for one alternative and three more by their ids. Versions that do not know of ids ignore
    /// them, or refuse.
    fn gives_named_tokens(&self, endpoint: &Endpoint<'_>) -> Result<bool, RequestError> {
        let fields = json!({
            "prompt": [0], "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "logprob_token_ids": [0, 1, 2],
        });
        match endpoint.generate(COMPLETIONS, &self.request(fields)) {
            Ok(reply) => Ok(reply.tokens.first().is_some_and(|token| token.alternatives.len() > 2)),
            Err(RequestError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The id of a text's first token, if the server says.
    pub(crate) fn first_id(&self, calls: &Calls, text: &str) -> Result<Option<u32>, RequestError> {
        let fields = json!({"prompt": text, "add_special_tokens": false});
        let reply = calls.post_if_there(TOKENIZE, &self.request(fields))?;
        Ok(reply["tokens"][0].as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    /// Tokens of a text as the server counts them, if it does.
    pub(crate) fn count(&self, calls: &Calls, text: &str) -> Result<Option<usize>, RequestError> {
        match self.server {
            Server::Other => Ok(None),
            Server::LlamaCpp => {
                let fields = json!({"content": text, "add_special": false, "parse_special": true});
                let reply = calls.post_if_there(TOKENIZE, &fields)?;
                Ok(reply["tokens"].as_array().map(Vec::len))
            }
            Server::Vllm => {
                let fields = json!({"prompt": text, "add_special_tokens": false});
                let reply = calls.post_if_there(TOKENIZE, &self.request(fields))?;
                Ok(reply["count"].as_u64().and_then(|count| usize::try_from(count).ok()))
            }
        }
    }

    /// Whether the server has these sampling settings, in the meaning that they have in erank.
    pub(crate) fn check_sampling(&self, sampling: &Sampling) -> Result<(), CapabilityError> {
        let refused = |setting, problem| Err(CapabilityError::Sampling { setting, problem });
        match self.server {
            Server::Vllm => Ok(()),
            // Checked with the server: it adds up the prompt's tokens, too.
            Server::LlamaCpp if sampling.frequency_penalty != 0.0 => refused(
                "frequency_penalty",
                "llama.cpp counts the prompt's tokens too; leave it at 0",
            ),
            Server::LlamaCpp if sampling.presence_penalty != 0.0 => refused(
                "presence_penalty",
                "llama.cpp counts the prompt's tokens too; leave it at 0",
            ),
            Server::LlamaCpp => Ok(()),
            Server::Other => {
                const NOT_THERE: &str = "OpenAI's API does not have it; if the server does, under \
                                         vLLM's name, set OpenAiSettings::server to Server::Vllm";
                if sampling.top_k != 0 {
                    refused("top_k", NOT_THERE)
                } else if sampling.min_p != 0.0 {
                    refused("min_p", NOT_THERE)
                } else if sampling.repetition_penalty != 1.0 {
                    refused("repetition_penalty", NOT_THERE)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The sampling settings as fields of a request, for this sample.
    pub(crate) fn sampling_fields(&self, sampling: &Sampling, sample: usize) -> Value {
        let mut fields = json!({"temperature": sampling.temperature, "top_p": sampling.top_p});
        let Some(map) = fields.as_object_mut() else { return fields };
        if !sampling.is_greedy() {
            // 31 bits are what every server takes.
            let seed = sampling.seed.wrapping_add(sample as u64) & 0x7fff_ffff;
            map.insert("seed".into(), seed.into());
        }
        if self.server != Server::LlamaCpp {
            map.insert("frequency_penalty".into(), sampling.frequency_penalty.into());
            map.insert("presence_penalty".into(), sampling.presence_penalty.into());
        }
        if self.server != Server::Other {
            map.insert("top_k".into(), sampling.top_k.into());
            map.insert("min_p".into(), sampling.min_p.into());
        }
        match self.server {
            Server::Other => {}
            Server::Vllm => {
                map.insert("repetition_penalty".into(), sampling.repetition_penalty.into());
            }
            Server::LlamaCpp => {
                map.insert("repeat_penalty".into(), sampling.repetition_penalty.into());
                // Over the whole context, not the last 64 tokens.
                let context = self.context.unwrap_or(32_768);
                map.insert("repeat_last_n".into(), context.into());
            }
        }
        fields
    }
}

/// The route for the list of models.
const MODELS: &str = "/v1/models";
/// The route for token ids.
const TOKENIZE: &str = "/tokenize";
/// The route for raw prompts.
pub(crate) const COMPLETIONS: &str = "/v1/completions";
/// The route for messages.
pub(crate) const CHAT: &str = "/v1/chat/completions";

fn chosen_model(
    server: Server,
    wanted: Option<&str>,
    listed: &[&Value],
    endpoint: &Endpoint<'_>,
) -> Result<Option<String>, RequestError> {
    let names: Vec<&str> = listed.iter().filter_map(|entry| entry["id"].as_str()).collect();
    let listing = || match names.as_slice() {
        [] => "no model".to_owned(),
        names => endpoint.presentable(&names.join(", ")),
    };
    match (wanted, names.as_slice()) {
        // llama.cpp serves the one model it has under any name.
        (Some(model), names) if server == Server::LlamaCpp || names.contains(&model) => {
            Ok(Some(model.to_owned()))
        }
        // Without a list there is nothing to check it with.
        (Some(model), []) => Ok(Some(model.to_owned())),
        (Some(model), _) => {
            let (model, listed) = (model.to_owned(), listing());
            Err(CapabilityError::Model { model, listed }.at(endpoint.url()))
        }
        (None, [only]) => Ok(Some((*only).to_owned())),
        (None, _) => Err(CapabilityError::NoModel { listed: listing() }.at(endpoint.url())),
    }
}

/// Shared by all jobs once known.
pub(crate) type Known = Arc<Capabilities>;

/// What is known of the endpoints. Each is asked before its first use, and all must be alike: a
/// document's score shall not depend on where it went.
#[derive(Debug)]
pub(crate) struct Survey {
    settings: Arc<OpenAiSettings>,
    /// Of the endpoint that answered first.
    known: OnceLock<Known>,
    /// By endpoint, whether it was asked.
    asked: Vec<OnceLock<()>>,
}

impl Survey {
    pub(crate) fn new(settings: Arc<OpenAiSettings>, endpoints: usize) -> Self {
        let asked = std::iter::repeat_with(OnceLock::new).take(endpoints).collect();
        Self { settings, known: OnceLock::new(), asked }
    }

    /// What is known, if any endpoint has answered.
    pub(crate) fn known(&self) -> Option<&Known> {
        self.known.get()
    }

    /// What the endpoint can do, asked if it was not. Several threads may ask at the same time.
    pub(crate) fn at(&self, endpoint: &Endpoint<'_>) -> Result<Known, RequestError> {
        let asked = &self.asked[endpoint.index()];
        if let (Some(known), Some(())) = (self.known.get(), asked.get()) {
            return Ok(Arc::clone(known));
        }
        let url = endpoint.url();
        let found = Capabilities::probe(&endpoint.patient(), &self.settings);
        let found = found.map_err(|error| match error {
            RequestError::Refused { .. } => {
                RequestError::Unfit { url: url.to_owned(), problem: error.into() }
            }
            error => error,
        })?;
        tracing::debug!(url, server = ?found.server, context = found.context, "asked what it can do");
        let known = self.known.get_or_init(|| Arc::new(found.clone()));
        match known.difference(&found) {
            Some(what) => Err(CapabilityError::Differs { what }.at(url)),
            None => {
                asked.get_or_init(|| ());
                Ok(Arc::clone(known))
            }
        }
    }
}

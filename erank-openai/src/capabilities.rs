//! The capabilities of the servers, probed once per endpoint.

use std::sync::{Arc, OnceLock};

use erank_core::Sampling;
use erank_core::tags::ANSWER_OPEN;
use serde_json::{Value, json};

use crate::api::{CHAT, COMPLETIONS, MODELS, TOKENIZE};
use crate::endpoint::Endpoint;
use crate::error::{CapabilityError, RequestError};
use crate::settings::{OpenAiSettings, PromptFormat, ServerKind};

/// The capabilities of a server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Capabilities {
    pub(crate) kind: ServerKind,
    /// The model's name for requests.
    pub(crate) model: Option<String>,
    /// The context length in tokens, for the prompt and the generated text together, if known.
    pub(crate) context_length: Option<usize>,
    /// The text before and after a user's message in the server's chat template, or the reason why it is
    /// unknown.
    pub(crate) chat_template: Result<(String, String), String>,
    /// Whether the server returns the log-probabilities of given token ids (`logprob_token_ids`).
    pub(crate) logprob_token_ids: bool,
    /// Whether log-probabilities are the model's own at any sampling settings. Some servers return those after
    /// the temperature, the filters or the penalties.
    pub(crate) raw_logprobs: bool,
}

impl Capabilities {
    /// Probes a server.
    fn probe(endpoint: &Endpoint<'_>, settings: &OpenAiSettings) -> Result<Self, RequestError> {
        let models = match endpoint.get(MODELS) {
            Ok(models) if models["data"].is_array() => models,
            Ok(_) => return Err(endpoint.invalid_response(MODELS, "there is no list of models")),
            // A gateway may lack the route.
            Err(RequestError::Rejected { status: 404 | 405, .. }) => Value::Null,
            Err(error) => return Err(error),
        };
        let listed: Vec<&Value> = models["data"].as_array().into_iter().flatten().collect();
        let kind = settings.server.unwrap_or_else(|| {
            match listed.first().and_then(|model| model["owned_by"].as_str()) {
                Some("llamacpp") => ServerKind::LlamaCpp,
                Some("vllm") => ServerKind::Vllm,
                Some("sglang") => ServerKind::Sglang,
                _ => ServerKind::Other,
            }
        });
        let model = select_model(kind, settings.model.as_deref(), &listed, endpoint)?;
        let entry = match listed.as_slice() {
            [only] => Some(*only),
            several => {
                several.iter().find(|entry| entry["id"].as_str() == model.as_deref()).copied()
            }
        };
        let context_length = entry.and_then(|entry| {
            let length = entry["max_model_len"].as_u64().or(entry["meta"]["n_ctx"].as_u64());
            usize::try_from(length?).ok()
        });
        let chat_template = Err("the prompt format does not request it".to_owned());
        let mut capabilities = Self {
            kind,
            model,
            context_length,
            chat_template,
            logprob_token_ids: false,
            raw_logprobs: true,
        };
        if matches!(settings.prompt_format, PromptFormat::ServerTemplate) {
            capabilities.chat_template = match capabilities.render_chat_template(endpoint) {
                Ok(template) => template,
                // The template of a reranker may reject a user's message. A whole prompt does not need it.
                Err(RequestError::Rejected { status: 400 | 404 | 405 | 422, message, .. }) => {
                    Err(message)
                }
                Err(error) => return Err(error),
            };
        }
        if settings.logprobs || matches!(settings.prompt_format, PromptFormat::TokenIds(_)) {
            capabilities.raw_logprobs = capabilities.check_generation(endpoint, settings)?;
        }
        let is_raw = !matches!(settings.prompt_format, PromptFormat::Chat);
        if is_raw && !matches!(settings.prompt_format, PromptFormat::TokenIds(_)) {
            capabilities.check_special_tokens(endpoint)?;
        }
        if kind == ServerKind::Vllm && settings.logprobs && is_raw {
            capabilities.logprob_token_ids = capabilities.probe_logprob_token_ids(endpoint)?;
        }
        Ok(capabilities)
    }

    /// Returns the first property in which two endpoints differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            ("server", self.kind == other.kind),
            ("model", self.model == other.model),
            ("context length", self.context_length == other.context_length),
            ("chat template", self.chat_template == other.chat_template),
            ("version", self.logprob_token_ids == other.logprob_token_ids),
            ("mode of log-probabilities", self.raw_logprobs == other.raw_logprobs),
        ]
        .into_iter()
        .find_map(|(property, is_equal)| (!is_equal).then_some(property))
    }

    /// Adds the model's name to the fields of a request, if there is one.
    pub(crate) fn request(&self, fields: Value) -> Value {
        let mut request = fields;
        if let (Some(model), Some(fields)) = (&self.model, request.as_object_mut()) {
            fields.insert("model".into(), model.as_str().into());
        }
        request
    }

    /// Renders the server's chat template around a marker, and splits the result at the marker. The inner error
    /// is the reason why the server has no usable template.
    fn render_chat_template(
        &self,
        endpoint: &Endpoint<'_>,
    ) -> Result<Result<(String, String), String>, RequestError> {
        const MARKER: &str = "[the user's message of erank]";
        let messages = json!([{"role": "user", "content": MARKER}]);
        let (route, rendered) = match self.kind {
            ServerKind::LlamaCpp => {
                const RENDER: &str = "/apply-template";
                let request = json!({ "messages": messages });
                (RENDER, endpoint.post(RENDER, &request)?["prompt"].take())
            }
            ServerKind::Vllm | ServerKind::Sglang => {
                let fields = json!({"messages": messages, "add_generation_prompt": true});
                let tokens = endpoint.post(TOKENIZE, &self.request(fields))?["tokens"].take();
                const RENDER: &str = "/detokenize";
                // SGLang's default omits the control tokens.
                let fields = json!({"tokens": tokens, "skip_special_tokens": false});
                let mut rendered = endpoint.post(RENDER, &self.request(fields))?;
                let field = if self.kind == ServerKind::Vllm { "prompt" } else { "text" };
                (RENDER, rendered[field].take())
            }
            ServerKind::Other => {
                return Ok(Err("it is neither llama.cpp nor vLLM nor SGLang".to_owned()));
            }
        };
        let no_text = || endpoint.invalid_response(route, "there is no text");
        let text = rendered.as_str().ok_or_else(no_text)?;
        Ok(match text.split_once(MARKER) {
            Some((prefix, suffix)) if !suffix.contains(MARKER) => {
                Ok((prefix.into(), suffix.into()))
            }
            _ => Err("the message is not in it exactly once".to_owned()),
        })
    }

    /// Generates one token, and checks that the response has its top log-probabilities and its id, as far
    /// as the settings need them. Returns whether log-probabilities are the model's own at any temperature.
    fn check_generation(
        &self,
        endpoint: &Endpoint<'_>,
        settings: &OpenAiSettings,
    ) -> Result<bool, RequestError> {
        let top_logprobs = settings.top_logprobs;
        let no_logprobs = |problem: String| {
            CapabilityError::NoLogprobs { top_logprobs, problem }.at(endpoint.url())
        };
        let needs_ids = matches!(settings.prompt_format, PromptFormat::TokenIds(_));
        let (route, mut fields) = match settings.prompt_format {
            PromptFormat::Chat => (
                CHAT,
                json!({
                    "messages": [{"role": "user", "content": "0"}],
                    "logprobs": true, "top_logprobs": 1,
                }),
            ),
            // Token id 0 exists in every vocabulary, so it is safe to send it.
            PromptFormat::TokenIds(_) => (
                COMPLETIONS,
                json!({"prompt": [0], "logprobs": top_logprobs, "return_token_ids": true}),
            ),
            _ => (COMPLETIONS, json!({"prompt": ANSWER_OPEN, "logprobs": top_logprobs})),
        };
        fields["max_tokens"] = 1.into();
        fields["temperature"] = 0.into();
        let response = endpoint.generate(route, &self.request(fields.clone())).map_err(
            |error| match error {
                RequestError::Rejected { status: 400, message, .. } => no_logprobs(message),
                RequestError::Rejected { status: 404 | 405, message, .. }
                    if route == COMPLETIONS =>
                {
                    CapabilityError::NoCompletions { problem: message }.at(endpoint.url())
                }
                error => error,
            },
        )?;
        if needs_ids && response.token_ids.is_none_or(|ids| ids.is_empty()) {
            return Err(CapabilityError::NoTokenIds.at(endpoint.url()));
        }
        let at_zero = match response.tokens.first() {
            _ if !settings.logprobs => return Ok(true),
            Some(token) if !token.top_logprobs.is_empty() => token,
            Some(_) => {
                return Err(no_logprobs("the tokens come without top log-probabilities".into()));
            }
            None => return Err(no_logprobs("the response has none".into())),
        };
        if self.kind == ServerKind::LlamaCpp {
            return Ok(true);
        }
        fields["temperature"] = 2.into();
        match endpoint.generate(route, &self.request(fields)) {
            Ok(response) => Ok(response.tokens.first().is_some_and(|at_two| {
                is_independent_of_temperature(at_zero.most_probable(), at_two.most_probable())
            })),
            Err(RequestError::Rejected { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Checks that the server adds no token to a raw prompt, as tokenizers do with a beginning-of-sequence token.
    /// The chat template has all tokens that the model expects.
    fn check_special_tokens(&self, endpoint: &Endpoint<'_>) -> Result<(), RequestError> {
        let (text, special) = match self.kind {
            ServerKind::LlamaCpp => ("content", "add_special"),
            ServerKind::Sglang => ("prompt", "add_special_tokens"),
            // A field of each request asks vLLM to add none, and another server has no such route.
            ServerKind::Vllm | ServerKind::Other => return Ok(()),
        };
        let tokens = |special_tokens: bool| {
            let fields = json!({text: "a", special: special_tokens});
            match endpoint.post(TOKENIZE, &self.request(fields)) {
                Ok(mut response) => Ok(response["tokens"].take()),
                Err(RequestError::Rejected { status: 404 | 405, .. }) => Ok(Value::Null),
                Err(error) => Err(error),
            }
        };
        match tokens(true)? == tokens(false)? {
            true => Ok(()),
            false => Err(CapabilityError::AddedTokens.at(endpoint.url())),
        }
    }

    /// Requests one top log-probability, and those of three token ids. Servers that do not support
    /// `logprob_token_ids` ignore or reject the field.
    fn probe_logprob_token_ids(&self, endpoint: &Endpoint<'_>) -> Result<bool, RequestError> {
        let fields = json!({
            "prompt": [0], "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "logprob_token_ids": [0, 1, 2],
        });
        match endpoint.generate(COMPLETIONS, &self.request(fields)) {
            Ok(response) => {
                Ok(response.tokens.first().is_some_and(|token| token.top_logprobs.len() > 2))
            }
            Err(RequestError::Rejected { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Checks that the server supports the sampling settings with erank's meaning.
    pub(crate) fn check_sampling(
        &self,
        sampling: &Sampling,
        settings: &OpenAiSettings,
    ) -> Result<(), CapabilityError> {
        let unsupported =
            |setting, problem| Err(CapabilityError::UnsupportedSampling { setting, problem });
        let is_chat = matches!(settings.prompt_format, PromptFormat::Chat);
        if is_chat && settings.logprobs && self.logprobs_depend_on(sampling) {
            return Err(CapabilityError::ChangedLogprobs);
        }
        match self.kind {
            ServerKind::Vllm => Ok(()),
            ServerKind::Sglang if sampling.repetition_penalty != 1.0 => unsupported(
                "repetition_penalty",
                "SGLang does not count the prompt's tokens; leave it at 1",
            ),
            ServerKind::Sglang => Ok(()),
            // This was checked with the server. It also counts the tokens of the prompt.
            ServerKind::LlamaCpp if sampling.frequency_penalty != 0.0 => unsupported(
                "frequency_penalty",
                "llama.cpp also counts the prompt's tokens; leave it at 0",
            ),
            ServerKind::LlamaCpp if sampling.presence_penalty != 0.0 => unsupported(
                "presence_penalty",
                "llama.cpp also counts the prompt's tokens; leave it at 0",
            ),
            ServerKind::LlamaCpp => Ok(()),
            ServerKind::Other => {
                const NOT_IN_API: &str = "OpenAI's API does not have it; if the server supports it \
                                          under vLLM's name, set OpenAiSettings::server to \
                                          ServerKind::Vllm";
                if sampling.top_k != 0 {
                    unsupported("top_k", NOT_IN_API)
                } else if sampling.min_p != 0.0 {
                    unsupported("min_p", NOT_IN_API)
                } else if sampling.repetition_penalty != 1.0 {
                    unsupported("repetition_penalty", NOT_IN_API)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Returns whether the server's log-probabilities may differ from the model's own at these settings.
    pub(crate) fn logprobs_depend_on(&self, sampling: &Sampling) -> bool {
        let mut neutral = Sampling::with_temperature(1.0);
        neutral.seed = sampling.seed;
        let is_neutral = *sampling == neutral || {
            // Servers ignore a temperature of 0, and take the most probable token.
            neutral.temperature = 0.0;
            *sampling == neutral
        };
        !self.raw_logprobs && !is_neutral
    }

    /// Returns the sampling settings of a sample as fields of a request.
    pub(crate) fn sampling_fields(&self, sampling: &Sampling, sample: usize) -> Value {
        let mut fields = json!({"temperature": sampling.temperature, "top_p": sampling.top_p});
        let Some(map) = fields.as_object_mut() else { return fields };
        if !sampling.is_greedy() {
            // Every server accepts a seed of 31 bits.
            let seed = sampling.seed.wrapping_add(sample as u64) & 0x7fff_ffff;
            map.insert("seed".into(), seed.into());
        }
        if self.kind != ServerKind::LlamaCpp {
            map.insert("frequency_penalty".into(), sampling.frequency_penalty.into());
            map.insert("presence_penalty".into(), sampling.presence_penalty.into());
        }
        if self.kind != ServerKind::Other {
            // SGLang turns the filter off with -1 only.
            let is_off = self.kind == ServerKind::Sglang && sampling.top_k == 0;
            let top_k = if is_off { (-1).into() } else { sampling.top_k.into() };
            map.insert("top_k".into(), top_k);
            map.insert("min_p".into(), sampling.min_p.into());
        }
        match self.kind {
            ServerKind::Sglang | ServerKind::Other => {}
            ServerKind::Vllm => {
                map.insert("repetition_penalty".into(), sampling.repetition_penalty.into());
            }
            ServerKind::LlamaCpp => {
                map.insert("repeat_penalty".into(), sampling.repetition_penalty.into());
                // The penalty covers the whole context; llama.cpp's default is the last 64 tokens.
                let context_length = self.context_length.unwrap_or(32_768);
                map.insert("repeat_last_n".into(), context_length.into());
            }
        }
        fields
    }
}

/// Compares the log-probability of the most probable token at the temperatures 0 and 2. Returns false if it is too near
/// 0 to tell.
fn is_independent_of_temperature(at_zero: f64, at_two: f64) -> bool {
    /// Larger than the rounding errors of one server, and smaller than the effect of the temperature.
    const TOLERANCE: f64 = 0.05;
    at_zero < -TOLERANCE && (at_zero - at_two).abs() < TOLERANCE
}

/// Selects the model's name for requests from the settings and the server's list.
fn select_model(
    kind: ServerKind,
    wanted: Option<&str>,
    listed: &[&Value],
    endpoint: &Endpoint<'_>,
) -> Result<Option<String>, RequestError> {
    let names: Vec<&str> = listed.iter().filter_map(|entry| entry["id"].as_str()).collect();
    let listing = || match names.as_slice() {
        [] => "no model".to_owned(),
        names => endpoint.sanitize(&names.join(", ")),
    };
    match (wanted, names.as_slice()) {
        // llama.cpp serves its one model under any name.
        (Some(model), names) if kind == ServerKind::LlamaCpp || names.contains(&model) => {
            Ok(Some(model.to_owned()))
        }
        // Without a list, the name cannot be checked.
        (Some(model), []) => Ok(Some(model.to_owned())),
        (Some(model), _) => {
            let (model, listed) = (model.to_owned(), listing());
            Err(CapabilityError::UnknownModel { model, listed }.at(endpoint.url()))
        }
        (None, [only]) => Ok(Some((*only).to_owned())),
        (None, _) => Err(CapabilityError::ModelNotSet { listed: listing() }.at(endpoint.url())),
    }
}

/// The capabilities of the endpoints. Each endpoint is probed before its first use. All must be equal, so
/// that a document's score does not depend on the endpoint.
#[derive(Debug)]
pub(crate) struct CapabilityCache {
    settings: Arc<OpenAiSettings>,
    /// The capabilities of the endpoint that answered first.
    capabilities: OnceLock<Arc<Capabilities>>,
    /// Whether each endpoint was probed, by index.
    probed: Vec<OnceLock<()>>,
}

impl CapabilityCache {
    /// Creates an empty cache for a number of endpoints.
    pub(crate) fn new(settings: Arc<OpenAiSettings>, endpoints: usize) -> Self {
        let probed = std::iter::repeat_with(OnceLock::new).take(endpoints).collect();
        Self { settings, capabilities: OnceLock::new(), probed }
    }

    /// Returns the capabilities, if any endpoint was probed.
    pub(crate) fn get(&self) -> Option<&Arc<Capabilities>> {
        self.capabilities.get()
    }

    /// Returns the capabilities of an endpoint, and probes it if necessary. Several threads may probe
    /// the same endpoint at the same time.
    pub(crate) fn probe(&self, endpoint: &Endpoint<'_>) -> Result<Arc<Capabilities>, RequestError> {
        let probed = &self.probed[endpoint.index()];
        if let (Some(capabilities), Some(())) = (self.capabilities.get(), probed.get()) {
            return Ok(Arc::clone(capabilities));
        }
        let url = endpoint.url();
        let found = Capabilities::probe(&endpoint.with_retries(), &self.settings);
        let found = found.map_err(|error| match error {
            RequestError::Rejected { .. } => {
                RequestError::UnusableEndpoint { url: url.to_owned(), problem: error.into() }
            }
            error => error,
        })?;
        let (server, context_length) = (found.kind, found.context_length);
        tracing::debug!(url, ?server, context_length, "endpoint probed");
        let capabilities = self.capabilities.get_or_init(|| Arc::new(found.clone()));
        match capabilities.difference(&found) {
            Some(property) => Err(CapabilityError::EndpointMismatch { property }.at(url)),
            None => {
                probed.get_or_init(|| ());
                Ok(Arc::clone(capabilities))
            }
        }
    }
}

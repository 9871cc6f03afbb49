//! The remote backend.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};

use erank_core::tags::THINK_CLOSE;
use erank_core::{BackendError, CancellationToken, Job, ScoringBackend, Sink};

use crate::capabilities::{Capabilities, CapabilityCache};
use crate::client::{Client, Shared};
use crate::control_tokens::ControlTokens;
use crate::endpoint::base_url;
use crate::error::{CapabilityError, SetupError};
use crate::generation::JobContext;
use crate::http::{HttpClient, HttpSettings};
use crate::job::{JobRunner, POLL, PendingReports, spawn_thread};
use crate::load_balancer::LoadBalancer;
use crate::prompts::{PromptBuilder, estimated_token_ends};
use crate::settings::{OpenAiSettings, PromptFormat};
use crate::tokenizer::ClientTokenizer;

/// A model behind an OpenAI-compatible HTTP API: a [`ScoringBackend`] for one or more servers with the
/// same model.
///
/// Each server is probed once, before its first document. A server that rejects the probe, fails, or differs
/// from the others is ejected for a while, and its work goes to the others. A `tracing` event reports this.
///
/// Any number of threads may use the backend. They share the connections and the concurrency limit of
/// each endpoint. A job copies the text only of the documents whose requests are open.
///
/// ```no_run
/// use erank_core::{Request, Reranker};
/// use erank_openai::{OpenAiBackend, OpenAiSettings};
///
/// let backend = OpenAiBackend::new(["http://gpu-1:8000", "http://gpu-2:8000"], OpenAiSettings::default())?;
/// let reranker = Reranker::builder(backend).build()?;
/// let ranking = reranker.rerank(&Request::new("capital of France", ["a cat", "Paris is …"]))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OpenAiBackend {
    name: String,
    settings: Arc<OpenAiSettings>,
    shared: Arc<Shared>,
    control_tokens: Arc<ControlTokens>,
}

impl OpenAiBackend {
    /// Creates a backend from the URLs of one or more servers, each with or without `/v1` at its end.
    /// Sends no request.
    ///
    /// # Errors
    /// Returns a [`SetupError`] that names the invalid URL or setting.
    pub fn new<U: AsRef<str>>(
        endpoints: impl IntoIterator<Item = U>,
        settings: OpenAiSettings,
    ) -> Result<Self, SetupError> {
        settings.validate()?;
        let urls: Vec<String> =
            endpoints.into_iter().map(|url| base_url(url.as_ref())).collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(SetupError::NoEndpoint);
        }
        let http_settings = HttpSettings {
            connect_timeout: settings.connect_timeout,
            request_timeout: settings.request_timeout,
            max_idle_connections: settings.max_concurrency.saturating_mul(urls.len()),
            root_certificates: settings.root_certificates.as_deref(),
        };
        let http = HttpClient::new(&http_settings, settings.api_key.clone())?;
        let control_tokens = ControlTokens::new(&settings.control_tokens).map_err(|_| {
            let (value, expected) = (settings.control_tokens.len().to_string(), "give fewer");
            SetupError::InvalidSetting { name: "control_tokens", value, expected }
        })?;
        let settings = Arc::new(settings);
        let capabilities = CapabilityCache::new(Arc::clone(&settings), urls.len());
        let balancer = LoadBalancer::new(urls, settings.max_concurrency);
        Ok(Self {
            name: settings.model.clone().unwrap_or_else(|| "openai".into()),
            shared: Arc::new(Shared::new(http, balancer, capabilities, settings.max_attempts)),
            settings,
            control_tokens: Arc::new(control_tokens),
        })
    }

    /// Returns the capabilities of the servers, probed on the first call that succeeds. `None` if
    /// cancelled.
    fn capabilities(
        &self,
        client: &Client,
        cancellation: &CancellationToken,
    ) -> Result<Option<Arc<Capabilities>>, BackendError> {
        if let Some(capabilities) = self.shared.known_capabilities() {
            return Ok(Some(Arc::clone(capabilities)));
        }
        let client = client.clone();
        let (sender, receiver) = mpsc::channel();
        spawn_thread("erank-probe", move || {
            // The receiver is gone after a cancellation.
            let _ = sender.send(client.capabilities());
        })?;
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(probed) => return Ok(Some(probed?)),
                Err(RecvTimeoutError::Timeout) if cancellation.is_cancelled() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(BackendError::Failed("the probe's thread panicked".into()));
                }
            }
        }
    }

    /// Runs a job. Returns false if it was cancelled.
    fn run(
        &self,
        client: &Client,
        job: &Job<'_>,
        pending: &mut PendingReports,
        sink: &mut dyn Sink,
    ) -> Result<bool, BackendError> {
        let is_chat = matches!(self.settings.prompt_format, PromptFormat::Chat);
        if is_chat && job.prompt.is_whole() {
            return Err(CapabilityError::ChatWholePrompt.into());
        }
        if is_chat && !job.options.mode.is_reason() {
            return Err(CapabilityError::ChatAnswerOnly.into());
        }
        let Some(server) = self.capabilities(client, &job.cancellation)? else {
            return Ok(false);
        };
        server.check_sampling(&job.options.sampling, &self.settings)?;
        let (settings, control_tokens) = (&self.settings, &self.control_tokens);
        let builder =
            PromptBuilder::new(job.prompt, job.options, settings, &server, control_tokens)?;
        let context = Arc::new(JobContext {
            client: client.clone(),
            server: Arc::clone(&server),
            settings: Arc::clone(settings),
            control_tokens: Arc::clone(control_tokens),
            thought_end_id: match &settings.prompt_format {
                PromptFormat::TokenIds(tokenizer) => thought_end_id(&**tokenizer),
                _ => None,
            },
            format: job.prompt.answers().clone(),
            options: job.options,
            label_token_ids: OnceLock::new(),
        });
        JobRunner::new(context, builder, job, pending).run(sink)
    }
}

/// Returns the id of the token that ends a thought, if it is one token.
fn thought_end_id(tokenizer: &dyn ClientTokenizer) -> Option<u32> {
    match tokenizer.encode_trusted(THINK_CLOSE).as_deref() {
        Ok([id]) => Some(*id),
        _ => None,
    }
}

impl ScoringBackend for OpenAiBackend {
    /// Returns the model's name from the settings, or `openai`.
    fn name(&self) -> &str {
        &self.name
    }

    /// Scores the documents of a job, as the trait specifies.
    ///
    /// After a cancellation the call returns at once. Threads that are resolving a name or connecting end
    /// within [`OpenAiSettings::connect_timeout`].
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let _span = tracing::debug_span!("score", documents = job.documents.len()).entered();
        let client = Client::new(&self.shared);
        let mut pending = PendingReports::new(job);
        match self.run(&client, job, &mut pending, sink) {
            Ok(true) => client.finish(),
            Ok(false) => {
                client.cancel();
                pending.report_cancelled(sink);
            }
            Err(error) => {
                client.cancel();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the ends of tokens, from the client's tokenizer or else by
    /// [`OpenAiSettings::bytes_per_token`]. Sends no request.
    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        match &self.settings.prompt_format {
            PromptFormat::TokenIds(tokenizer) => {
                tokenizer.token_ends(text, max_tokens).map_err(BackendError::Failed)
            }
            _ => Ok(estimated_token_ends(text, max_tokens, self.settings.bytes_per_token)),
        }
    }
}

impl std::fmt::Debug for OpenAiBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAiBackend")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("capabilities", &self.shared.known_capabilities())
            .finish_non_exhaustive()
    }
}

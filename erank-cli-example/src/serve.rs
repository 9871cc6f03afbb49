//! `erank serve`: reranking over HTTP.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use erank_candle::CandleBackend;
use erank_core::{ConfigError, PromptFamily, Reranker, ScoringBackend, ScoringOptions};
use erank_serve::{ApiKeys, EngineMetric, MetricKind, ServerSettings, Service, Settings};
use tokio::net::TcpListener;

use crate::args::{Backend, LogLevel, ServeArguments, Unscored};
use crate::error::{CommandError, Exit};
use crate::model;
use crate::text;

/// The names of this machine for itself.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The number of lines of the log that wait to be written.
const LOG_LINES: usize = 1024;

/// The environment variable with API keys, separated by commas.
const KEYS_VARIABLE: &str = "ERANK_API_KEYS";

pub(crate) fn run(arguments: &ServeArguments) -> Result<Exit, CommandError> {
    let log = Log::start(arguments.log);
    let exit = run_with_log(arguments, &log);
    log.wait();
    exit
}

fn run_with_log(arguments: &ServeArguments, log: &Log) -> Result<Exit, CommandError> {
    arguments.remote.check()?;
    let service = if arguments.remote.backend == Backend::Candle {
        let local = model::local(&arguments.model)?;
        let settings = settings(arguments, local.family, local.limits)?;
        check(&settings, &local.backend)?;
        let backend = Arc::new(local.backend);
        let engine = Arc::clone(&backend);
        Service::with_engine_metrics(backend, settings, move || engine_metrics(&engine))
    } else {
        let chosen = model::choose(&arguments.model, &arguments.remote, None)?;
        let settings = settings(arguments, chosen.family, chosen.limits)?;
        check(&settings, &*chosen.backend)?;
        Service::new(chosen.backend, settings)
    };
    let failed = |source| CommandError::Serve { address: arguments.listen, source };
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    let left = runtime.block_on(serve(arguments, &service, log)).map_err(failed)?;
    // A cancelled computation ends at the backend's next step. The process does not wait for it.
    runtime.shutdown_background();
    match left {
        0 => log.note("Stopped. All requests are answered."),
        left => log.note(&format!("Stopped. {left} connections were closed before their end.")),
    }
    Ok(Exit::Done)
}

async fn serve(arguments: &ServeArguments, service: &Service, log: &Log) -> io::Result<usize> {
    let listener = TcpListener::bind(arguments.listen).await?;
    // Programs that start the service read its address from this line. The service also runs if nobody reads it.
    let address = listener.local_addr()?;
    let _ = writeln!(io::stdout(), "erank listens on http://{address}");
    let mut limits = ServerSettings::default();
    limits.max_connections = arguments.max_connections.get();
    limits.shutdown_time = arguments.shutdown_timeout;
    let shutdown = async {
        shutdown_signal().await;
        service.stop();
        log.note("Stopping. Press Ctrl-C again to quit at once.");
        tokio::spawn(async {
            shutdown_signal().await;
            std::process::exit(Exit::Interrupted as i32);
        });
        tokio::time::sleep(arguments.drain_time).await;
    };
    erank_serve::serve(listener, service.router(), limits, shutdown).await
}

/// Returns the service's settings for a model.
fn settings(
    arguments: &ServeArguments,
    family: PromptFamily,
    limits: ScoringOptions,
) -> Result<Settings, CommandError> {
    let mut settings = Settings::default();
    settings.template = family.template();
    arguments.thinking.check(settings.template.answers())?;
    settings.instruction = Some(arguments.goal.instruction(&settings.template).to_owned());
    settings.options = limits;
    settings.options.mode = arguments.thinking.mode(limits.mode, settings.template.answers());
    settings.windows = arguments.long_documents.windows(limits.max_document_tokens);
    settings.aliases.clone_from(&arguments.alias);
    settings.api_keys = api_keys(arguments)?;
    let is_local = arguments.listen.ip().to_canonical().is_loopback();
    if settings.api_keys.is_empty() && !is_local {
        text::note(
            "There is no API key, so everybody who reaches the address can use the service.",
        );
    }
    settings.allowed_hosts.clone_from(&arguments.allowed_host);
    if settings.allowed_hosts.is_empty() && is_local {
        settings.allowed_hosts = LOOPBACK_NAMES.map(str::to_owned).to_vec();
        // Another loopback address, such as 127.0.0.2.
        settings.allowed_hosts.push(arguments.listen.to_string());
    }
    settings.unscored = match arguments.unscored {
        Unscored::Last => erank_serve::Unscored::Last,
        Unscored::Omit => erank_serve::Unscored::Omit,
        Unscored::Error => erank_serve::Unscored::Error,
    };
    settings.max_running = arguments.max_running.get();
    settings.max_waiting = arguments.max_waiting;
    settings.max_documents = arguments.max_documents.get();
    settings.request_time = arguments.timeout;
    Ok(settings)
}

/// Checks the options of a request that sets none, so that a mistake ends the command.
fn check(settings: &Settings, backend: &dyn ScoringBackend) -> Result<(), ConfigError> {
    let mut builder =
        Reranker::builder(backend).template(settings.template.clone()).options(settings.options);
    if let Some(windows) = settings.windows {
        builder = builder.windows(windows);
    }
    builder.build().map(drop)
}

/// Reads the API keys from the file and the environment.
///
/// A source without a key is an error, because the service would be open to everybody. An empty variable is one, too: a
/// container gets it if the variable that it is set from is missing.
fn api_keys(arguments: &ServeArguments) -> Result<ApiKeys, CommandError> {
    let unusable = |what: &str, problem: &str| {
        let source = io::Error::new(io::ErrorKind::InvalidData, problem);
        CommandError::Read { what: what.to_owned(), source }
    };
    let mut keys: Vec<String> = Vec::new();
    if let Some(value) = std::env::var_os(KEYS_VARIABLE) {
        let what = format!("the environment variable {KEYS_VARIABLE}");
        let value = value.into_string().map_err(|_| unusable(&what, "it is not in UTF-8"))?;
        if ApiKeys::new(value.split(',')).is_empty() {
            let problem = "it holds no API key; unset it to serve without keys";
            return Err(unusable(&what, problem));
        }
        keys.extend(value.split(',').map(str::to_owned));
    }
    if let Some(path) = &arguments.api_keys {
        let what = text::path(path);
        let file = std::fs::read_to_string(path);
        let file = file.map_err(|source| CommandError::Read { what: what.clone(), source })?;
        // Editors on Windows begin a file with a byte order mark.
        let lines = file.strip_prefix('\u{feff}').unwrap_or(&file).lines();
        let of_file: Vec<&str> = lines.filter(|line| !line.trim().starts_with('#')).collect();
        if ApiKeys::new(&of_file).is_empty() {
            return Err(unusable(&what, "it holds no API key"));
        }
        keys.extend(of_file.into_iter().map(str::to_owned));
    }
    Ok(ApiKeys::new(keys))
}

/// Returns the counters of the local engine.
fn engine_metrics(backend: &CandleBackend) -> Vec<EngineMetric> {
    use MetricKind::{Counter, Gauge};
    let now = backend.statistics();
    let metric = |name, help, kind, value| EngineMetric { name, help, kind, value };
    vec![
        metric("steps", "Steps of the running batch", Counter, now.steps),
        metric("prompt_tokens", "Computed prompt tokens", Counter, now.prompt_tokens),
        metric(
            "cached_tokens",
            "Prompt tokens found in the prefix cache",
            Counter,
            now.cached_tokens,
        ),
        metric("generated_tokens", "Generated tokens", Counter, now.generated_tokens),
        metric("preemptions", "Sequences that had to free their blocks", Counter, now.preemptions),
        metric("running_sequences", "Sequences in the batch", Gauge, now.running as u64),
        metric("waiting_sequences", "Sequences that wait", Gauge, now.waiting as u64),
        metric("used_blocks", "Cache blocks of running sequences", Gauge, now.used_blocks as u64),
        metric("prefix_blocks", "Cache blocks of prefixes alone", Gauge, now.prefix_blocks as u64),
        metric("cache_blocks", "All cache blocks", Gauge, now.total_blocks as u64),
    ]
}

/// The lines for standard error, which a thread of its own writes.
///
/// A reader of standard error that has stopped reading therefore delays no request. The lines beyond [`LOG_LINES`] are
/// lost then.
#[derive(Clone)]
struct Log(mpsc::SyncSender<Entry>);

enum Entry {
    Text(Vec<u8>),
    /// All earlier lines are written.
    Mark(mpsc::Sender<()>),
}

impl Log {
    fn start(level: LogLevel) -> Self {
        let (sender, entries) = mpsc::sync_channel(LOG_LINES);
        thread::spawn(move || {
            for entry in entries {
                match entry {
                    Entry::Text(text) => drop(io::stderr().write_all(&text)),
                    Entry::Mark(written) => drop(written.send(())),
                }
            }
        });
        let level = match level {
            LogLevel::Error => tracing_subscriber::filter::LevelFilter::ERROR,
            LogLevel::Warn => tracing_subscriber::filter::LevelFilter::WARN,
            LogLevel::Info => tracing_subscriber::filter::LevelFilter::INFO,
            LogLevel::Debug => tracing_subscriber::filter::LevelFilter::DEBUG,
        };
        let log = Self(sender);
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(io::stderr().is_terminal())
            .with_max_level(level)
            .init();
        log
    }

    fn note(&self, message: &str) {
        let line = format!("{}\n", text::block(message));
        let _ = self.0.try_send(Entry::Text(line.into_bytes()));
    }

    /// Waits until the lines are written, for a second at most.
    fn wait(&self) {
        let (written, is_written) = mpsc::channel();
        if self.0.try_send(Entry::Mark(written)).is_ok() {
            let _ = is_written.recv_timeout(Duration::from_secs(1));
        }
    }
}

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(Entry::Text(text.to_vec()));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for Ctrl-C, or for SIGTERM, which service managers and containers send.
async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

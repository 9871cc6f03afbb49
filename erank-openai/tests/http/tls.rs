//! TLS with a private certificate authority.
//!
//! `tls/` holds the certificate of an authority, and a certificate for localhost with its key. They were
//! made with openssl for this test alone, and are valid for a hundred years.

use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use erank_core::BackendError;
use erank_openai::{ApiKey, OpenAiBackend, OpenAiSettings};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, read};
use crate::{answer_only, chain, documents, score, settings};

/// Starts a server with the certificate, and returns its port.
fn serve() -> u16 {
    let certificate = CertificateDer::from(include_bytes!("tls/leaf.der").as_slice());
    let key = PrivatePkcs8KeyDer::from(include_bytes!("tls/leaf.key.der").as_slice());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("a certificate with its key");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            thread::spawn(move || {
                let mut reader = BufReader::new(StreamOwned::new(connection, stream));
                while let Some(request) = read(&mut reader) {
                    let reaction = Engine::new(Shape::Vllm).react(&request);
                    let Reaction::Reply { status, body, .. } = reaction else { return };
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
                    if reader.get_mut().write_all((head + &body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn backend(settings: OpenAiSettings) -> OpenAiBackend {
    let url = format!("https://localhost:{}", serve());
    OpenAiBackend::new([url], settings).expect("settings")
}

#[test]
fn private_authority_in_settings_is_trusted() {
    let settings = settings(|s| {
        s.root_certificates = Some(include_str!("tls/ca.pem").into());
        s.api_key = Some(ApiKey::new("s3cret"));
    });
    let outcomes = score(&backend(settings), &documents([7, 10]), answer_only()).expect("scores");
    assert_eq!((outcomes.answer(0).0, outcomes.answer(1).0), (7, 10));
}

#[test]
fn unknown_authority_is_not_trusted() {
    let backend = backend(settings(|s| s.max_attempts = 1));
    let error = score(&backend, &documents([7]), answer_only()).err().expect("refused");
    assert!(matches!(error, BackendError::Unavailable(_)));
    assert!(chain(&error).contains("certificate"), "{}", chain(&error));
}

//! Tests of the service through HTTP clients.

mod abuse;
mod common;
mod routes;

//! The parts of the `erank` command that read untrusted input. They are a library so that the fuzz targets can call
//! them; the command itself is in `main.rs`. The library is not a stable interface.

pub mod input;
pub mod text;

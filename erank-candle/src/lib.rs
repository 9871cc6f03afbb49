//! The local backend of erank: ERank's model on candle, in your own process.

mod error;

pub use error::LoadError;

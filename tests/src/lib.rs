//! What several tests share.

pub mod random_model;

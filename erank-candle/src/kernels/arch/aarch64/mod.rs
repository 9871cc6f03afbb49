//! Instruction sets of 64-bit ARM processors. There are none yet, so ARM runs the portable set.
//!
//! A set for NEON, with or without BF16 products, is a file `neon.rs` here that implements
//! [`Isa`](super::isa::Isa), and a line in the list of [`arch/mod.rs`](super).

//! What several measurements share.

pub mod ceilings;
pub mod checkpoint;
pub mod memory;
pub mod words;

/// The median of some numbers, the upper one of two in the middle; NaN of none.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

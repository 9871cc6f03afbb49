//! Code that several measurements share.

pub mod checkpoint;
pub mod memory;
pub mod roofline;
pub mod words;

/// Returns the median of some numbers. If their count is even, the median is the upper of the two middle
/// numbers. If there are no numbers, the median is NaN.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

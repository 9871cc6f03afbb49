//! The confidence interval of a mean difference.

use erank_core::evaluation::Comparison;
use serde::Serialize;

/// A 95 % confidence interval by Student's t distribution. It excludes 0 if the paired t-test has p < 0.05.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    /// Returns the interval of the mean difference. `None` if there are fewer than two queries, or if all differences
    /// are equal, as for [`Comparison::t_test`].
    pub(super) fn of(comparison: &Comparison) -> Option<Self> {
        let degrees_of_freedom = comparison.t_test()?.degrees_of_freedom;
        let mean = comparison.mean()?;
        let squares: f64 =
            comparison.differences().map(|(_, difference)| (difference - mean).powi(2)).sum();
        let (nu, count) = (degrees_of_freedom as f64, comparison.differences().len() as f64);
        let half = critical_value(degrees_of_freedom) * (squares / nu / count).sqrt();
        Some(Self { low: mean - half, high: mean + half })
    }
}

/// Returns the `t` that Student's distribution exceeds, on either side, with a probability of 0.05. The error is at
/// most 5e-6.
fn critical_value(degrees_of_freedom: usize) -> f64 {
    /// The values for 1 to 10 degrees of freedom.
    const FIRST: [f64; 10] = [
        12.706_204_7,
        4.302_652_7,
        3.182_446_3,
        2.776_445_1,
        2.570_581_8,
        2.446_911_9,
        2.364_624_3,
        2.306_004_1,
        2.262_157_2,
        2.228_138_9,
    ];
    if let Some(value) = degrees_of_freedom.checked_sub(1).and_then(|index| FIRST.get(index)) {
        return *value;
    }
    // The normal distribution's value, and the terms of Fisher and Cornish's expansion (Abramowitz and Stegun, 26.7.5).
    let z: f64 = 1.959_963_984_540_054;
    let power = |exponent| z.powi(exponent);
    let terms = [
        z,
        (power(3) + z) / 4.0,
        (5.0 * power(5) + 16.0 * power(3) + 3.0 * z) / 96.0,
        (3.0 * power(7) + 19.0 * power(5) + 17.0 * power(3) - 15.0 * z) / 384.0,
        (79.0 * power(9) + 776.0 * power(7) + 1482.0 * power(5) - 1920.0 * power(3) - 945.0 * z)
            / 92_160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| sum / degrees_of_freedom as f64 + term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use erank_core::metrics::Measure;
    use erank_core::trec::{Qrels, Run};

    #[test]
    fn critical_value_equals_tables() {
        for (degrees_of_freedom, expected) in [
            (1, 12.706_205),
            (5, 2.570_582),
            (10, 2.228_139),
            (11, 2.200_985),
            (20, 2.085_963),
            (42, 2.018_082),
            (999, 1.962_341),
        ] {
            let value = critical_value(degrees_of_freedom);
            assert!((value - expected).abs() < 6e-6, "{degrees_of_freedom}: {value}");
        }
    }

    #[test]
    fn interval_has_the_mean_in_its_middle() {
        let values = |run: &str| {
            let qrels = Qrels::read("1 0 a 1\n2 0 a 1\n3 0 a 1\n".as_bytes()).expect("qrels");
            let run = Run::read(run.as_bytes()).expect("a run");
            Measure::reciprocal_rank(10).evaluate(&qrels, &run)
        };
        let before = values("1 Q0 a 1 1 x\n");
        let after = values("1 Q0 a 1 1 x\n2 Q0 a 1 1 x\n3 Q0 b 1 9 x\n3 Q0 a 2 8 x\n");
        // The differences are 0, 1 and 0.5: the standard error is √(1/12).
        let comparison = Comparison::between(&before, &after).expect("paired");
        let Interval { low, high } = Interval::of(&comparison).expect("different values");
        assert!((low - (0.5 - 4.302_653 / 12f64.sqrt())).abs() < 1e-5, "{low}");
        assert!((high - (0.5 + 4.302_653 / 12f64.sqrt())).abs() < 1e-5, "{high}");
        let same = Comparison::between(&before, &before).expect("paired");
        assert_eq!(Interval::of(&same), None);
    }
}

//! YaRN, the scaling of rotary position embeddings beyond the positions that a model was trained for.

/// The parameters of YaRN ([arXiv 2309.00071](https://arxiv.org/abs/2309.00071)), by their names in transformers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Yarn {
    /// The factor by which positions are extended.
    pub factor: f64,
    /// The factor of all cosines and sines.
    pub attention_factor: f64,
    /// Dimensions that make at least this number of rotations over the original positions keep their frequencies.
    pub beta_fast: f64,
    /// Dimensions that make at most this number of rotations get frequencies divided by `factor`.
    pub beta_slow: f64,
    /// Number of positions that the model was trained for before the extension.
    pub original_max_position_embeddings: usize,
    /// Whether the bounds of the range of blended frequencies are rounded to integers.
    pub truncate: bool,
}

impl Yarn {
    /// Returns the `attention_factor` of files that name none.
    pub(crate) fn default_attention_factor(factor: f64, scale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
    }

    /// Returns the number of positions after the extension.
    pub(crate) fn max_positions(&self) -> usize {
        // A float beyond the range becomes the largest integer, and NaN becomes 0.
        (self.original_max_position_embeddings as f64 * self.factor) as usize
    }

    /// Returns the reason why the rotary embedding cannot be computed, if there is one.
    pub(super) fn problem(&self) -> Option<String> {
        for (name, value) in [
            ("factor", self.factor),
            ("attention_factor", self.attention_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Some(format!(
                    "{name} of YaRN is {value}; it must be a finite number above 0"
                ));
            }
        }
        let positions = self.original_max_position_embeddings;
        (positions == 0).then(|| "original_max_position_embeddings of YaRN is 0".into())
    }

    /// Returns the inverse frequencies of a head of `dim` dimensions, rounded as in transformers. `theta` is the base,
    /// and `frequencies` are `theta^(2i / dim)`.
    pub(crate) fn inverse_frequencies(
        &self,
        dim: usize,
        theta: f64,
        frequencies: &[f32],
    ) -> Vec<f32> {
        // The dimension that makes this number of rotations over the original positions.
        let dimension = |rotations: f64| {
            let positions = self.original_max_position_embeddings as f64;
            let wavelengths = positions / (rotations * 2.0 * std::f64::consts::PI);
            dim as f64 * wavelengths.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001; // as in transformers, against a division by zero
        }
        let factor = self.factor as f32;
        let inverse = |(index, frequency): (usize, &f32)| {
            let ramp = (index as f32 - low as f32) / (high - low) as f32;
            let kept = 1.0 - ramp.clamp(0.0, 1.0);
            let (extrapolated, interpolated) = (1.0 / frequency, 1.0 / (factor * frequency));
            interpolated * (1.0 - kept) + extrapolated * kept
        };
        frequencies.iter().enumerate().map(inverse).collect()
    }
}

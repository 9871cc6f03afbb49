//! The rotary position embedding (RoPE), computed as in transformers.

use crate::checkpoint::config::Config;

/// The frequencies and the scale of the rotary embedding of a model.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// One for each pair of dimensions of a head.
    inverse_frequencies: Vec<f32>,
    /// The factor of all cosines and sines.
    scale: f32,
}

impl RotaryEmbedding {
    /// Computes `theta^(−2i / head_dim)`, scaled as the configuration says.
    pub fn new(config: &Config) -> Self {
        let (dim, theta) = (config.head_dim, config.rope_theta);
        // The exponents and the powers are rounded to F32, as in transformers.
        let power = |i: usize| theta.powf(f64::from((2 * i) as f32 / dim as f32)) as f32;
        let powers: Vec<f32> = (0..dim / 2).map(power).collect();
        match &config.yarn {
            Some(yarn) => Self {
                inverse_frequencies: yarn.inverse_frequencies(dim, theta, &powers),
                scale: yarn.attention_factor as f32,
            },
            None => Self {
                inverse_frequencies: powers.into_iter().map(|power| 1.0 / power).collect(),
                scale: 1.0,
            },
        }
    }

    /// Returns half of the dimensions of a head.
    pub(crate) fn half_dim(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Appends the cosines and the sines of a position, `head_dim / 2` each.
    pub fn rotate(&self, position: usize, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        // The product is rounded to F32, as in transformers.
        let angles = self.inverse_frequencies.iter().map(|frequency| position as f32 * frequency);
        cos.extend(angles.clone().map(|angle| angle.cos() * self.scale));
        sin.extend(angles.map(|angle| angle.sin() * self.scale));
    }
}

//! The choice of the next token.
//!
//! The steps have vLLM's order: repetition, frequency and presence penalties; temperature; `min_p`; `top_k`; `top_p`;
//! then a draw. Tokens that tie at the limit of `top_k` all stay. The sampler is our own, because results
//! must have the same bits in any batch. So a draw depends only on the seed, the sample and the position.

use std::collections::HashMap;

use erank_core::Sampling;

/// Chooses a token id by `logits` after `prompt` and the `generated` tokens. The draw depends only on the
/// seed, the sample's number and the number of generated tokens.
pub(super) fn sample(
    logits: &[f32],
    sampling: &Sampling,
    prompt: &[u32],
    generated: &[u32],
    sample: usize,
) -> u32 {
    let mut logits = logits.to_vec();
    if sampling.has_penalties() {
        penalize(&mut logits, sampling, prompt, generated);
    }
    if sampling.is_greedy() {
        return most_probable(&logits);
    }
    let draw = uniform(sampling.seed, sample as u64, generated.len() as u64);
    let candidates = candidates(&logits, sampling);
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = draw * total;
    for (id, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    // Rounding may leave a remainder, and NaN logits leave no candidate.
    candidates.last().map_or_else(|| most_probable(&logits), |(id, _)| *id)
}

fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn penalize(logits: &mut [f32], sampling: &Sampling, prompt: &[u32], generated: &[u32]) {
    let mut counts: HashMap<u32, u32> = prompt.iter().map(|id| (*id, 0)).collect();
    for id in generated {
        *counts.entry(*id).or_default() += 1;
    }
    for (id, count) in counts {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        match *logit > 0.0 {
            true => *logit /= sampling.repetition_penalty,
            false => *logit *= sampling.repetition_penalty,
        }
        *logit -= sampling.frequency_penalty * count as f32;
        if count > 0 {
            *logit -= sampling.presence_penalty;
        }
    }
}

/// Returns the tokens that may be drawn, with their unnormalised probabilities.
fn candidates(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(sampling.temperature);
    let weight = |logit: f32| ((f64::from(logit) - f64::from(largest)) / temperature).exp();
    let ids = (0..logits.len() as u32).zip(logits);
    let mut candidates: Vec<(u32, f64)> = ids
        .map(|(id, logit)| (id, weight(*logit)))
        // The most probable token has the weight 1.
        .filter(|(_, weight)| *weight > 0.0 && *weight >= f64::from(sampling.min_p))
        .collect();

    let top_k = sampling.top_k as usize;
    let best_first = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if (1..candidates.len()).contains(&top_k) {
        let (_, (_, limit), _) = candidates.select_nth_unstable_by(top_k - 1, best_first);
        let limit = *limit;
        candidates.retain(|(_, weight)| *weight >= limit);
    }
    if sampling.top_p < 1.0 {
        candidates.sort_unstable_by(best_first);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut reached = 0.0;
        let kept = candidates
            .iter()
            .take_while(|(_, weight)| {
                let is_wanted = reached < f64::from(sampling.top_p) * total;
                reached += weight;
                is_wanted
            })
            .count();
        candidates.truncate(kept.max(1));
    } else {
        // The selection left the candidates in an arbitrary order.
        candidates.sort_unstable_by_key(|(id, _)| *id);
    }
    candidates
}

/// Returns a pseudo-random number in `[0, 1)` from a seed, a sample's number and a position, by one round of
/// SplitMix64's mixing function (Steele et al., OOPSLA 2014) for each.
fn uniform(seed: u64, sample: u64, position: u64) -> f64 {
    let mix = |state: u64, input: u64| {
        let mut z = (state ^ input).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let bits = mix(mix(mix(0, seed), sample), position);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Computes vLLM's semantics step by step over whole arrays of probabilities.
    fn reference(
        logits: &[f32],
        sampling: &Sampling,
        prompt: &[u32],
        generated: &[u32],
    ) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        for (id, logit) in logits.iter_mut().enumerate() {
            let count = generated.iter().filter(|other| **other == id as u32).count() as f64;
            if count > 0.0 || prompt.contains(&(id as u32)) {
                let penalty = f64::from(sampling.repetition_penalty);
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            *logit -= f64::from(sampling.frequency_penalty) * count;
            *logit -= f64::from(sampling.presence_penalty) * f64::from(u8::from(count > 0.0));
            *logit /= f64::from(sampling.temperature);
        }
        let softmax = |logits: &[f64]| -> Vec<f64> {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            logits.iter().map(|logit| (logit - largest).exp() / total).collect()
        };
        let probabilities = softmax(&logits);
        let best = probabilities.iter().copied().fold(0.0, f64::max);
        for (logit, probability) in logits.iter_mut().zip(&probabilities) {
            if *probability < f64::from(sampling.min_p) * best {
                *logit = f64::NEG_INFINITY;
            }
        }
        if sampling.top_k > 0 && (sampling.top_k as usize) < logits.len() {
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let limit = sorted[sampling.top_k as usize - 1];
            logits.iter_mut().filter(|l| **l < limit).for_each(|l| *l = f64::NEG_INFINITY);
        }
        // Drops tokens in ascending order while their sum does not exceed 1 − top_p, but keeps the last one.
        let probabilities = softmax(&logits);
        let mut ascending: Vec<usize> = (0..logits.len()).collect();
        ascending.sort_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]).then(b.cmp(a)));
        let mut sum = 0.0;
        for id in &ascending[..ascending.len() - 1] {
            sum += probabilities[*id];
            if sum <= 1.0 - f64::from(sampling.top_p) {
                logits[*id] = f64::NEG_INFINITY;
            }
        }
        softmax(&logits)
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        let shares = prop_oneof![Just(1.0f32), 0.05f32..0.99];
        let penalty = prop_oneof![Just(0.0f32), -1.5f32..1.5];
        (0.2f32..2.0, shares, 0u32..12, prop_oneof![Just(0.0f32), 0.01f32..0.6])
            .prop_flat_map(move |first| {
                (
                    Just(first),
                    prop_oneof![Just(1.0f32), 0.7f32..1.6],
                    penalty.clone(),
                    penalty.clone(),
                )
            })
            .prop_map(|((temperature, top_p, top_k, min_p), repetition, frequency, presence)| {
                let mut sampling = Sampling::with_temperature(temperature);
                (sampling.top_p, sampling.top_k, sampling.min_p) = (top_p, top_k, min_p);
                sampling.repetition_penalty = repetition;
                (sampling.frequency_penalty, sampling.presence_penalty) = (frequency, presence);
                sampling
            })
    }

    proptest! {
        #[test]
        fn candidates_match_the_reference(
            logits in proptest::collection::vec(-6.0f32..6.0, 1..24),
            sampling in settings(),
            prompt in proptest::collection::vec(0u32..24, 0..5),
            generated in proptest::collection::vec(0u32..24, 0..5),
        ) {
            let expected = reference(&logits, &sampling, &prompt, &generated);
            let mut penalized = logits.clone();
            penalize(&mut penalized, &sampling, &prompt, &generated);
            let candidates = candidates(&penalized, &sampling);
            let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
            let mut given = vec![0.0; logits.len()];
            candidates.iter().for_each(|(id, weight)| given[*id as usize] = weight / total);
            for (id, (given, expected)) in given.iter().zip(&expected).enumerate() {
                // The sampler computes penalties in F32.
                prop_assert!((given - expected).abs() < 1e-4, "{}: {} {}", id, given, expected);
            }
        }
    }

    #[test]
    fn sample_draws_by_probability() {
        let logits = [0.5f32, 0.2, 0.1, 0.2].map(f32::ln);
        let mut sampling = Sampling::with_temperature(1.0);
        let mut counts = [0; 4];
        let draws = 40_000;
        for seed in 0..draws {
            sampling.seed = seed;
            counts[sample(&logits, &sampling, &[], &[], 0) as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([0.5, 0.2, 0.1, 0.2]) {
            let share = f64::from(*count) / draws as f64;
            // The tolerance is five standard deviations.
            assert!((share - expected).abs() < 5.0 * (expected / draws as f64).sqrt(), "{share}");
        }
        // Seed, sample and position each change the number.
        let numbers: Vec<f64> = (0..3)
            .flat_map(|seed| (0..3).flat_map(move |s| (0..3).map(move |p| uniform(seed, s, p))))
            .collect();
        for (index, number) in numbers.iter().enumerate() {
            assert!((0.0..1.0).contains(number) && !numbers[..index].contains(number));
        }
    }

    #[test]
    fn sample_at_temperature_zero_takes_the_most_probable_after_penalties() {
        let mut sampling = Sampling::default();
        assert_eq!(sample(&[1.0, 3.0, 3.0], &sampling, &[], &[1], 0), 1);
        sampling.presence_penalty = 0.1;
        assert_eq!(sample(&[1.0, 3.0, 3.0], &sampling, &[1], &[1], 0), 2);
        // NaN logits still give a token; its log-probability becomes an error later.
        let hot = Sampling::with_temperature(1.0);
        assert_eq!(sample(&[f32::NAN; 3], &hot, &[], &[], 0), 0);
    }
}

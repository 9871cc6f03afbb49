//! Fusion of the first stage's scores with the reranker's, and the order of scores.

/// The way to combine the first stage's scores with the reranker's.
///
/// Both lists cover the same documents. These are the documents of one query that have an answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Fusion {
    /// Ignores the first stage. The score is the reranker's.
    #[default]
    None,
    /// `w·z(first stage) + (1 − w)·z(reranker)`, each list standardised by its mean and population
    /// standard deviation (arXiv 2509.00520, appendix G). A list whose scores are all equal
    /// contributes 0.
    ZScore {
        /// Weight `w` of the first stage, in `[0, 1]`.
        first_stage_weight: f64,
    },
    /// `1 / (k + rank in the first stage) + 1 / (k + rank by the reranker)`, ranks from 1
    /// (reciprocal rank fusion, Cormack et al., SIGIR 2009).
    ReciprocalRank {
        /// The constant `k`, positive; the paper's is 60.
        k: f64,
    },
}

impl Fusion {
    /// Returns z-score fusion with the paper's weight of 0.2 for the first stage.
    pub fn hybrid() -> Self {
        Self::ZScore { first_stage_weight: 0.2 }
    }

    /// Returns reciprocal rank fusion with `k` = 60.
    pub fn reciprocal_rank() -> Self {
        Self::ReciprocalRank { k: 60.0 }
    }

    /// Returns the fused scores of documents with these first-stage and reranker scores, in the same
    /// order. Scores must be finite. The result is as long as the shorter list. [`Fusion::None`] ignores
    /// the first stage and returns the reranker's scores.
    ///
    /// ```
    /// use erank_core::Fusion;
    ///
    /// let fused = Fusion::hybrid().fuse(&[12.0, 9.0], &[1.0, 8.5]);
    /// assert!(fused[1] > fused[0]);
    /// ```
    pub fn fuse(self, first_stage: &[f64], reranker: &[f64]) -> Vec<f64> {
        let zip = |first: Vec<f64>, second: Vec<f64>, join: &dyn Fn(f64, f64) -> f64| {
            first.into_iter().zip(second).map(|(a, b)| join(a, b)).collect()
        };
        match self {
            Self::None => reranker.to_vec(),
            Self::ZScore { first_stage_weight: w } => {
                zip(z_scores(first_stage), z_scores(reranker), &|a, b| w * a + (1.0 - w) * b)
            }
            Self::ReciprocalRank { k } => {
                zip(ranks(first_stage), ranks(reranker), &|a, b| 1.0 / (k + a) + 1.0 / (k + b))
            }
        }
    }
}

/// Returns each score's distance from the mean in population standard deviations; all 0 if all scores
/// are equal.
fn z_scores(scores: &[f64]) -> Vec<f64> {
    // Dividing by the largest magnitude first keeps the squares of extreme scores finite.
    let scale = scores.iter().fold(0.0, |largest: f64, score| largest.max(score.abs()));
    if scale == 0.0 || scores.windows(2).all(|pair| pair[0] == pair[1]) {
        return vec![0.0; scores.len()];
    }
    let count = scores.len() as f64;
    let mean = scores.iter().map(|score| score / scale).sum::<f64>() / count;
    let centred: Vec<f64> = scores.iter().map(|score| score / scale - mean).collect();
    let deviation = (centred.iter().map(|x| x * x).sum::<f64>() / count).sqrt();
    centred.into_iter().map(|x| if deviation > 0.0 { x / deviation } else { 0.0 }).collect()
}

/// Returns the rank of each score, from 1 for the best. Ties keep their order.
fn ranks(scores: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; scores.len()];
    for (rank, index) in best_first(scores).into_iter().enumerate() {
        ranks[index] = (rank + 1) as f64;
    }
    ranks
}

/// Returns the indices of `scores` from the largest score to the smallest. Ties keep their order, so
/// equal scores rank as in the input. Scores must be finite.
///
/// ```
/// assert_eq!(erank_core::fusion::best_first(&[2.0, 5.0, 2.0]), [1, 0, 2]);
/// ```
pub fn best_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(std::cmp::Ordering::Equal));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: &[f64], right: &[f64]) {
        assert_eq!(left.len(), right.len());
        for (a, b) in left.iter().zip(right) {
            assert!((a - b).abs() < 1e-12, "{left:?} {right:?}");
        }
    }

    #[test]
    fn z_scores_use_population_deviation() {
        let z = 1.5f64.sqrt(); // The z-score of 3 among 1, 2, 3: (3 − 2) / √(2/3).
        close(&z_scores(&[1.0, 2.0, 3.0]), &[-z, 0.0, z]);
        let hybrid = Fusion::hybrid().fuse(&[3.0, 2.0, 1.0], &[1.0, 2.0, 3.0]);
        close(&hybrid, &[-0.6 * z, 0.0, 0.6 * z]);
    }

    #[test]
    fn z_scores_of_ties_are_zero() {
        close(&Fusion::hybrid().fuse(&[0.1; 3], &[1.0, 2.0, 3.0]), &{
            let z = 0.8 * 1.5f64.sqrt();
            [-z, 0.0, z]
        });
        close(&Fusion::hybrid().fuse(&[7.0], &[0.0]), &[0.0]);
        close(&Fusion::hybrid().fuse(&[], &[]), &[]);
    }

    #[test]
    fn z_scores_of_extreme_scores_are_finite() {
        for scores in [[1e308, -1e308, 0.0], [5e-324, 0.0, 0.0], [1.0, 1.0, 1.0 + f64::EPSILON]] {
            assert!(z_scores(&scores).iter().all(|z| z.is_finite()), "{scores:?}");
        }
    }

    #[test]
    fn reciprocal_rank_fusion_sums_both_ranks() {
        let fused = Fusion::reciprocal_rank().fuse(&[9.0, 8.0, 7.0], &[0.0, 5.0, 0.0]);
        close(&fused, &[1.0 / 61.0 + 1.0 / 62.0, 1.0 / 62.0 + 1.0 / 61.0, 2.0 / 63.0]);
    }
}

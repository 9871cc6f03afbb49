//! How good an order is, judged by people's relevance grades (qrels).

/// Normalised discounted cumulative gain of the first `k` documents, as trec_eval's `ndcg_cut`:
/// the gain is the grade, the discount `1 / log₂(rank + 1)`, negative grades count 0.
///
/// `ranked` are the grades of the ranked documents, best first, with 0 for unjudged ones; `judged`
/// are all grades of the query, from which the ideal order is made. `None` if nothing relevant was
/// judged: such a query says nothing about the order.
///
/// ```
/// use erank_core::metrics::ndcg;
///
/// assert_eq!(ndcg(10, &[3, 2, 0], &[3, 2, 0]), Some(1.0));
/// assert_eq!(ndcg(10, &[0, 0], &[1]), Some(0.0));
/// assert_eq!(ndcg(10, &[0], &[0]), None);
/// ```
pub fn ndcg(k: usize, ranked: &[i32], judged: &[i32]) -> Option<f64> {
    let mut ideal = judged.to_vec();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let ideal = dcg(k, &ideal);
    (ideal > 0.0).then(|| dcg(k, ranked) / ideal)
}

fn dcg(k: usize, grades: &[i32]) -> f64 {
    let gain =
        |(rank, grade): (usize, &i32)| f64::from(*grade.max(&0)) / (rank as f64 + 2.0).log2();
    grades.iter().take(k).enumerate().map(gain).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected figures from pytrec_eval-terrier 0.5.11's `ndcg_cut_3`.
    #[test]
    fn equals_trec_eval() {
        for (ranked, judged, expected) in [
            (vec![0, 1, 2, 3], vec![3, 2, 1, 0], 0.342_499),
            (vec![2, 0, 3], vec![3, 2, 1, 0, 0], 0.735_007),
            (vec![-1, 1], vec![1, -1, 1], 0.386_853),
        ] {
            let value = ndcg(3, &ranked, &judged).expect("something is relevant");
            assert!((value - expected).abs() < 1e-6, "{ranked:?}: {value}");
        }
    }
}

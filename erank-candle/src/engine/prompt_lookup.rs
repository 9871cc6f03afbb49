//! Speculative tokens by prompt lookup (prompt lookup decoding, Saxena 2023). A thought that quotes the
//! document probably continues as the document does.

/// Maximum number of last tokens that an earlier occurrence must match.
const LONGEST_MATCH: usize = 4;
/// Minimum number of last tokens that an earlier occurrence must match.
const SHORTEST_MATCH: usize = 2;

/// Returns up to `most` tokens that followed an earlier occurrence of the last tokens. The longest match wins, then
/// the latest.
pub(super) fn draft(tokens: &[u32], most: usize) -> &[u32] {
    for length in (SHORTEST_MATCH..=LONGEST_MATCH.min(tokens.len())).rev() {
        let (earlier, last) = tokens.split_at(tokens.len() - length);
        // An occurrence may overlap the last tokens, but must begin before them.
        let occurrence =
            (0..earlier.len()).rev().find(|start| tokens[*start..*start + length] == *last);
        if let Some(start) = occurrence {
            let following = &tokens[start + length..];
            return &following[..following.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draft_continues_the_longest_latest_match() {
        assert_eq!(draft(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        assert_eq!(draft(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        // A match of three tokens wins over a later one of two.
        assert_eq!(draft(&[8, 1, 2, 3, 1, 2, 4, 8, 1, 2], 1), [3]);
        // A repetition continues.
        assert_eq!(draft(&[5, 6, 5, 6], 4), [5, 6]);
        assert!(draft(&[1, 2, 3], 5).is_empty());
        assert!(draft(&[1], 5).is_empty());
        assert!(draft(&[], 5).is_empty());
        assert!(draft(&[1, 2, 3, 1, 2], 0).is_empty());
    }
}

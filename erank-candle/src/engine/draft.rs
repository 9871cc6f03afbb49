//! Guessing the next tokens from the tokens so far: a thought that quotes the document goes on as
//! the document does (prompt lookup decoding, Saxena 2023).

/// Tokens that must agree for a place to count as quoted.
const LONGEST_MATCH: usize = 4;
const SHORTEST_MATCH: usize = 2;

/// What followed, up to `most` tokens, where the last tokens stood before: the longest match, the
/// latest place.
pub(super) fn draft(tokens: &[u32], most: usize) -> &[u32] {
    for length in (SHORTEST_MATCH..=LONGEST_MATCH.min(tokens.len())).rev() {
        let (earlier, last) = tokens.split_at(tokens.len() - length);
        // The match itself may reach into the last tokens, but must begin before them.
        let place = (0..earlier.len()).rev().find(|start| tokens[*start..*start + length] == *last);
        if let Some(place) = place {
            let following = &tokens[place + length..];
            return &following[..following.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_latest_match_goes_on() {
        assert_eq!(draft(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        assert_eq!(draft(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        // Three tokens that agree are worth more than two that agree later.
        assert_eq!(draft(&[8, 1, 2, 3, 1, 2, 4, 8, 1, 2], 1), [3]);
        // A repetition goes on.
        assert_eq!(draft(&[5, 6, 5, 6], 4), [5, 6]);
        assert!(draft(&[1, 2, 3], 5).is_empty());
        assert!(draft(&[1], 5).is_empty());
        assert!(draft(&[], 5).is_empty());
        assert!(draft(&[1, 2, 3, 1, 2], 0).is_empty());
    }
}

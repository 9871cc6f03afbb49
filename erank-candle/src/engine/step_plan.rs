//! The tokens that one step computes.
//!
//! 1. Every sequence that decodes gets one token.
//! 2. The rest of the budget goes to prompts, in even shares for the callers that have some. A share that its
//!    caller does not need goes to the others, the longest admitted sequence first.
//! 3. A small step is filled up with speculative tokens ([`speculative_share`]).

use super::caller::CallerId;

/// Returns how many pending tokens of each running sequence a step computes, at most `budget` in total unless more
/// sequences decode. `running` holds each sequence's caller and number of pending tokens, at least 1.
pub(super) fn pending_counts(running: &[(CallerId, usize)], budget: usize) -> Vec<usize> {
    let mut counts: Vec<usize> =
        running.iter().map(|(_, pending)| usize::from(*pending == 1)).collect();
    let mut budget = budget.saturating_sub(counts.iter().sum());

    let mut callers: Vec<CallerId> = Vec::new();
    for (caller, pending) in running {
        if *pending > 1 && !callers.contains(caller) {
            callers.push(*caller);
        }
    }
    for (index, caller) in callers.iter().enumerate() {
        let share = budget / (callers.len() - index);
        budget -= distribute(running, &mut counts, share, |id| id == *caller);
    }
    distribute(running, &mut counts, budget, |_| true);
    counts
}

/// Gives up to `share` tokens to the prompts of the callers that `receives` accepts, in order. Returns the number
/// of tokens given.
fn distribute(
    running: &[(CallerId, usize)],
    counts: &mut [usize],
    share: usize,
    receives: impl Fn(CallerId) -> bool,
) -> usize {
    let mut left = share;
    for ((caller, pending), count) in running.iter().zip(counts) {
        if *pending > 1 && receives(*caller) {
            let more = (pending - *count).min(left);
            *count += more;
            left -= more;
        }
    }
    share - left
}

/// Returns the number of speculative tokens for each sequence whose pending tokens are all in the step.
pub(super) fn speculative_share(
    running: &[(CallerId, usize)],
    counts: &[usize],
    speculative_tokens: usize,
) -> usize {
    let tokens: usize = counts.iter().sum();
    let complete = running.iter().zip(counts).filter(|((_, pending), count)| pending == *count);
    speculative_tokens.saturating_sub(tokens) / complete.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_counts_gives_decoding_sequences_one_token_each() {
        assert_eq!(pending_counts(&[(1, 1), (1, 100), (2, 1)], 10), [1, 8, 1]);
        assert_eq!(pending_counts(&[(1, 1), (1, 1), (2, 1)], 2), [1, 1, 1]);
        assert_eq!(pending_counts(&[], 2), [0; 0]);
    }

    #[test]
    fn pending_counts_shares_the_budget_evenly_among_callers() {
        assert_eq!(pending_counts(&[(1, 100), (1, 100), (2, 100)], 10), [5, 0, 5]);
        // A caller that needs less than its share leaves the rest to the others.
        assert_eq!(pending_counts(&[(1, 2), (2, 100)], 10), [2, 8]);
        assert_eq!(pending_counts(&[(1, 100), (2, 2)], 10), [8, 2]);
    }

    #[test]
    fn speculative_share_divides_what_the_step_leaves() {
        assert_eq!(speculative_share(&[(1, 1)], &[1], 8), 7);
        assert_eq!(speculative_share(&[(1, 1), (1, 1)], &[1, 1], 8), 3);
        assert_eq!(speculative_share(&[(1, 100)], &[20], 8), 0);
        assert_eq!(speculative_share(&[], &[], 8), 8);
    }
}

"""The teacher: the evidence a thought states, and the score that follows from it.

    <think> short: jet!+ noise++* flutter!!-</think><answer>4</answer>

A thought says how long the document is and lists the query's first distinct content words (as
stems), each with one mark: how rare the word is in the training corpus (nothing, "!" or "!!"),
whether the document has it ("-" no, "+" once, "++" more often), and "*" where it follows the word
listed before it somewhere in the document, as a phrase. The score is the average of the marks,
weighted by rarity and adjusted for length: it needs nothing but the thought.
"""

import collections
import itertools

MOST_TERMS = 12

RARITIES = ("", "!", "!!")
RARITY_WEIGHTS = (1, 2, 3)
# A word is rarer the fewer texts of the corpus hold it: shares of all texts, e^-4.5 and e^-6.5.
RARITY_LIMITS = (0.0111, 0.0015)

FINDINGS = ("-", "+", "++", "+*", "++*")
FINDING_POINTS = (0, 3, 4, 4, 5)
MOST_POINTS = max(FINDING_POINTS)

# One mark is one token: rarity * len(FINDINGS) + finding.
MARKS = tuple(rarity + finding for rarity, finding in itertools.product(RARITIES, FINDINGS))

LENGTH_WORDS = ("▁short:", "▁medium:", "▁long:")
LENGTH_LIMITS = (40, 90)  # content words
LENGTH_FACTORS = (1.1, 1.0, 0.85)

BEST_SCORE = 10


def listed_terms(query_terms):
    """The distinct words of the query, in order, as many as a thought has room for."""
    return list(dict.fromkeys(query_terms))[:MOST_TERMS]


def length_class(document_terms):
    return sum(len(document_terms) >= limit for limit in LENGTH_LIMITS)


def marks(terms, document_terms, rarity_of):
    """The mark of each listed term, as an index into `MARKS`."""
    counts = collections.Counter(document_terms)
    phrases = set(zip(document_terms, document_terms[1:]))
    result = []
    for previous, term in zip([None, *terms], terms):
        finding = min(counts[term], 2)
        if finding and (previous, term) in phrases:
            finding += 2
        result.append(rarity_of(term) * len(FINDINGS) + finding)
    return result


def score(length, term_marks):
    """The score that follows from a thought; `length` indexes `LENGTH_WORDS`."""
    points = weights = 0
    for mark in term_marks:
        rarity, finding = divmod(mark, len(FINDINGS))
        points += RARITY_WEIGHTS[rarity] * FINDING_POINTS[finding]
        weights += RARITY_WEIGHTS[rarity]
    if not weights:
        return 0
    share = points / (weights * MOST_POINTS) * LENGTH_FACTORS[length]
    return min(BEST_SCORE, int(BEST_SCORE * share + 0.5))


def rarity_from_frequency(document_frequency, corpus_size):
    return sum(document_frequency < limit * corpus_size for limit in RARITY_LIMITS)

"""The teacher: the evidence a thought states, and the score that follows from it.

    <think> short: jet!+ noise++ flutt!!- =3.75</think><answer>4</answer>

A thought says how long the document is and lists the query's first distinct content words (as
stems), each with one mark: how rare the word is in the training corpus (nothing, "!" or "!!"), and
whether the document has it ("-" no, "+" once, "++" more often). The thought ends with the total: the
average of the marks, weighted by rarity and adjusted for length. It needs nothing but the marks.

The answer is the total, rounded. Its probability says where between two integers the total lies, so
that N x P(N) tells totals apart that round to the same N.
"""

import collections
import itertools
import math

MOST_TERMS = 12

RARITIES = ("", "!", "!!")
RARITY_WEIGHTS = (1, 2, 3)
# A word is rarer the fewer texts of the corpus hold it: shares of all texts, e^-4.5 and e^-6.5.
RARITY_LIMITS = (0.0111, 0.0015)

FINDINGS = ("-", "+", "++")
FINDING_POINTS = (0, 5, 7)
MOST_POINTS = max(FINDING_POINTS)

# One mark is one token: rarity * len(FINDINGS) + finding.
MARKS = tuple(rarity + finding for rarity, finding in itertools.product(RARITIES, FINDINGS))

LENGTH_WORDS = ("▁brief:", "▁short:", "▁long:", "▁lengthy:")
LENGTH_LIMITS = (60, 120, 180)  # content words with which the next class begins
LENGTH_FACTORS = (1.0, 0.9, 0.8, 0.7)

BEST_SCORE = 10
STEPS = 4  # totals are counted in quarters
TOTALS = tuple(f"▁={total / STEPS:g}" for total in range(BEST_SCORE * STEPS + 1))


def listed_terms(query_terms):
    """The distinct words of the query, in order, as many as a thought has room for."""
    return list(dict.fromkeys(query_terms))[:MOST_TERMS]


def length_class(document_terms):
    return sum(len(document_terms) >= limit for limit in LENGTH_LIMITS)


def marks(terms, document_terms, rarity_of):
    """The mark of each listed term, as an index into `MARKS`."""
    counts = collections.Counter(document_terms)
    return [rarity_of(term) * len(FINDINGS) + min(counts[term], 2) for term in terms]


def total(length, term_marks):
    """The total that follows from the marks, in quarters; `length` indexes `LENGTH_WORDS`."""
    points = weights = 0
    for mark in term_marks:
        rarity, finding = divmod(mark, len(FINDINGS))
        points += RARITY_WEIGHTS[rarity] * FINDING_POINTS[finding]
        weights += RARITY_WEIGHTS[rarity]
    if not weights:
        return 0
    share = points / (weights * MOST_POINTS) * LENGTH_FACTORS[length]
    return min(BEST_SCORE * STEPS, int(BEST_SCORE * STEPS * share + 0.5))


def answer(total):
    """The integer that follows from a total (halves rounded down), and its probability.

    The rest of the probability is the next lower integer's.
    """
    number = max(0, math.ceil(total / STEPS - 0.5))
    if number == 0:
        return 0, 1.0
    above = total / STEPS - (number - 0.5)  # more than 0, at most 1
    # N x P(N) begins where that of the integer below ends. The answer stays the likeliest one.
    base = max(number, 2)
    return number, (base - 1 + above) / base


def rarity_from_frequency(document_frequency, corpus_size):
    return sum(document_frequency < limit * corpus_size for limit in RARITY_LIMITS)

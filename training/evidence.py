"""The teacher: the evidence that a thought states, and the score computed from it.

    <think> short: jet!+ noise++ flutt!!- =3.75</think><answer>4</answer>

A thought gives the document's length class and lists the query's first distinct content words as
stems. Each word has one mark, which states how rare the word is in the training corpus (nothing, "!"
or "!!") and how often the document contains it ("-" never, "+" once, "++" more than once). The thought
ends with the total: the average of the marks, weighted by rarity and multiplied by a factor for the
length class. The total depends on the marks and the length class alone.

The answer is the rounded total. Its probability encodes the total's position between two integers, so
that N x P(N) distinguishes totals that round to the same N.
"""

import collections
import itertools
import math

MOST_TERMS = 12

RARITIES = ("", "!", "!!")
RARITY_WEIGHTS = (1, 2, 3)
# Document frequencies, as shares of the corpus, below which a word is rarer: e^-4.5 and e^-6.5.
RARITY_LIMITS = (0.0111, 0.0015)

FINDINGS = ("-", "+", "++")
FINDING_POINTS = (0, 5, 7)
MOST_POINTS = max(FINDING_POINTS)

# Each mark is one token. Its index is rarity * len(FINDINGS) + finding.
MARKS = tuple(rarity + finding for rarity, finding in itertools.product(RARITIES, FINDINGS))

LENGTH_WORDS = ("▁brief:", "▁short:", "▁long:", "▁lengthy:")
LENGTH_LIMITS = (60, 120, 180)  # numbers of content words at which the next class starts
LENGTH_FACTORS = (1.0, 0.9, 0.8, 0.7)

BEST_SCORE = 10
STEPS = 4  # steps per point: totals are in quarters
TOTALS = tuple(f"▁={total / STEPS:g}" for total in range(BEST_SCORE * STEPS + 1))


def listed_terms(query_terms):
    """Returns the first `MOST_TERMS` distinct terms of the query, in order."""
    return list(dict.fromkeys(query_terms))[:MOST_TERMS]


def length_class(document_terms):
    return sum(len(document_terms) >= limit for limit in LENGTH_LIMITS)


def marks(terms, document_terms, rarity_of):
    """Returns the mark of each listed term, as an index into `MARKS`."""
    counts = collections.Counter(document_terms)
    return [rarity_of(term) * len(FINDINGS) + min(counts[term], 2) for term in terms]


def total(length, term_marks):
    """Returns the total for the marks, in quarters. `length` is an index into `LENGTH_WORDS`."""
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
    """Returns the integer for a total (rounded, halves down) and its probability.

    The next lower integer has the remaining probability.
    """
    number = max(0, math.ceil(total / STEPS - 0.5))
    if number == 0:
        return 0, 1.0
    above = total / STEPS - (number - 0.5)  # more than 0, at most 1
    # The range of N x P(N) starts where the range of N - 1 ends. N keeps the highest probability.
    base = max(number, 2)
    return number, (base - 1 + above) / base


def rarity_from_frequency(document_frequency, corpus_size):
    return sum(document_frequency < limit * corpus_size for limit in RARITY_LIMITS)

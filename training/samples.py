"""Training samples: a prompt and the teacher's output for it.

A query is a real title, a piece of a passage, or a list of words drawn so that found, missing and
repeated words are all common. A document is a piece of the corpus. One `random.Random` draws
everything, so a seed determines the whole run.
"""

import collections
import random
from dataclasses import dataclass

import numpy as np

import evidence
import tokenizer as texts

INSTRUCTIONS = (
    "Retrieve relevant documents for the query.",
    "Given a query, retrieval relevant passage.",
    "Given a web search query, retrieve relevant passages that answer the query.",
    "Retrieve text relevant to the query.",
    "A document is relevant if it contains information that helps answer or address the query.",
    "",
)
RARE_TERM_TEXTS = (2, 300)  # range of document frequencies in which a shared term makes a good distractor
NO_LABEL = -100

# Loss weights of the output tokens.
PLAIN, MARK, TOTAL, DIGIT = 1.0, 3.0, 3.0, 2.0


@dataclass
class Sample:
    prompt: list
    output: list
    weights: list  # one per output token; 0 excludes the token from the loss
    second: tuple  # a second label: (index into the output, token, weight)


class Vocabulary:
    """The token ids of prompts and outputs; converts text to lists of terms.

    A term is the tuple of a stem's token ids, or of a single digit's.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.size = tokenizer.get_vocab_size()
        self.end_of_text, self.turn_start, self.turn_end = (ids[text] for text in texts.SPECIAL_TOKENS)
        self.think, self.end_think, self.answer, self.end_answer = (ids[text] for text in texts.FORMAT_TOKENS)
        self.marks = [ids[mark] for mark in evidence.MARKS]
        self.query_follows, self.document_follows = ids[texts.PROMPT_QUERY], ids[texts.PROMPT_DOCUMENT]
        self.answer_follows = ids[texts.PROMPT_END]
        self.markers = [ids[text] for text in (*texts.PROMPT_TOKENS, texts.THINK)]
        self.totals = [ids[word] for word in evidence.TOTALS]
        self.lengths = [ids[word] for word in evidence.LENGTH_WORDS]
        self.digits = [ids[str(digit)] for digit in range(10)]
        self._digit_terms = {(digit,) for digit in self.digits}
        learned = [text for text in ids if text.isascii() and text.isalpha() or text[1:].isalpha()]
        plain = [text for text in sorted(learned) if text[0] != "<" and text not in evidence.LENGTH_WORDS]
        self.first_pieces = [ids[text] for text in plain if text[0] == texts.WORD_START]
        self.later_pieces = [ids[text] for text in plain if text[0] != texts.WORD_START]
        self._starts = set(self.first_pieces) | {ids[texts.WORD_START]} | set(self.digits)
        # The fixed parts of the chat prompt, around the instruction, the query and the document.
        self._opening = self.encode(f"{texts.TURN_START}user\n{texts.PROMPT_START}")
        self._before_query = self.encode(texts.PROMPT_QUERY)
        self._before_document = self.encode(texts.PROMPT_DOCUMENT)
        self._closing = self.encode(f"{texts.PROMPT_END}{texts.TURN_END}\n{texts.TURN_START}assistant\n")

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def terms_of_ids(self, token_ids):
        terms = []
        for token in token_ids:
            if token in self._starts:
                terms.append([token])
            else:
                terms[-1].append(token)
        return [tuple(term) for term in terms]

    def terms(self, text):
        return self.terms_of_ids(self.encode(text))

    def words(self, terms):
        """Returns the terms without digits, which thoughts do not list."""
        return [term for term in terms if term not in self._digit_terms]

    def prompt(self, instruction_ids, query_terms, document_terms):
        return [
            *self._opening,
            *instruction_ids,
            *self._before_query,
            *flat(query_terms),
            *self._before_document,
            *flat(document_terms),
            *self._closing,
        ]


def flat(terms):
    return [token for term in terms for token in term]


class Teacher:
    def __init__(self, vocabulary, document_frequencies, corpus_size):
        self.vocabulary = vocabulary
        self._frequencies = document_frequencies
        self._corpus_size = corpus_size

    def rarity(self, term):
        return evidence.rarity_from_frequency(self._frequencies.get(term, 0), self._corpus_size)

    def judge(self, query_terms, document_terms):
        """Returns (listed terms, their marks, length class, total)."""
        terms = evidence.listed_terms(self.vocabulary.words(query_terms))
        term_marks = evidence.marks(terms, document_terms, self.rarity)
        length = evidence.length_class(document_terms)
        return terms, term_marks, length, evidence.total(length, term_marks)

    def output(self, terms, term_marks, length, cut=None, answer_only=False):
        """Returns the output token ids, their loss weights, and the answer's second label.

        With `cut`, the thought ends after that many terms and has no total. The score is computed from
        those terms, and the end of the thought has no loss. With `answer_only`, the thought is empty.
        """
        words = self.vocabulary
        ids, weights = [words.think], [PLAIN]
        if answer_only:
            weights = [0.0]
        else:
            ids.append(words.lengths[length])
            weights.append(PLAIN)
            for term, mark in list(zip(terms, term_marks))[:cut]:
                ids += [*term, words.marks[mark]]
                weights += [PLAIN] * len(term) + [MARK]
        total = evidence.total(length, term_marks[:cut])
        number, probability = evidence.answer(total)
        digits = [words.digits[int(character)] for character in str(number)]
        free_ending = not answer_only and cut is None
        if free_ending:
            ids.append(words.totals[total])
            weights.append(TOTAL)
        ids += [words.end_think, words.answer, *digits, words.end_answer, words.end_of_text]
        weights += [PLAIN if free_ending else 0.0, 0.0 if answer_only else PLAIN]
        # The first digit has two labels, so that the model also learns the answer's probability.
        first = len(weights)
        weights += [DIGIT * probability] + [DIGIT] * (len(digits) - 1) + [PLAIN, PLAIN]
        lower = words.digits[max(number - 1, 0)]
        return ids, weights, (first, lower, DIGIT * (1 - probability))


class Corpus:
    """The corpus as terms, with the statistics that sampling needs."""

    def __init__(self, vocabulary, descriptions, glosses):
        self.vocabulary = vocabulary
        pairs = [pair for part in (descriptions, glosses) for pair in part]
        encoded = [
            [vocabulary.terms_of_ids(encoding.ids) for encoding in vocabulary.tokenizer.encode_batch(column)]
            for column in (list(column) for column in zip(*pairs))
        ]
        self.titles, self.bodies = encoded
        self.descriptions = range(len(descriptions))
        self.glosses = range(len(descriptions), len(pairs))
        self.frequencies = collections.Counter()
        for title, body in zip(self.titles, self.bodies):
            self.frequencies.update(set(title) | set(body))
        self.size = len(pairs)
        low, high = RARE_TERM_TEXTS
        self.sharing = collections.defaultdict(list)
        for index in range(self.size):
            for term in dict.fromkeys(self.bodies[index]):
                if low <= self.frequencies[term] <= high:
                    self.sharing[term].append(index)
        words = vocabulary.words(sorted(self.frequencies))
        self.distinct_words = words
        # One copy of each word, and one more for every eight texts that contain it.
        self.frequent_words = [word for word in words for _ in range(1 + self.frequencies[word] // 8)]

    def teacher(self):
        return Teacher(self.vocabulary, self.frequencies, self.size)


@dataclass
class Sizes:
    """Size limits of the samples in a training stage."""

    row: int  # tokens of prompt and output together
    document: tuple  # minimum and maximum number of terms
    query: int  # maximum number of terms


class Sampler:
    answer_only_share = 0.2
    cut_share = 0.04

    def __init__(self, corpus, seed):
        self.corpus = corpus
        self.words = corpus.vocabulary
        self.teacher = corpus.teacher()
        self.random = random.Random(seed)
        self.instructions = [self.words.encode(text) for text in INSTRUCTIONS]

    # Documents

    def passage(self, length, start=None):
        """Returns `length` terms of running text, starting with text `start` (default: a random one)."""
        draw = self.random
        corpus = self.corpus
        described = draw.random() < 0.55
        result = []
        while len(result) < length:
            index = start if start is not None else draw.choice(corpus.descriptions if described else corpus.glosses)
            body = corpus.bodies[index]
            if index in corpus.glosses:
                body = corpus.titles[index] + body
            offset = draw.randrange(len(body)) if draw.random() < 0.3 and len(body) > length else 0
            result += body[offset:]
            start = None
        return result[:length]

    # Single words

    def invented(self):
        """Returns an invented word of two or more pieces."""
        draw, words = self.random, self.words
        count = draw.choice((1, 1, 1, 2))
        return (draw.choice(words.first_pieces), *(draw.choice(words.later_pieces) for _ in range(count)))

    def lookalike(self, term):
        """Returns a word that shares some pieces with `term`."""
        draw, later = self.random, self.words.later_pieces
        if len(term) == 1:
            return (*term, draw.choice(later))
        if draw.random() < 0.5:
            return term[: draw.randrange(1, len(term))]
        changed = list(term)
        place = draw.randrange(len(term))
        changed[place] = draw.choice(later if place else self.words.first_pieces)
        return tuple(changed)

    def other_word(self, document):
        """Returns a word that the document probably does not contain."""
        draw, corpus = self.random, self.corpus
        kind = draw.random()
        if kind < 0.6:
            return draw.choice(corpus.frequent_words)
        if kind < 0.8:
            return draw.choice(corpus.distinct_words)
        if kind < 0.9:
            return self.invented()
        return self.lookalike(draw.choice(document))

    # Queries with their documents

    def titled(self, length, most):
        """Returns a title as the query, and its own text, a text that shares a rare word, or a random one."""
        draw, corpus = self.random, self.corpus
        index = draw.choice(corpus.descriptions if draw.random() < 0.6 else corpus.glosses)
        query = corpus.titles[index]
        if index in corpus.glosses:
            query = query + corpus.bodies[index][: draw.randrange(8)]
        kind = draw.random()
        rare = [term for term in query if term in corpus.sharing]
        if kind < 0.45:
            start = index
        elif kind < 0.9 and rare:
            start = draw.choice(corpus.sharing[draw.choice(rare)])
        else:
            start = None
        return query[:most], self.passage(length, start)

    def quoted(self, length, most):
        """Returns a piece of the document (or of another one) with words removed or replaced, and the document."""
        draw = self.random
        document = self.passage(length)
        source = document if draw.random() < 0.75 else self.passage(length)
        count = draw.randint(2, most)
        offset = draw.randrange(max(1, len(source) - count + 1))
        replaced = draw.random() * 0.6
        query = [
            self.other_word(document) if draw.random() < replaced else term
            for term in source[offset : offset + count]
            if draw.random() < 0.9
        ]
        return query, document

    def picked(self, length, most):
        """Returns words drawn one by one (present once or repeatedly, absent, or invented), and a document."""
        draw = self.random
        document = self.passage(length)
        found_share = draw.random()
        strange = draw.random() < 0.15
        repeated = [term for term, count in collections.Counter(document).items() if count > 1]
        query, planted = [], []
        for _ in range(draw.randint(1, most)):
            kind = draw.random()
            if draw.random() >= found_share:
                query.append(self.invented() if strange and kind < 0.6 else self.other_word(document))
            elif strange and kind < 0.6:
                term = self.invented()
                planted += [term] * draw.choice((1, 1, 2, 3))
                query.append(term)
            elif kind < 0.5 and repeated:
                query.append(draw.choice(repeated))
            else:
                term = draw.choice(document)
                planted += [term] * draw.choice((0, 0, 0, 1, 2))
                query.append(term)
        document = list(document)
        for term in planted:
            document[draw.randrange(len(document))] = term
        return query[:most], document

    def query_and_document(self, sizes):
        draw = self.random
        shortest, longest = sizes.document
        length = draw.randint(shortest, longest)
        kind = draw.random()
        make = self.titled if kind < 0.2 else self.quoted if kind < 0.4 else self.picked
        query, document = make(length, sizes.query)
        odd = draw.random()
        if odd < 0.005:
            query = []
        elif odd < 0.01:
            document = []
        elif odd < 0.25 and query:
            # Repeated words, as in long queries.
            query = list(query)
            for _ in range(draw.choice((1, 1, 2))):
                query.insert(draw.randint(1, len(query)), draw.choice(query))
        elif odd < 0.29:
            query = query + [(draw.choice(self.words.digits),)]
        return query, document

    # Samples

    def sample(self, sizes):
        """Returns a sample that fits in a row. Longer documents are truncated."""
        draw = self.random
        while True:
            query, document = self.query_and_document(sizes)
            if draw.random() < 0.9:
                instruction = draw.choice(self.instructions)
            else:
                instruction = flat(self.passage(draw.randint(1, 8)))
            terms, term_marks, length, _ = self.teacher.judge(query, document)
            output, weights, second = self.teacher.output(terms, term_marks, length)
            prompt = self.words.prompt(instruction, query, document)
            excess = len(prompt) + len(output) - sizes.row
            if excess > 0:
                # Every term has at least one token, so removing `excess` terms suffices.
                document = document[:-excess]
                if len(document) < 3:
                    continue
                terms, term_marks, length, _ = self.teacher.judge(query, document)
                output, weights, second = self.teacher.output(terms, term_marks, length)
                prompt = self.words.prompt(instruction, query, document)
            kind = draw.random()
            if kind < self.answer_only_share:
                output, weights, second = self.teacher.output(terms, term_marks, length, answer_only=True)
            elif kind < self.answer_only_share + self.cut_share and terms:
                cut = draw.randint(0, len(terms))
                output, weights, second = self.teacher.output(terms, term_marks, length, cut=cut)
            return Sample(prompt, output, weights, second)

    def batch(self, rows, sizes):
        """Returns the arrays of a training step: token ids, and positions, labels and weights of the outputs."""
        samples = [self.sample(sizes) for _ in range(rows)]
        most = output_room(sizes)
        ids = np.full((rows, sizes.row), self.words.end_of_text, np.int64)
        positions = np.zeros((rows, most + 1), np.int64)  # the last column holds the second labels
        labels = np.full((rows, most + 1), NO_LABEL, np.int64)
        weights = np.zeros((rows, most + 1), np.float32)
        for row, sample in enumerate(samples):
            everything = sample.prompt + sample.output
            ids[row, : len(everything)] = everything
            count = min(most, len(sample.output))
            first = len(sample.prompt) - 1  # the logits that predict a token are one position earlier
            positions[row, :count] = np.arange(first, first + count)
            labels[row, :count] = sample.output[:count]
            weights[row, :count] = sample.weights[:count]
            index, token, weight = sample.second
            if index < most:
                positions[row, most] = first + index
                labels[row, most] = token
                weights[row, most] = weight
        return ids, positions, labels, weights


def output_room(sizes):
    """Returns the number of output tokens per row that the loss includes; the rest is ignored."""
    return 11 + int(2.4 * min(sizes.query + 1, evidence.MOST_TERMS))

"""Fits isotonic regressions with scikit-learn and measures their reliability; creates `calibration.json`.

    pip install scikit-learn==1.9.1 numpy
    python calibration.py

Each case has judged documents (score, relevant), and the results of scikit-learn: the thresholds of the regression, the
probabilities of other scores, and for a tenth of the score as a probability the Brier score and the calibration curve
(number of documents, mean probability and fraction of relevant documents of each bin that is not empty). scikit-learn
has no expected calibration error; it is computed here from the calibration curve.
"""

import json
import random
from pathlib import Path

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

BINS = 10


def cases():
    rng = random.Random(20261129)
    yield "two documents", [(1.0, 0), (9.0, 1)]
    yield "falling", [(1.0, 1), (2.0, 1), (3.0, 0), (4.0, 0)]
    yield "equal scores", [(5.0, 1), (5.0, 0), (5.0, 0)]
    yield "equal scores between others", [(1.0, 1), (1.0, 0), (2.0, 0), (2.0, 1), (2.0, 1), (3.0, 0), (3.0, 1)]
    for name, count, levels in [("integers", 200, 10), ("few documents", 15, 1000), ("many documents", 600, 10**9)]:
        scores = [10 * rng.randint(0, levels) / levels for _ in range(count)]
        yield name, [(score, int(rng.random() < (score / 10) ** 2)) for score in scores]
    scores = [10 * rng.random() for _ in range(120)]
    yield "unrelated", [(score, int(rng.random() < 0.3)) for score in scores]


def expected_calibration_error(relevant, probabilities, fractions, means):
    borders = np.linspace(0, 1, BINS + 1)
    counts = np.bincount(np.searchsorted(borders[1:-1], probabilities), minlength=BINS)
    counts = counts[counts > 0]
    return counts.tolist(), float(np.sum(counts * np.abs(fractions - means)) / len(relevant))


def main():
    rows = []
    for name, judged in cases():
        scores, relevant = np.array([s for s, _ in judged]), np.array([r for _, r in judged])
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, relevant)
        probabilities = scores / 10
        fractions, means = calibration_curve(relevant, probabilities, n_bins=BINS)
        counts, error = expected_calibration_error(relevant, probabilities, fractions, means)
        others = [0.0, 0.7, 2.5, 3.999, 5.0, 7.3, 10.0]
        rows.append({
            "name": name, "judged": judged,
            "points": list(zip(regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist())),
            "others": list(zip(others, regression.predict(others).tolist())),
            "brier_score": float(brier_score_loss(relevant, probabilities)),
            "expected_calibration_error": error,
            "bins": list(zip(counts, means.tolist(), fractions.tolist())),
        })
    path = Path(__file__).parent / "calibration.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8", newline="\n")


main()

"""The handwritten digits: images, labels, and which of them are held out for the test.

Needs numpy and scikit-learn only, so that training, tests and demonstrations all share this one split.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

__all__ = ["CLASSES", "GROUP", "HERE", "KEEP", "Split", "correct_counts", "load", "model_path", "split"]

HERE = Path(__file__).parent
CLASSES = 10
GROUP = 8
"""M of N:M: consecutive input channels that share a budget of nonzeros, at every kernel tap."""
KEEP = {"digits-dense": 8, "digits-2of8": 2, "digits-1of8": 1}
"""Model name -> N, the nonzeros that a group of 8 may hold."""
HOLD_OUT = 3
"""Of every three images of a class, in the order of the data set, the third is for the test."""


class Split(NamedTuple):
    """images : float32 [n, 1, 8, 8] in [0, 1];  labels : int64 [n] in 0..9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def split(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True for test images: every third of each class.

    Counting instead of drawing keeps the split stratified and the same under every version of scikit-learn.
    """
    test = np.zeros(labels.shape, dtype=np.bool_)
    for digit in np.unique(labels):
        test[np.flatnonzero(labels == digit)[HOLD_OUT - 1 :: HOLD_OUT]] = True
    return test


def load() -> tuple[Split, Split]:
    """Return (train, test)."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # pixels count 0 to 16: exact in float32
    labels = digits.target.astype(np.int64)
    test = split(labels)
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def model_path(name: str) -> Path:
    """Where the ONNX file of a model is."""
    return HERE / f"{name}.onnx"


def correct_counts() -> dict[str, int]:
    """Model name -> test images it classifies correctly in float32, as train.py recorded them."""
    counts: dict[str, int] = json.loads((HERE / "correct.json").read_text(encoding="utf-8"))
    return counts

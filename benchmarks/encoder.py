"""The sentence encoder by which pruning is measured: its data, its vectors, and how near two sets of vectors are."""

from pydoc_data.topics import topics

import numpy as np
import onnx
import onnxruntime as ort
import sources
from numpy.typing import NDArray

__all__ = ["LENGTH", "cosine", "cosines", "embeddings", "prose"]

LENGTH = 32
"""Tokens of a sentence; the longest to be tried has 17."""


def embeddings(model: onnx.ModelProto, feeds: list[sources.Feed]) -> NDArray[np.float32]:
    """Sentence vectors, float32 [sentences, features]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # round exactly where written
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def cosines(a: NDArray[np.float32], b: NDArray[np.generic]) -> NDArray[np.float64]:
    """Cosine of every row of one array with that of the other."""
    x, y = (np.asarray(rows, dtype=np.float64) for rows in (a, b))
    found: NDArray[np.float64] = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return found


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean cosine of the rows of two arrays."""
    return float(cosines(a, b).mean())


def prose(count: int, length: int) -> list[sources.Feed]:
    """Pieces of Python's reference that fill the encoder, one feed each."""
    words = " ".join(topics[key] for key in sorted(topics)).split()
    pieces = np.array_split(np.array(words, dtype=object), len(words) // length)  # no word has less than one token
    step = len(pieces) // count
    return sources.tokens(tuple(" ".join(piece) for piece in pieces[::step][:count]), length)

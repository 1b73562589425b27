"""What pruning costs in accuracy and saves in steps: python benchmarks/sparsity.py {minilm,steps,allocation}.

minilm      cosine of sentence embeddings with those of the dense float model, by pattern and sparsifier, in float and
            in int8 (the quantised graph in onnxruntime, which the Program equals to the bit or one step), and the mean
            reconstruction error of the layers. Calibrated on prose of Python's reference, tried on other sentences.
"""

import argparse
import time
import warnings
from pydoc_data.topics import topics

import numpy as np
import onnx
import onnxruntime as ort
import sources
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gossamer.compiler.calibrate import samples
from gossamer.compiler.export import export_model
from gossamer.compiler.fuse import fuse
from gossamer.compiler.ops import Linear
from gossamer.compiler.passes import import_model, run_passes
from gossamer.compiler.quantise import quantise
from gossamer.compiler.sparsifiers.inputs import input_moments
from gossamer.compiler.sparsify import prune

LENGTH = 32
"""Tokens of a sentence; the longest to be tried has 17."""


METHODS = (("magnitude", False), ("wanda", False), ("wanda", True), ("sparsegpt", False), ("sparsegpt", True))
"""Sparsifiers, and whether a layer's inputs are measured after the layers before it were pruned."""


def embeddings(model: onnx.ModelProto, feeds: list[sources.Feed]) -> NDArray[np.float32]:
    """Sentence vectors, float32 [sentences, features]."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # round exactly where written
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean cosine of the rows of two arrays."""
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def prose(count: int, length: int) -> list[sources.Feed]:
    """Pieces of Python's reference that fill the encoder, one feed each."""
    words = " ".join(topics[key] for key in sorted(topics)).split()
    pieces = np.array_split(np.array(words, dtype=object), len(words) // length)  # no word has less than one token
    step = len(pieces) // count
    return sources.tokens(tuple(" ".join(piece) for piece in pieces[::step][:count]), length)


def minilm(console: Console, patterns: list[str], count: int) -> None:
    """Rank the sparsifiers on a real sentence encoder."""
    source = sources.load("minilm")
    graph = run_passes(import_model(source.model, {"batch": 1, "sequence": LENGTH}), until="legalise")
    calibration, trial = prose(count, LENGTH), samples(graph, sources.tokens(sources.SENTENCES, LENGTH))
    layers = [op for op in graph.order() if isinstance(op, Linear)]
    moments = input_moments(graph, layers, calibration)
    dense = embeddings(export_model(graph), trial)
    table = Table(
        title=f"MiniLM, {len(trial)} sentences against the dense float model; calibrated on {count} pieces of prose"
    )
    for column in ("pattern", "sparsifier", "cosine float", "cosine int8", "mean error", "seconds"):
        table.add_column(column, justify="left" if column in ("pattern", "sparsifier") else "right")
    table.add_row("dense", "", "1.0000", f"{cosine(dense, int8(graph, calibration, trial)):.4f}", "", "")
    for pattern in patterns:
        for name, sequential in METHODS:
            begin = time.perf_counter()
            known = None if sequential else moments
            pruned, report = prune(
                graph, pattern, sparsifier=name, sequential=sequential, calibration=calibration, moments=known
            )
            name += ", sequential" * sequential
            seconds = time.perf_counter() - begin
            real = cosine(dense, embeddings(export_model(pruned), trial))
            error = np.mean([layer.error for layer in report])
            whole = cosine(dense, int8(pruned, calibration, trial))
            table.add_row(pattern, name, f"{real:.4f}", f"{whole:.4f}", f"{error:.4f}", f"{seconds:.1f}")
    console.print(table)


def int8(graph, calibration: list[sources.Feed], trial: list[sources.Feed]) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
    """Embeddings of the quantised network."""
    return embeddings(export_model(quantise(fuse(graph), calibration[:16]), qdq=True), trial)


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["minilm"])
    parser.add_argument("--patterns", nargs="*", default=["4:8", "2:4", "2:8"])
    parser.add_argument("--count", type=int, default=128, help="pieces of prose to calibrate with")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    minilm(Console(width=120), args.patterns, args.count)


if __name__ == "__main__":
    main()

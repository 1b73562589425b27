"""What pruning costs in accuracy and saves in steps: python benchmarks/sparsity.py {minilm,programs,steps,...}.

minilm      cosine of sentence embeddings with those of the dense float model, by pattern and sparsifier, in float and
            in int8 (the quantised graph in onnxruntime, which the Program equals to the bit or one step), and the mean
            reconstruction error of the layers. Calibrated on prose of Python's reference, tried on other sentences.
programs    the same with everything compiled to Programs and simulated: cosine with the dense float model, cycles.
steps       steps of all layers before and after channels are reordered, against the bound (useful nonzeros over the
            MACs of a step, for every column tile).
nm          magnitude that N:M keeps before and after input channels are reordered.
allocation  what is left of MiniLM (cosine) and of the digits (accuracy) when rules distribute zeros among layers, each
            within the same cycles.
"""

import argparse
import time
import warnings
from collections.abc import Iterator

import allocation
import numpy as np
import sources
from encoder import LENGTH, cosine, cosines, embeddings, prose
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.fallback import fitted
from gossamer.compiler.frontend.calibrate import samples
from gossamer.compiler.frontend.equalise import equalise
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.fuse import fuse
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.frontend.ops import Conv, Linear
from gossamer.compiler.frontend.quantise import quantise
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.compiler.sparsity.patterns import channel_rows
from gossamer.compiler.sparsity.permute import layer_steps, reorder_steps, useful_steps
from gossamer.compiler.sparsity.sparsifiers.inputs import input_moments
from gossamer.compiler.sparsity.sparsifiers.interface import SPARSIFIERS
from gossamer.compiler.sparsity.sparsify import prune
from gossamer.sim.simulate import Simulator


def minilm(console: Console, patterns: list[str], count: int, sequential: bool) -> None:
    """Rank the sparsifiers on a real sentence encoder."""
    source = sources.load("minilm")
    graph = run_passes(import_model(source.model, {"batch": 1, "sequence": LENGTH}), until="partition")
    calibration, trial = prose(count, LENGTH), samples(graph, sources.tokens(sources.SENTENCES, LENGTH))
    layers = [op for op in graph.order() if isinstance(op, Linear)]
    moments = input_moments(graph, layers, calibration)
    dense = embeddings(export_model(graph), trial)
    table = Table(
        title=f"MiniLM, {len(trial)} sentences against the dense float model; calibrated on {count} pieces of prose"
        + ", layer after layer" * sequential
    )
    for column in ("pattern", "sparsifier", "cosine float", "cosine int8", "mean error", "seconds"):
        table.add_column(column, justify="left" if column in ("pattern", "sparsifier") else "right")
    table.add_row("dense", "", "1.0000", f"{cosine(dense, int8(graph, calibration, trial)):.4f}", "", "")
    for pattern in patterns:
        for name in SPARSIFIERS:
            begin = time.process_time()
            known = None if sequential else moments
            pruned, report = prune(
                graph, pattern, sparsifier=name, sequential=sequential, calibration=calibration, moments=known
            )
            seconds = time.process_time() - begin
            real = cosine(dense, embeddings(export_model(pruned), trial))
            error = np.mean([layer.error for layer in report])
            whole = cosine(dense, int8(pruned, calibration, trial))
            table.add_row(pattern, name, f"{real:.4f}", f"{whole:.4f}", f"{error:.4f}", f"{seconds:.1f}")
    console.print(table)


def int8(graph: Graph, calibration: list[sources.Feed], trial: list[sources.Feed]) -> NDArray[np.float32]:
    """Embeddings of the quantised network."""
    return embeddings(
        export_model(quantise(equalise(fuse(graph), calibration[:16]), calibration[:16]), qdq=True), trial
    )


def programs(console: Console, name: str, patterns: list[str], sparsifiers: list[str], count: int, length: int) -> None:
    """Programs of the pruned encoder in the simulator: what they answer and how long they take."""
    source, spec = sources.load("minilm"), ArchSpec.load(name)
    options = Options(products=spec.dynamic_operands, spec=spec)
    graph = run_passes(import_model(source.model, {"batch": 1, "sequence": length}), until="partition", options=options)
    calibration, trial = prose(count, length), sources.tokens(sources.SENTENCES, length)
    moments = input_moments(graph, [op for op in graph.order() if isinstance(op, Linear)], calibration)
    dense = embeddings(export_model(graph), trial)
    table = Table(
        title=f"MiniLM on {spec.name}, {length} tokens, {len(trial)} sentences; "
        f"calibrated on {len(calibration)} pieces of prose"
    )
    for column in ("weights", "sparsifier", "mean error", "cosine", "worst", "cycles", "bound", "speed-up"):
        table.add_column(column, justify="left" if column in ("weights", "sparsifier") else "right")
    table.add_row("float", "", "", "1.0000", "1.0000", "", "", "")
    whole = 0
    for pattern, method in [("dense", ""), *((p, s) for p in patterns for s in sparsifiers)]:
        pruned, error = graph, ""
        if method:
            pruned, report = prune(graph, pattern, sparsifier=method, moments=moments, spec=spec)
            error = f"{np.mean([layer.error for layer in report]):.4f}"
        network = lower(quantise(equalise(fuse(pruned), calibration[:16]), calibration[:16]))
        program = build_program(fitted(network, spec), spec)
        simulator = Simulator(program)
        found = cosines(dense, np.concatenate([simulator.run(feed).outputs["sentence"] for feed in trial]))
        cycles = simulator.run(values=False).cycles
        whole = whole or cycles
        table.add_row(
            f"int8 {pattern}", method, error, f"{found.mean():.4f}", f"{found.min():.4f}", f"{cycles:,}",
            f"{program.bound:,.0f}", f"{whole / cycles:.2f}",
        )  # fmt: skip
    console.print(table)


def steps(console: Console, networks: list[str], patterns: list[str], specs: list[str]) -> None:
    """What an order of channels is worth."""
    table = Table(title="steps of all layers; bound: useful nonzeros over the MACs of a step")
    for column in (
        "network",
        "pattern",
        "spec",
        "steps",
        "reordered",
        "saved",
        "bound",
        "ratio",
        "reordered",
        "seconds",
    ):
        table.add_column(column, justify="left" if column in ("network", "pattern", "spec") else "right")
    for network in networks:
        source = sources.load(network)
        dims = {**source.dims, "sequence": LENGTH} if network == "minilm" else source.dims
        for name in specs:
            spec = ArchSpec.load(name)
            options = Options(products=spec.dynamic_operands)
            graph = run_passes(import_model(source.model, dims), until="partition", options=options)
            for pattern in patterns:
                pruned, _ = prune(graph, pattern)
                begin = time.process_time()
                moved, _ = reorder_steps(pruned, spec)
                seconds = time.process_time() - begin
                before, after = (sum(layer_steps(u, spec) for u in nonzeros(g)) for g in (pruned, moved))
                bound = sum(useful_steps(u, spec) for u in nonzeros(pruned))
                table.add_row(
                    network, pattern, name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}", f"{bound:,.0f}",
                    f"{before / bound:.2f}", f"{after / bound:.2f}", f"{seconds:.0f}",
                )  # fmt: skip
    console.print(table)


def nonzeros(graph: Graph) -> Iterator[NDArray[np.bool_]]:
    """bool [out, taps, in] of every layer that is not grouped."""
    for op in graph.order():
        if isinstance(op, Linear) or (isinstance(op, Conv) and op.groups == 1 and not op.fixed):
            yield channel_rows(array_weight(graph, op, op.weight)) != 0


def nm(console: Console, patterns: list[str]) -> None:
    """Magnitude kept by N:M of the feed-forward layers, whose input order is free."""
    source = sources.load("minilm")
    graph = run_passes(import_model(source.model, {"batch": 1, "sequence": LENGTH}), until="partition")
    names = [op.name for op in graph.order() if isinstance(op, Linear) and op.weight.shape == (384, 1536)]
    calibration, trial = prose(32, LENGTH), samples(graph, sources.tokens(sources.SENTENCES, LENGTH))
    dense = embeddings(export_model(graph), trial)
    table = Table(title="MiniLM, only the second feed-forward layers pruned, by magnitude")
    for column in ("pattern", "order", "mean error", "cosine float"):
        table.add_column(column, justify="left" if column in ("pattern", "order") else "right")
    for pattern in patterns:
        for permute in (False, True):
            wish = dict.fromkeys(names, pattern)
            pruned, report = prune(graph, wish, permute=permute, calibration=calibration)
            found = cosine(dense, embeddings(export_model(pruned), trial))
            error = np.mean([layer.error for layer in report])
            table.add_row(pattern, "reordered" if permute else "as it is", f"{error:.4f}", f"{found:.4f}")
    console.print(table)


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["minilm", "programs", "steps", "nm", "allocation"])
    parser.add_argument("--networks", nargs="*", help="for steps and allocation")
    parser.add_argument("--patterns", nargs="*")
    parser.add_argument("--specs", nargs="*", default=["server"])
    parser.add_argument("--count", type=int, default=256, help="pieces of prose to calibrate with")
    parser.add_argument("--sparsifiers", nargs="*", default=[*SPARSIFIERS], help="for programs")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sentence, for programs")
    parser.add_argument("--sequential", action="store_true", help="measure inputs after the layers before were pruned")
    args = parser.parse_args()
    console = Console(width=140)
    warnings.simplefilter("ignore")
    if args.what == "minilm":
        minilm(console, args.patterns or ["4:8", "2:4", "2:8"], args.count, args.sequential)
    elif args.what == "programs":
        programs(
            console, args.specs[0], args.patterns or ["4:8", "2:4", "2:8"], args.sparsifiers, args.count, args.length
        )
    elif args.what == "steps":
        shares = ["unstructured 80%", "unstructured 90%", "unstructured 95%", "block 4x4 80%"]
        steps(console, args.networks or ["minilm", "resnet50"], args.patterns or shares, args.specs)
    elif args.what == "nm":
        nm(console, args.patterns or ["2:4", "2:8", "4:8"])
    else:
        console.print(allocation.compare(args.specs[0], args.networks or ["minilm", "digits"]))


if __name__ == "__main__":
    main()

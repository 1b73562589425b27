"""CPU kernels against onnxruntime, NumPy, SciPy and torch: python benchmarks/kernels.py [--quick] [--plot FILE.svg]

Everything runs in one process on one core and one thread, takes turns, and is timed by the thread's CPU time, so that
neighbours disturb all alike. A figure is the median over the rounds of the ratio within a round. "of peak" counts
nonzeros only, against a loop of the same operation on registers. All arrays begin at multiples of 64 bytes, and both
sides get their weight beforehand. x and results are row-major on our side: packing and unpacking are in the figures.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cold import cold_start
from numpy.typing import NDArray
from opponents import Call, aligned, blas_kernel, dense_products, sparse_products
from timing import measure, peaks, pin

from gossamer.arch.numerics import make_requant
from gossamer.kernels import BSR, CSR, NM, Dense, FloatCodes, Weight, prepare, prepare_float
from gossamer.kernels.choose import usable_features
from gossamer.kernels.vectors import aligned_empty

SHAPES = {
    "BERT-mini": (128, 256, 256),
    "BERT-mini FFN": (128, 256, 1024),
    "BERT-base": (128, 768, 768),
    "BERT-base FFN": (128, 768, 3072),
    "BERT-base FFN out": (128, 3072, 768),
    "BERT-large": (384, 1024, 1024),
    "ResNet-50 layer1": (3136, 64, 256),
    "ResNet-50 layer2": (784, 512, 128),
    "ResNet-50 layer3": (196, 1024, 256),
    "ResNet-50 layer4": (49, 2048, 512),
    "BERT-base, 1 token": (1, 768, 768),
    "BERT-base, 4 tokens": (4, 768, 768),
    "BERT-base, 16 tokens": (16, 768, 768),
}
"""Rows, K, N: linear layers, and 1 x 1 convolutions as the products they are."""

QUICK = ("BERT-base",)
SPARSITIES = (0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
PATTERNS = ("dense", "N:M", "16x16", "32x32", "4x4", "4x1", "16x1", "unstructured")
FLOAT = ("ORT float32", "NumPy", "torch", "SciPy CSR", "SciPy BSR", "torch CSR")
COLUMNS = {
    "int8": ("sums", "codes", ("MatMulInteger", "QLinearMatMul", "QGemm")),
    "float32": ("float", "float codes", FLOAT),
}
"""Our calls without and with rounding to codes, and the opponents."""
ZERO_POINT = 7


def weights(rng: Any, n: int, k: int, pattern: str, sparsities: tuple[float, ...]) -> Iterator[tuple[str, Weight]]:
    """Random weights of a pattern in its format; blocks that do not divide the shape are left out."""
    full = rng.choice([-1, 1], (n, k)) * rng.integers(1, 128, (n, k))

    def cut(keep: Any) -> Any:
        return np.where(keep, full, 0).astype(np.int8)

    if pattern == "dense":
        yield "dense", Dense.from_dense(full.astype(np.int8))
    elif pattern == "N:M":
        for kept, m in ((2, 4), (1, 4), (1, 8)):
            order = rng.random((n, k // m, m)).argsort(axis=2).argsort(axis=2)
            yield f"{kept}:{m}", NM.from_dense(cut((order < kept).reshape(n, k)), n=kept, m=m)
    else:
        for s in sparsities:
            if pattern == "unstructured":
                yield f"{pattern} {s:.0%}", CSR.from_dense(cut(rng.random((n, k)) >= s))
                continue
            br, bc = map(int, pattern.split("x"))
            if n % br or k % bc:
                return
            blocks = n * k // (br * bc)
            keep = rng.permutation(blocks) >= round(s * blocks)
            grid = np.kron(keep.reshape(n // br, k // bc), np.ones((br, bc), bool))
            yield f"{pattern} {s:.0%}", BSR.from_dense(cut(grid), block=(br, bc))


def ours(x: NDArray[np.uint8], weight: Weight, types: list[str]) -> tuple[dict[str, Call], dict[str, str]]:
    """Our layers of one weight, checked once, with SciPy's and torch's of the same nonzeros; the kernels ours use."""
    dense, (rows, _), n = weight.to_dense(), x.shape, weight.shape[0]
    calls: dict[str, Call] = {}
    kernels: dict[str, str] = {}
    if "int8" in types:
        q = make_requant(np.full(n, 0.001), zero_point=ZERO_POINT, lo=0, hi=255)
        sums, codes = aligned_empty((rows, n), np.int32), aligned_empty((rows, n), np.uint8)
        integer = prepare(weight, zero_point=ZERO_POINT)
        linear = prepare(weight, zero_point=ZERO_POINT, bias=np.zeros(n, np.int32), requant=q)
        exact = (x.astype(np.float64) - ZERO_POINT) @ dense.T.astype(np.float64)
        assert np.array_equal(integer(x, out=sums), exact)
        calls |= {"sums": lambda: integer(x, out=sums), "codes": lambda: linear(x, out=codes)}
        kernels["int8"] = integer.why.kernel
    if "float32" in types:
        xf, wf = aligned(x.astype(np.float32) / np.float32(256)), dense.astype(np.float32) / np.float32(128)
        floats, float_codes = aligned_empty((rows, n), np.float32), aligned_empty((rows, n), np.int8)
        real = prepare_float(wf)
        coded = prepare_float(wf, bias=np.zeros(n, np.float32), codes=FloatCodes(scale=0.5))
        assert np.allclose(real(xf, out=floats), xf @ wf.T.astype(np.float64), atol=1e-3)
        calls |= {"float": lambda: real(xf, out=floats), "float codes": lambda: coded(xf, out=float_codes)}
        square = isinstance(weight, BSR) and weight.block[0] % 16 == weight.block[1] % 16 == 0
        calls |= sparse_products(xf, wf, square)
        kernels["float32"] = real.why.kernel
    return calls, kernels


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of figures of one shape, a weight each."""
    rows, k, n = SHAPES[name]
    rng = np.random.default_rng(0)
    x = aligned(rng.integers(0, 256, (rows, k)).astype(np.uint8))
    tops, operations = peaks()
    dense = dense_products(x, rng.integers(-127, 128, (n, k)).astype(np.int8), ZERO_POINT)
    found = []
    for pattern in options.patterns:
        wanted = [what for kind in options.types for what in COLUMNS[kind][2]]
        calls, made = tops | {what: call for what, call in dense.items() if what in wanted}, []
        for label, weight in weights(rng, n, k, pattern, options.sparsities):
            own, kernels = ours(x, weight, options.types)
            calls |= {f"{label}/{what}": call for what, call in own.items()}
            made.append((label, kernels, np.count_nonzero(weight.to_dense()) / (n * k)))
        times = measure(calls, options.rounds, options.milliseconds / 1000)
        top = {what: count / times[what] for what, count in operations.items()}
        for label, kernels, density in made:
            mine = {what.partition("/")[2]: t for what, t in times.items() if what.startswith(f"{label}/")}
            row = {"shape": name, "weight": label, "pattern": pattern, "density": density}
            row |= {f"{kind} kernel": kernel for kind, kernel in kernels.items()}
            found.append(row | figures(2.0 * rows * k * n, density, mine, times, top))
    return found


def figures(work: float, density: float, mine: Any, others: Any, top: Any) -> dict[str, float]:
    """Medians over the rounds. work : operations of the dense product."""
    made = {unit: float(np.median(rate)) for unit, rate in top.items()}
    for what, unit in (("sums", "dot peak"), ("codes", "dot peak"), ("float", "FMA peak"), ("float codes", "FMA peak")):
        if what in mine:
            made[f"{what} seconds"] = float(np.median(mine[what]))
            made[f"{what} share"] = float(np.median(work * density / mine[what] / top[unit]))
    for what, own in (("MatMulInteger", "sums"), ("QLinearMatMul", "codes"), ("QGemm", "codes")):
        if own in mine:
            made[what] = float(np.median(others[what] / mine[own]))
    for what in FLOAT:
        theirs = others.get(what, mine.get(what))
        if "float" in mine and theirs is not None:
            made[what] = float(np.median(theirs / mine["float"]))
    return made


def print_tables(name: str, found: list[dict[str, Any]]) -> None:
    """Two tables in Markdown."""
    rows, k, n = SHAPES[name]
    work = 2.0 * rows * k * n
    peak = {unit: np.median([row[unit] for row in found]) / 1e9 for unit in ("dot peak", "FMA peak")}
    print(f"\n### {name}: {rows} rows, K = {k}, N = {n}\n")
    print(f"Peaks: {peak['dot peak']:.0f} GOP/s of dot products, {peak['FMA peak']:.0f} GFLOP/s.\n")
    for kind, plain, coded, present in columns(found):
        print_head([f"{kind} weight", "kernel", "us", "dense-equivalent", "of peak", "with codes, of peak", *present])
        for row in found:
            cells = [
                row["weight"],
                row[f"{kind} kernel"],
                f"{row[f'{plain} seconds'] * 1e6:.1f}",
                f"{work / row[f'{plain} seconds'] / 1e9:.0f}",
                f"{row[f'{plain} share']:.0%}",
                f"{row[f'{coded} share']:.0%}",
                *(f"{row[what]:.1f}" if what in row else "" for what in present),
            ]
            print("| " + " | ".join(cells) + " |")
        print(flush=True)


def columns(found: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[str]]]:
    """COLUMNS, as far as they were measured."""
    for kind, (plain, coded, opponents) in COLUMNS.items():
        if any(f"{plain} share" in row for row in found):
            yield kind, plain, coded, [what for what in opponents if any(what in row for row in found)]


def print_head(cells: list[str]) -> None:
    """The first two lines of a table."""
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells))


def large(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that floors are stated for: K >= 768, and enough rows to fill vectors."""
    return [row for row in found if SHAPES[row["shape"]][1] >= 768 and SHAPES[row["shape"]][0] >= 32]


def print_summary(found: list[dict[str, Any]]) -> None:
    """Least and largest figure over the large shapes, a line a weight."""
    rows = large(found)
    if len({row["shape"] for row in rows}) < 2:
        return
    print(f"\n### From the least to the largest of {', '.join(dict.fromkeys(row['shape'] for row in rows))}\n")
    for kind, plain, coded, present in columns(rows):
        print_head([f"{kind} weight", "of peak", "with codes, of peak", *present])
        for label in dict.fromkeys(row["weight"] for row in rows):
            cells = [label]
            for what in (f"{plain} share", f"{coded} share", *present):
                values = [
                    row[what] * (100 if "share" in what else 1)
                    for row in rows
                    if row["weight"] == label and what in row
                ]
                digits, unit = (0, " %") if "share" in what else (1, "")
                cells.append(f"{min(values):.{digits}f}-{max(values):.{digits}f}{unit}" if values else "")
            print("| " + " | ".join(cells) + " |")
        print(flush=True)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Speed over the dense product of onnxruntime by sparsity: median over the shapes with K >= 768 and 32 rows."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = large(found)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gossamer"}):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        titles = {"QLinearMatMul": "int8 with requantise, over QLinearMatMul", "ORT float32": "float32, over MatMul"}
        panels = [opponent for opponent in titles if any(opponent in row for row in rows)]
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, opponent in zip(axes, panels, strict=True):
            for pattern in dict.fromkeys(row["pattern"] for row in rows if row["pattern"] != "dense"):
                points: dict[float, list[float]] = {}
                for row in rows:
                    if row["pattern"] == pattern and opponent in row:
                        points.setdefault(round(1 - row["density"], 2 if pattern != "N:M" else 3), []).append(
                            row[opponent]
                        )
                xs = sorted(points)
                axis.plot([100 * x for x in xs], [np.median(points[x]) for x in xs], marker="o", ms=3.5, label=pattern)
            ideal = np.linspace(0.5, 0.95, 100)
            axis.plot(100 * ideal, 1 / (1 - ideal), color="#9a9da3", ls="--", lw=1, label="nonzeros alone")
            axis.axhline(1, color="#9a9da3", lw=0.8)
            axis.set(title=titles[opponent], xlabel="zeros, %", yscale="log", yticks=[0.5, 1, 2, 4, 8, 16])
            axis.yaxis.set_major_formatter("{x:g}x")
            axis.yaxis.set_minor_formatter("")
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("times as fast as the dense product of onnxruntime")
        axes[-1].legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def processor() -> str:
    """Its name, and the features that decide between kernels."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    deciding = ("avx2", "avx512f", "avx512vnni", "avx512vbmi", "avxvnni")
    return f"{model or platform.machine()} ({', '.join(f for f in deciding if f in usable_features())})"


def main() -> None:
    """Print a table for every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, 50, 75 and 90 %%, few rounds")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--milliseconds", type=float, default=4, help="least time of a measurement")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--patterns", nargs="*", choices=PATTERNS, default=PATTERNS)
    parser.add_argument("--sparsities", nargs="*", type=float, default=SPARSITIES)
    parser.add_argument("--types", nargs="*", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the figures (json)")
    parser.add_argument("--load", type=Path, metavar="FILE", nargs="*", default=[], help="add kept figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture (svg, png, pdf)")
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.sparsities, options.rounds = QUICK, (0.5, 0.75, 0.9), 5
    pin(options.core)
    print(f"{processor()}; NumPy with {blas_kernel()}.")
    for line in cold_start():
        print(line, flush=True)
    found: list[dict[str, Any]] = []
    for name in options.shapes:
        rows = compare(name, options)
        print_tables(name, rows)
        found += rows
        if options.save:
            options.save.write_text(json.dumps(found, indent=1))
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found + [row for path in options.load for row in json.loads(path.read_text())]:
        merged.setdefault((row["shape"], row["weight"]), {}).update(row)
    found = list(merged.values())
    print_summary(found)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()

"""The front end from a model to a Network: the table of passes, and what runs them.

Every pass is a function from Graph to Graph that can be run, and its result printed, alone; the last one makes the
Network.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gossamer.arch.errors import ModelError
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.calibrate import Calibration, materialised
from gossamer.compiler.frontend.cleanup import cleanup
from gossamer.compiler.frontend.equalise import equalise
from gossamer.compiler.frontend.fuse import fuse
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.importer import Model, import_model
from gossamer.compiler.frontend.legalise import legalise
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.frontend.partition import partition
from gossamer.compiler.frontend.products import recognise_products, refuse_products
from gossamer.compiler.frontend.quantise import quantise
from gossamer.compiler.frontend.recognise import recognise
from gossamer.compiler.frontend.shapes import fold_constants, infer_shapes
from gossamer.compiler.frontend.unfold import unfold
from gossamer.compiler.layers import Network
from gossamer.compiler.sparsity.permute import permute
from gossamer.compiler.sparsity.sparsifiers.interface import Sparsifier
from gossamer.compiler.sparsity.sparsify import Sparsity, check_wishes, sparsify

__all__ = ["PASSES", "Options", "build_network", "import_model", "run_passes"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chooses.

    sparsity : a pattern for all layers, or {layer name or glob: pattern} (see sparsify); None keeps weights as they are
    calibration : data to measure ranges on (see calibrate.Calibration), read here, once, as several passes ask for it
    method : minmax, percentile or entropy
    sparsifier, allocation, sequential : which weights go, and how many of which layer (see sparsify.prune)
    permute : reorder channels, where that is free, to keep more of N:M and to save steps on `spec`
    spec : the accelerator, for what depends on it
    signed : int8 instead of uint8 activations
    products : the accelerator multiplies activations with each other (ArchSpec.dynamic_operands)
    """

    sparsity: Sparsity | None = None
    sparsifier: str | Sparsifier = "magnitude"
    allocation: str = "uniform"
    sequential: bool = False
    permute: bool = False
    spec: ArchSpec | None = None
    calibration: Calibration | None = None
    method: str = "minmax"
    signed: bool = False
    products: bool = False

    def __post_init__(self) -> None:
        check_wishes(self.sparsity, self.sparsifier, self.allocation, self.sequential)
        object.__setattr__(self, "calibration", materialised(self.calibration))


Pass = Callable[[Graph, Options], Graph]

PASSES: dict[str, Pass] = {
    "infer_shapes": lambda graph, _: infer_shapes(graph),
    "unfold": lambda graph, _: unfold(graph),
    "fold_constants": lambda graph, _: fold_constants(graph),
    "recognise": lambda graph, _: recognise(graph),
    "cleanup": lambda graph, _: cleanup(graph),
    "products": lambda graph, options: recognise_products(graph) if options.products else refuse_products(graph),
    "legalise": lambda graph, _: legalise(graph),
    "partition": lambda graph, _: partition(graph),
    "sparsify": lambda graph, options: sparsify(
        graph,
        options.sparsity,
        sparsifier=options.sparsifier,
        allocation=options.allocation,
        sequential=options.sequential,
        permute=options.permute,
        calibration=options.calibration,
        spec=options.spec,
    ),
    "fuse": lambda graph, _: fuse(graph),
    "equalise": lambda graph, options: equalise(graph, options.calibration),
    "quantise": lambda graph, options: quantise(graph, options.calibration, options.method, options.signed),
    "permute": lambda graph, options: permute(graph, options.spec) if options.permute and options.spec else graph,
}
"""Passes over a Graph, in order; import_model comes before them, lower after them."""


def run_passes(
    graph: Graph,
    *,
    until: str | None = None,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
) -> Graph:
    """Run the passes in order, up to and including `until` (all when None).

    progress : called with each pass's name before it runs. Raises ModelError for a name that is not a pass.
    """
    if until is not None and until not in PASSES:
        raise ModelError(f"until must be one of {', '.join(PASSES)}, not {until!r}")
    for name, result in stages(graph, options, progress):
        graph = result
        if name == until:
            break
    return graph


def stages(
    graph: Graph, options: Options | None = None, progress: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Graph]]:
    """Each pass's name with the graph it made, as they run."""
    for name, function in PASSES.items():
        if progress is not None:
            progress(name)
        graph = function(graph, options or Options())
        graph.verify()
        yield name, graph


def build_network(
    model: Model,
    *,
    sparsity: Sparsity | None = None,
    sparsifier: str | Sparsifier = "magnitude",
    allocation: str = "uniform",
    sequential: bool = False,
    permute: bool = False,
    spec: ArchSpec | None = None,
    calibration: Calibration | None = None,
    dims: Mapping[str, int] | None = None,
    method: str = "minmax",
    signed: bool = False,
    products: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Network:
    """From an ONNX model (path, bytes or ModelProto; of floats or int8) to a Network.

    See import_model for dims, Options for the rest. Raises ModelError.
    """
    options = Options(
        sparsity=sparsity,
        sparsifier=sparsifier,
        allocation=allocation,
        sequential=sequential,
        permute=permute,
        spec=spec,
        calibration=calibration,
        method=method,
        signed=signed,
        products=products,
    )
    if progress is not None:
        progress("import")
    graph = import_model(model, dims)
    graph = run_passes(graph, options=options, progress=progress)
    if progress is not None:
        progress("lower")
    return lower(graph)

"""What the passes behind know already, said in other words: operators of codes, of dynamic quantisation, fused ones.

onnxruntime's quantiser and optimiser write most of them, exporters the rest.
"""

from gossamer.compiler.frontend.dynamic import unfold_dynamic
from gossamer.compiler.frontend.fused import unfold_fused
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.matrix import unfold_matrices
from gossamer.compiler.frontend.qoperators import unfold_qoperators
from gossamer.compiler.frontend.shapes import infer_shapes

__all__ = ["unfold"]


def unfold(graph: Graph) -> Graph:
    """Replace such operators where that changes nothing; shapes are inferred anew."""
    for unfolded in (unfold_qoperators, unfold_dynamic, unfold_fused):
        graph = unfolded(graph)
    return infer_shapes(unfold_matrices(infer_shapes(graph)))

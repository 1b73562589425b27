"""What a layer of a graph costs with given zeros: packed and mapped by itself, as the back end would."""

import numpy as np

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Linear
from gossamer.compiler.layers import Conv as ConvLayer
from gossamer.compiler.layers import Network, Tensor
from gossamer.compiler.sparsity.sparsifiers.view import view_of

__all__ = ["layer_cycles"]


def layer_cycles(graph: Graph, op: Conv | Linear, weight: Array, spec: ArchSpec) -> float:
    """The mapper's cycles for the operation with a weight of [out, in / groups, kernel_h, kernel_w].

    Only the weight's zeros matter. Raises CapacityError when the layer does not fit the spec.
    """
    from gossamer.compiler.backend.mapped import map_layer  # the front end knows it for this question only
    from gossamer.compiler.backend.placing import place_tensors

    view = view_of(graph, op)
    tensors = {name: _tensor(graph, name, tensor) for name, tensor in (("x", op.inputs[0]), ("y", op.output))}
    layer = ConvLayer(
        name=op.name,
        inputs=("x",),
        output="y",
        weight=(weight != 0).astype(np.int8),
        bias=np.zeros(len(weight), dtype=np.int32),
        scale=np.ones(len(weight)),
        stride=view.stride,
        dilation=view.dilation,
        pads=view.pads,
        groups=view.groups,
    )
    network = Network(name=op.name, tensors=tensors, stages=(layer,), inputs=("x",), outputs=("y",))
    return map_layer(layer, place_tensors(network, spec), spec).mapping.cost.cycles


def _tensor(graph: Graph, name: str, source: str) -> Tensor:
    layout = graph.info(source).layout
    assert layout is not None
    return Tensor(name=name, shape=layout.shape, scale=1.0, zero_point=0, signed=True)

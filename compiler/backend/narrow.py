"""Tensors with few channels: blocks as small as they are, so that several pixels share a beat and a window.

A picture of 3 channels would fill 3 of the bytes of every channel block, and the bus would bring zeros. In blocks of 4
a beat of 64 bytes has 16 pixels, and a window of 8 elements two of them: a convolution with stride 2 then needs half as
many windows. Only the host may write such a tensor, since a STORE writes whole blocks of the array's columns.
"""

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.layers import Conv, Layer, Network

__all__ = ["narrow_blocks"]


def narrow_blocks(network: Network, spec: ArchSpec) -> dict[str, int]:
    """Block of every tensor that can have one smaller than the spec's."""
    readers: dict[str, list[Layer]] = {}
    for layer in network.layers:
        for name in {*layer.inputs, *_others(layer)}:
            readers.setdefault(name, []).append(layer)
    written = {layer.output for layer in network.layers}
    found = {}
    for name, tensor in network.tensors.items():
        if name in written:
            continue
        block = _smallest(name, tensor.shape[1], readers.get(name, []), spec)
        if block < spec.block:
            found[name] = block
    return found


def _others(layer: Layer) -> tuple[str, ...]:
    """Tensors that a layer reads beside its inputs."""
    residual = getattr(layer, "residual", None)
    return (residual,) if residual else ()


def _smallest(name: str, channels: int, readers: list[Layer], spec: ArchSpec) -> int:
    """The smallest power of two that holds the channels and lets every reader's positions begin with a window."""
    block = 1 << (channels - 1).bit_length()
    pads = {layer.pads[1] for layer in readers if isinstance(layer, Conv)}
    for layer in readers:
        if not isinstance(layer, Conv) or layer.groups > 1 or layer.inputs != (name,) or layer.residual == name:
            return spec.block
        if len(pads) > 1:  # rows would begin between beats
            return spec.block
        while layer.stride[1] * block % spec.group:
            block *= 2
    return min(block, spec.block)

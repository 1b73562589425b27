"""Train the digits networks, dense and with N:M sparse weights, and write them as ONNX files.

    python -m pip install -e ".[examples]"
    python -m pip install torch==2.13.0
    python examples/digits/train.py

PyTorch is needed here and nowhere else in the project, so it is in none of its dependency lists: install it by hand.

Sparsity is trained in from the first step with SR-STE (Zhou et al., "Learning N:M fine-grained structured sparse
neural networks from scratch", ICLR 2021): dense weights are kept, the forward pass sees only the N largest of every
M = 8 consecutive input channels, and the backward pass lets the gradient straight through to all of them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from data import CLASSES, GROUP, HERE, KEEP, Split, load
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

SEED = 2021
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 0.1
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises, before it falls along a cosine."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
REFINE = 2e-4
"""Lambda of SR-STE: the extra decay of weights outside the mask, which keeps the mask from flickering."""
OPSET = 17
TOLERANCE = 1e-4
"""Largest difference between PyTorch's logits and onnxruntime's."""


def largest_mask(weight: Tensor, keep: int) -> Tensor:
    """True for the `keep` largest magnitudes of every GROUP consecutive input channels.

    weight : [out_channels, in_channels, ...], in_channels a multiple of GROUP;  result : bool, the same shape.
    """
    groups = weight.detach().abs().unflatten(1, (-1, GROUP))
    chosen = groups.topk(keep, dim=2).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, chosen, True).flatten(1, 2)


class SparseRefinedStraightThrough(torch.autograd.Function):
    """Forward: mask * w.  Backward: dL/dw = g + REFINE * (1 - mask) * w, with g the gradient of the masked weight."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, keep: int) -> Tensor:
        mask = largest_mask(weight, keep)
        ctx.save_for_backward(weight, mask)
        # where, not a product: a product leaves -0.0 behind, and those would go into the file
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradients[0] + REFINE * torch.where(mask, 0.0, weight), None


def pruned(weight: Tensor, keep: int) -> Tensor:
    """The weight that takes part in the forward pass: N:M sparse where the input channels can be grouped."""
    if keep == GROUP or weight.shape[1] % GROUP:
        return weight
    return SparseRefinedStraightThrough.apply(weight, keep)


class ConvNorm(nn.Module):
    """3x3 convolution without bias, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, *, keep: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.keep = keep
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(functional.conv2d(x, pruned(self.conv.weight, self.keep), stride=self.stride, padding=1))


class Digits(nn.Module):
    """Stem, residual block at 8x8, stride-2 convolution, residual block at 4x4, average, classifier."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep
        self.stem = ConvNorm(1, 32, keep=keep)
        self.block1a = ConvNorm(32, 32, keep=keep)
        self.block1b = ConvNorm(32, 32, keep=keep)
        self.down = ConvNorm(32, 64, keep=keep, stride=2)
        self.block2a = ConvNorm(64, 64, keep=keep)
        self.block2b = ConvNorm(64, 64, keep=keep)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.stem(image))
        x = functional.relu(x + self.block1b(functional.relu(self.block1a(x))))
        x = functional.relu(self.down(x))
        x = functional.relu(x + self.block2b(functional.relu(self.block2a(x))))
        return functional.linear(x.mean(dim=(2, 3)), pruned(self.classifier.weight, self.keep), self.classifier.bias)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions; what comes in is background."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1))[:, 0]
    top, left = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows = top + torch.arange(height)[None, :, None]
    columns = left + torch.arange(width)[None, None, :]
    return padded[torch.arange(count)[:, None, None], rows, columns][:, None]


def batches(data: Split, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches in random order; a last, smaller batch is left out."""
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    order = torch.randperm(len(labels), generator=generator)
    for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield shifted(images[chosen], generator), labels[chosen]


def train(keep: int, data: Split, epochs: int) -> Digits:
    """Train one network from scratch. Nothing is chosen by looking at results: the last epoch is the model."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Digits(keep).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        LEARNING_RATE,
        total_steps=epochs * (len(data.labels) // BATCH),
        pct_start=WARM_UP,
        cycle_momentum=False,
    )
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for images, labels in batches(data, generator):
            loss = functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(labels)
        if epoch % 10 == 9:
            print(f"  epoch {epoch + 1:3d}: training loss {total / len(data.labels):.4f}", flush=True)
    return model.eval()


class Graph:
    """An ONNX graph under construction: every method appends a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Tensor) -> str:
        array = np.ascontiguousarray(value.detach().numpy(), dtype=np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, name: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def conv_norm(self, name: str, layer: ConvNorm, x: str) -> str:
        """Conv and BatchNormalization are left apart, as in a model nobody has optimised: folding is the compiler's."""
        weight = self.constant(f"{name}.weight", pruned(layer.conv.weight, layer.keep))
        x = self.op(
            "Conv", f"{name}.conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[layer.stride] * 2
        )
        norm = layer.norm
        statistics = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
        names = [self.constant(f"{name}.norm.{key}", value) for key, value in statistics.items()]
        return self.op("BatchNormalization", f"{name}.norm", x, *names, epsilon=norm.eps)

    def block(self, name: str, first: ConvNorm, second: ConvNorm, x: str) -> str:
        y = self.op("Relu", f"{name}a.relu", self.conv_norm(f"{name}a", first, x))
        y = self.conv_norm(f"{name}b", second, y)
        return self.op("Relu", f"{name}.relu", self.op("Add", f"{name}.add", x, y))


def to_onnx(model: Digits, name: str) -> onnx.ModelProto:
    """The network as ONNX: image [batch, 1, 8, 8] -> logits [batch, 10]."""
    graph = Graph()
    x = graph.op("Relu", "stem.relu", graph.conv_norm("stem", model.stem, "image"))
    x = graph.block("block1", model.block1a, model.block1b, x)
    x = graph.op("Relu", "down.relu", graph.conv_norm("down", model.down, x))
    x = graph.block("block2", model.block2a, model.block2b, x)
    x = graph.op("Flatten", "flatten", graph.op("GlobalAveragePool", "average", x), axis=1)
    weight = graph.constant("classifier.weight", pruned(model.classifier.weight, model.keep))
    bias = graph.constant("classifier.bias", model.classifier.bias)
    graph.op("Gemm", "classifier", x, weight, bias, output="logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    proto = helper.make_model(
        helper.make_graph(graph.nodes, name, [image], [logits], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="gossamer examples/digits/train.py",
        ir_version=8,  # the first that goes with opset 17: old runtimes refuse newer files
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def check_pattern(proto: onnx.ModelProto, keep: int) -> float:
    """Raise unless every group of every groupable weight holds at most `keep` nonzeros; return their density."""
    nonzero = size = 0
    for initializer in proto.graph.initializer:
        weight = numpy_helper.to_array(initializer)
        if weight.ndim < 2 or weight.shape[1] % GROUP:
            continue
        groups = weight.reshape(weight.shape[0], -1, GROUP, *weight.shape[2:])
        fullest = int(np.count_nonzero(groups, axis=2).max())
        if fullest > keep:
            raise ValueError(f"{initializer.name}: a group of {GROUP} must have at most {keep} nonzeros, not {fullest}")
        nonzero += np.count_nonzero(weight)
        size += weight.size
    return nonzero / size


def check_values(proto: onnx.ModelProto, model: Digits, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Raise unless onnxruntime agrees with PyTorch; return onnxruntime's logits."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    difference = float(np.abs(logits - expected).max())
    if difference > TOLERANCE:
        raise ValueError(f"onnxruntime and PyTorch differ by {difference:.2g}, more than {TOLERANCE:g}")
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits networks and write them as ONNX files.")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results (default: next to this file)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # sums in one order only: with the seeds, the same weights every time
    torch.use_deterministic_algorithms(True)
    training, test = load()
    arguments.out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, keep in KEEP.items():
        print(f"{name}: {len(training.labels)} training images, {arguments.epochs} epochs")
        model = train(keep, training, arguments.epochs)
        proto = to_onnx(model, name)
        density = check_pattern(proto, keep)
        logits = check_values(proto, model, test.images)
        counts[name] = int((logits.argmax(axis=1) == test.labels).sum())
        top = np.sort(logits, axis=1)
        (arguments.out / f"{name}.onnx").write_bytes(proto.SerializeToString())
        print(
            f"  {counts[name]} of {len(test.labels)} test images correct ({counts[name] / len(test.labels):.2%}), "
            f"density {density:.4f}, closest call {float((top[:, -1] - top[:, -2]).min()):.3g} between two logits"
        )
    (arguments.out / "correct.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

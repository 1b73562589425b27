"""Facts about a spec, a model or a program, as plain data for `gossamer inspect` and for scripts."""

import tomllib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gossamer.arch.errors import GossamerError, ModelError
from gossamer.arch.isa import Op, Unit, disassemble
from gossamer.arch.program import MAGIC, UNKNOWN_MACS, HostStage, Program
from gossamer.arch.run import EVENT_FIELDS, Run
from gossamer.arch.spec import ArchSpec, preset_names

__all__ = [
    "graph_after",
    "host_stages",
    "inspect",
    "inspect_model",
    "inspect_program",
    "inspect_run",
    "inspect_spec",
    "preset_table",
]


def inspect(target: str | Path) -> dict[str, Any]:
    """Facts about a spec (TOML file or preset name), a model (ONNX) or a Program; the content shows which it is.

    The key "kind" of the result is "spec", "model" or "program". Raises GossamerError when the target is none.
    """
    path = Path(target)
    if not path.exists():
        if str(target) in preset_names():
            return inspect_spec(ArchSpec.load(target))
        raise GossamerError(f"{str(target)!r} is neither a file nor a preset; presets are {', '.join(preset_names())}")
    if path.is_dir():
        raise GossamerError(f"{str(target)!r} is a folder, not a spec, a model or a Program")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise GossamerError(f"cannot read {str(target)!r}: {error.strerror}") from error
    if head.startswith(MAGIC) or (path.suffix == ".gsm" and (not head or _is_text(head))):
        return inspect_program(Program.load(path))
    if not head and path.suffix != ".toml":
        raise GossamerError(f"{str(target)!r} is empty")
    if path.suffix == ".toml" or (path.suffix != ".onnx" and _is_text(head)):
        return inspect_spec(ArchSpec.load(path))
    return inspect_model(path)


def _is_text(head: bytes) -> bool:
    """No byte of a text file is a control character, except white space; every ONNX file begins with one."""
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head)


def graph_after(model: str | Path, name: str, dims: dict[str, int] | None = None) -> str:
    """The compiler's graph of an ONNX model after one of its passes, as text; "import" is before all of them.

    Raises ModelError when there is no such pass, or no such model.
    """
    from gossamer.compiler.passes import PASSES, import_model, run_passes

    if name not in ("import", *PASSES):
        raise ModelError(f"{name!r} is not a pass; passes are import, {', '.join(PASSES)}")
    graph = import_model(Path(model), dims or None)
    return str(graph if name == "import" else run_passes(graph, until=name))


def inspect_spec(spec: ArchSpec) -> dict[str, Any]:
    """Every number of a spec, and what follows from them."""
    total = sum(spec.buffer_bytes.values())
    return {
        "kind": "spec",
        "spec": tomllib.loads(spec.to_toml()),
        "derived": {
            "pes": spec.pes,
            "peak_macs": spec.peak_macs,
            "peak_gmacs_per_second": spec.peak_macs * spec.clock_mhz / 1000,
            "buffer_bytes": {**spec.buffer_bytes, "total": total},
        },
    }


def preset_table() -> list[dict[str, Any]]:
    """The presets, one row each."""
    rows = []
    for name in preset_names():
        spec = ArchSpec.load(name)
        rows.append(
            {
                "name": name,
                "purpose": spec.purpose,
                "lanes": spec.lanes,
                "columns": spec.columns,
                "group": spec.group,
                "macs": spec.macs,
                "peak_macs": spec.peak_macs,
                "buffer_bytes": sum(spec.buffer_bytes.values()),
            }
        )
    return rows


def inspect_program(program: Program) -> dict[str, Any]:
    """What a Program holds: its spec, inputs, outputs, stages, layers, instructions and memory."""
    opcodes = program.instructions[:, 0].tolist()
    host = iter(host_stages(program))
    return {
        "kind": "program",
        "name": program.name,
        "spec": program.spec.name,
        "inputs": [_symbol(program, name) for name in program.inputs],
        "outputs": [_symbol(program, name) for name in program.outputs],
        "instructions": {"total": len(opcodes), **{op.name: opcodes.count(op) for op in Op}},
        "dram_bytes": program.dram_bytes,
        "image_bytes": sum(segment.data.size for segment in program.segments),
        "stages": [
            next(host)
            if isinstance(stage, HostStage)
            else {"name": stage.name, "on": "accelerator", "instructions": stage.count}
            for stage in program.stages
        ],
        "layers": [{**asdict(note), "bound_cycles": note.bound(program.spec)} for note in program.layers],
    }


def host_stages(program: Program) -> list[dict[str, Any]]:
    """The parts of a Program that run on the host: which, why, and their share of all MACs, None where not known."""
    host = program.host_stages
    unknown = any(stage.macs == UNKNOWN_MACS for stage in host)
    macs = None if unknown else sum(stage.macs for stage in host) + sum(note.macs for note in program.layers)
    return [
        {
            "name": stage.name,
            "on": "host",
            "reason": stage.reason,
            "operators": list(stage.ops),
            "macs": None if stage.macs == UNKNOWN_MACS else stage.macs,
            "mac_share": _share(stage.macs, macs),
        }
        for stage in host
    ]


def _share(macs: int, total: int | None) -> float | None:
    """Of all multiply-accumulates, None when either is not known."""
    if macs == 0:
        return 0.0
    return None if total is None else macs / total


def inspect_run(run: Run, *, trace: bool = False) -> dict[str, Any]:
    """What a run gave: cycles, counters, outputs, when each layer ran and, with trace, every event."""
    program, spec = run.program, run.program.spec
    useful = sum(note.useful_macs for note in program.layers)
    slots = run.cycles * spec.peak_macs
    counters = run.counters
    units = []
    for unit in (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE):
        name = unit.name.lower()
        waits = {k.removeprefix(f"stall_{name}_"): v for k, v in counters.items() if k.startswith(f"stall_{name}_")}
        units.append(
            {"unit": unit.name, "busy": counters[f"busy_{name}"], "stalls": {k: v for k, v in waits.items() if v}}
        )
    facts: dict[str, Any] = {
        "kind": "run",
        "program": program.name,
        "spec": spec.name,
        "cycles": run.cycles,
        "seconds": run.seconds,
        "bound_cycles": program.bound,
        "utilisation": useful / slots if useful and slots else None,
        "outputs": [{"name": n, "dtype": str(v.dtype), "shape": list(v.shape)} for n, v in run.outputs.items()],
        "stages": [{"name": stage.name, "cycles": stage.cycles} for stage in run.stages],
        "host": [{"name": s.name, "reason": s.reason} for s in program.host_stages],
        "layers": run.layers,
        "units": units,
        "counters": counters,
        "statistics": dict(run.statistics),
    }
    return {**facts, "events": _events(run)} if trace else facts


def _events(run: Run) -> list[dict[str, Any]]:
    """Every event of every stage, with its instruction as text."""
    program = run.program
    stages = {stage.name: stage for stage in program.accelerator_stages}
    out = []
    for done in run.stages:
        for i, row in enumerate(done.events.tolist()):
            event = dict(zip(EVENT_FIELDS, row, strict=True))
            text = disassemble(program.instructions[stages[done.name].first + i])
            out.append({**event, "stage": done.name, "unit": Unit(event["unit"]).name, "instruction": text})
    return out


def _symbol(program: Program, name: str) -> dict[str, Any]:
    """Name, dtype and shape of a Program's input or output, as the model's user sees it."""
    if name in program.tensors:
        return {"name": name, "dtype": "float", "shape": list(program.tensors[name].model_shape)}
    dtype, shape = program.host_types.get(name, ("?", ()))
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def inspect_model(path: Path) -> dict[str, Any]:
    """What an ONNX file holds: inputs, outputs, operators, and the zeros of its weights.

    Raises ModelError when the file is not an ONNX model.
    """
    # onnx takes a fraction of a second to import: only who looks at a model pays for it.
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.load_external_data_for_model(model, str(path.parent))
    except DecodeError as error:
        raise ModelError(f"{str(path)!r} is not a spec (TOML), a model (ONNX) or a Program") from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{str(path)!r}: its external weights cannot be read: {error}") from error
    if not model.graph.node:
        raise ModelError(f"{str(path)!r} is not a spec (TOML), a model (ONNX) or a Program: it has no operators")

    weights = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim < 2:
            continue  # biases, shapes and scales
        nonzeros = int((values != 0).sum())
        weights.append(
            {
                "name": tensor.name,
                "shape": list(values.shape),
                "dtype": str(values.dtype),
                "size": values.size,
                "nonzeros": nonzeros,
            }
        )
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        "kind": "model",
        "name": model.graph.name,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value(v) for v in model.graph.input if v.name not in constants],
        "outputs": [_value(v) for v in model.graph.output],
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weights": weights,
    }


def _value(info: Any) -> dict[str, Any]:
    """Name, dtype and shape of an input or output; a dimension without a number goes by its name."""
    import onnx

    tensor = info.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": info.name, "dtype": dtype, "shape": shape}

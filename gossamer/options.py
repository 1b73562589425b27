"""Options that several commands share, and what their texts mean."""

import re
from pathlib import Path
from typing import Annotated

import typer

from gossamer.arch.spec import preset_names

__all__ = [
    "Allocation",
    "Calibration",
    "Chains",
    "Debug",
    "Dims",
    "Inputs",
    "Json",
    "Method",
    "Permute",
    "Refine",
    "Sequential",
    "Signed",
    "Sparsifier",
    "Sparsity",
    "as_options",
    "check_inputs",
    "complete_spec",
    "parse_dims",
    "parse_patterns",
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="GOSSAMER_DEBUG")]
Sparsity = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Prune to a pattern, such as 2:8, or LAYER=PATTERN; may be repeated."),
]
Sparsifier = Annotated[
    str, typer.Option(metavar="NAME", help="What chooses the weights to prune: magnitude, wanda or sparsegpt.")
]
Allocation = Annotated[
    str,
    typer.Option(metavar="RULE", help="Zeros among layers: uniform, erk, lamp, global, or cycles: 'cost 60%'."),
]
Sequential = Annotated[
    bool, typer.Option("--sequential", help="Prune a layer with the inputs it has after those before it were pruned.")
]
Method = Annotated[str, typer.Option(metavar="NAME", help="How ranges are chosen: minmax, percentile or entropy.")]
Signed = Annotated[bool, typer.Option("--signed", help="Quantise activations to int8 instead of uint8.")]
Permute = Annotated[
    bool, typer.Option("--permute", help="Reorder channels inside the network to save steps and weights.")
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="NPZ", help="Inputs by name, to prune and to choose scales with.")
]
Dims = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Fix a dimension of the model; may be repeated.")
]
Inputs = Annotated[
    Path | None,
    typer.Option("--input", "-i", metavar="NPZ", help="Inputs by name, one set or several; random without it."),
]
Refine = Annotated[bool, typer.Option("--refine", help="Choose mappings and chains by simulating the best few.")]
Chains = Annotated[
    bool, typer.Option("--chains/--no-chains", help="Keep tensors between layers on chip, or all of them in DRAM.")
]


def complete_spec(incomplete: str) -> list[str]:
    """Preset names for the shell; with none that fits, the shell completes files."""
    return [name for name in preset_names() if name.startswith(incomplete)]


def parse_dims(pairs: list[str]) -> dict[str, int]:
    """name=value options as a mapping."""
    dims = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value.isascii() or not value.isdecimal() or int(value) == 0:
            raise typer.BadParameter(f"{pair!r} must be NAME=VALUE with a positive integer, such as batch=1")
        dims[name] = int(value)
    return dims


def parse_patterns(wishes: list[str]) -> dict[str, str] | None:
    """PATTERN for all layers, or LAYER=PATTERN with a name or glob; later ones win."""
    found = {}
    for wish in wishes:
        layer, equals, pattern = wish.rpartition("=")
        if not pattern.strip() or (equals and not layer.strip()):
            raise typer.BadParameter(f"{wish!r} must be PATTERN, such as 2:8, or LAYER=PATTERN, such as 'head*=2:8'")
        found[layer or "*"] = pattern
    return found or None


def check_inputs(inputs: Path | None, dim: list[str] | None, program: Path | None, model: Path | None) -> None:
    """Refuse --input without what takes it, and --dim without a model."""
    if inputs is not None and program is None and model is None:
        raise typer.BadParameter("--input needs --program or --model")
    if dim and model is None:
        raise typer.BadParameter("--dim needs --model")


def as_options(message: object) -> str:
    """A message in one line, with the arguments of the API called by what they are here: dims={...} is --dim."""
    text = re.sub(r"\bdims=\{(.*?)\}", lambda found: _dim_options(found[1]), " ".join(str(message).split()))
    text = re.sub(r"\bdims=", "--dim", text)
    return re.sub(r"\b(calibration|sparsity)=(?!\w)", r"--\1", text)


def _dim_options(pairs: str) -> str:
    return " ".join(f"--dim {name}=SIZE" for name in re.findall(r"'(.*?)': size", pairs))

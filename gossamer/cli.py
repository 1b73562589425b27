"""The command line: `gossamer compile`, `run`, `inspect`, `explain`, `rtl`, `synth`, `verify`, `coverage` and others.

What a command finds goes to stdout, as text or with --json as one JSON document; everything else goes to stderr.
Exit codes: 0 done; 1 Gossamer refused, the reason is the line on stderr; 2 the command line is wrong; 3 a bug.
"""

import json
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

import gossamer
from gossamer import __version__, inspection, report
from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec, json_schema
from gossamer.files import check_output, load_arrays, save_arrays
from gossamer.options import (
    Allocation,
    Calibration,
    Chains,
    Debug,
    Dims,
    Inputs,
    Json,
    Method,
    Permute,
    Refine,
    Sequential,
    Signed,
    Sparsifier,
    Sparsity,
    as_options,
    check_inputs,
    complete_spec,
    parse_dims,
    parse_patterns,
)

__all__ = ["app", "main"]

P = ParamSpec("P")

app = typer.Typer(
    name="gossamer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hardware/simulator co-design for sparse accelerators.",
    epilog="Exit codes: 0 done; 1 refused, for the reason on stderr; 2 wrong usage; 3 a bug in Gossamer.",
)


def main() -> None:
    """Entry point of the `gossamer` script."""
    app(prog_name="gossamer")


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Register a command whose errors become one line on stderr and an exit code."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn  # type: ignore[assignment]
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # typer's own, and a reader who has seen enough
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc(file=sys.stderr)
            if isinstance(error, GossamerError):
                message, code = str(error), 1
            elif isinstance(error, OSError):
                message, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 1
            else:
                message, code = f"a bug in Gossamer ({type(error).__name__}: {error}); --debug shows where", 3
            typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
            typer.echo(as_options(message), err=True)
            raise typer.Exit(code) from error

    app.command(no_args_is_help=False)(guarded)
    return guarded


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning as one line on stderr."""
    typer.secho("warning: ", fg=typer.colors.YELLOW, bold=True, nl=False, err=True)
    typer.echo(as_options(message), err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gossamer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _api(name: str) -> Callable[..., Any]:
    """A function of gossamer's API, which loads the room behind it when it is asked for."""
    function: Callable[..., Any] | None = getattr(gossamer, name, None)
    if function is None:
        raise GossamerError(f"gossamer.{name} is not part of this version yet")
    return function


@_command
def compile(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    spec: Annotated[
        str,
        typer.Option(
            "--spec", "-s", help="TOML file or preset name.", autocompletion=complete_spec, show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Program file to write.", show_default=False)],
    sparsity: Sparsity = None,
    sparsifier: Sparsifier = "magnitude",
    allocation: Allocation = "uniform",
    sequential: Sequential = False,
    permute: Permute = False,
    calibration: Calibration = None,
    method: Method = "minmax",
    signed: Signed = False,
    dim: Dims = None,
    refine: Refine = False,
    chains: Chains = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model to a Program for an accelerator."""
    check_output(output, model=model, spec=spec, calibration=calibration)
    dims = parse_dims(dim or [])
    arch = ArchSpec.load(spec)
    arrays = load_arrays(calibration) if calibration else None
    with report.Progress() as progress:
        program = _api("compile")(
            model,
            arch,
            sparsity=parse_patterns(sparsity or []),
            sparsifier=sparsifier,
            allocation=allocation,
            sequential=sequential,
            permute=permute,
            calibration=arrays,
            method=method,
            signed=signed,
            dims=dims or None,
            refine=refine,
            chains=chains,
            progress=progress,
            notes=lambda note: typer.echo(f"note: {note}", err=True),
        )
    program.save(output)
    facts = inspection.inspect_program(program)
    if as_json:
        _print_json({**facts, "file": str(output)})
    else:
        report.show(facts)
        typer.echo(f"wrote {output} ({output.stat().st_size / 1024:,.0f} KiB)")


@_command
def run(
    program: Annotated[Path, typer.Argument(metavar="PROGRAM", help="A Program file.", show_default=False)],
    inputs: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="NPZ", help="Model inputs by name. Without it only time is simulated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NPZ", help="Write the model's outputs by name.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw units over time, and each layer's cycles against its bound (png, svg, pdf)."
        ),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Also print every event.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate a Program: outputs to the bit, time to the cycle."""
    from gossamer import pictures
    from gossamer.arch.program import Program

    if output is not None and inputs is None:
        raise typer.BadParameter("--output needs --input: without inputs there are no values")
    for written in (output, picture):
        check_output(written, Program=program, input=inputs)
    if picture is not None:
        pictures.check_path(picture)  # before the work, not after it
    arrays = load_arrays(inputs) if inputs else None
    loaded = Program.load(program)
    with report.Progress() as progress:
        done = _api("simulate")(loaded, arrays, values=arrays is not None, progress=progress)
    if output is not None:
        save_arrays(output, done.outputs)
    if picture is not None:
        pictures.overview(done, picture)
    facts = inspection.inspect_run(done, trace=trace)
    if as_json:
        _print_json(facts)
    else:
        report.show(facts)


@_command
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A spec (TOML file or preset name), a model (ONNX) or a Program; the content shows which it is.",
            autocompletion=complete_spec,
            show_default=False,
        ),
    ],
    toml: Annotated[bool, typer.Option("--toml", help="Print a spec as TOML, every number with its meaning.")] = False,
    after: Annotated[
        str | None, typer.Option(metavar="PASS", help="Print a model's graph as the compiler has it after a pass.")
    ] = None,
    dim: Dims = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a spec, a model or a Program holds."""
    if toml and as_json:
        raise typer.BadParameter("--toml and --json exclude each other")
    if after is not None:
        graph = inspection.graph_after(target, after, parse_dims(dim or []))
        if as_json:
            _print_json({"kind": "graph", "after": after, "text": graph})
        else:
            typer.echo(graph)
        return
    if toml:
        typer.echo(ArchSpec.load(target).to_toml(), nl=False)
        return
    facts = inspection.inspect(target)
    if as_json:
        _print_json(facts)
    else:
        report.show(facts)


@_command
def explain(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A Program file, or a model (ONNX) with SPEC.", show_default=False)
    ],
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]", help="TOML file or preset name.", autocompletion=complete_spec, show_default=False
        ),
    ] = None,
    sparsity: Sparsity = None,
    sparsifier: Sparsifier = "magnitude",
    allocation: Allocation = "uniform",
    sequential: Sequential = False,
    permute: Permute = False,
    calibration: Calibration = None,
    method: Method = "minmax",
    signed: Signed = False,
    dim: Dims = None,
    refine: Refine = False,
    chains: Chains = True,
    trials: Annotated[
        bool, typer.Option("--trials/--no-trials", help="Compile and simulate with one change at a time (a model).")
    ] = True,
    at_most: Annotated[
        int | None, typer.Option(metavar="N", help="Try so many changes, those first that most cycles call for.", min=1)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what each layer's cycles went to (png, svg, pdf).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say where the cycles beyond the bound went, and which single change of spec or pattern would help most."""
    from gossamer import pictures
    from gossamer import trials as neighbours
    from gossamer.arch.program import MAGIC, Program

    check_output(picture, target=target, spec=spec, calibration=calibration)
    if picture is not None:
        pictures.check_path(picture)
    network = None
    with report.Progress() as progress:
        with target.open("rb") as file:
            compiled = file.read(len(MAGIC)) == MAGIC
        pruning = sparsity or sequential or permute or (sparsifier, allocation) != ("magnitude", "uniform")
        quantising = calibration or signed or method != "minmax"
        if compiled and (spec or pruning or quantising or dim or refine or not chains):
            raise typer.BadParameter("a Program is compiled: SPEC and what says how to compile need a model")
        if compiled:
            program = Program.load(target)
        else:
            if spec is None:
                raise typer.BadParameter("a model needs SPEC")
            from gossamer.compiler.passes import build_network

            arch = ArchSpec.load(spec)
            network = build_network(
                target,
                sparsity=parse_patterns(sparsity or []),
                sparsifier=sparsifier,
                allocation=allocation,
                sequential=sequential,
                permute=permute,
                calibration=load_arrays(calibration) if calibration else None,
                method=method,
                signed=signed,
                dims=parse_dims(dim or []) or None,
                spec=arch,
                products=arch.dynamic_operands,
                progress=lambda name: progress(name, 0, 0),
            )
            program = _api("compile")(network, arch, refine=refine, chains=chains, progress=progress)
        run = _api("simulate")(program, values=False, progress=progress)
        tried = []
        if network is not None and trials:
            tried = neighbours.try_changes(network, run, progress, refine=refine, chains=chains, limit=at_most)
    facts = _api("explain")(run, tried)
    if picture is not None:
        pictures.explanation(facts, picture)
    if as_json:
        _print_json(facts)
    else:
        report.show(facts)


@_command
def rtl(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", show_default=False)],
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]",
            help="TOML file or preset name; --program brings its own.",
            autocompletion=complete_spec,
            show_default=False,
        ),
    ] = None,
    program: Annotated[
        Path | None, typer.Option("--program", "-p", metavar="FILE", help="A Program file for the bench to run.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", metavar="ONNX", help="A model to compile for the bench to run.")
    ] = None,
    inputs: Inputs = None,
    dim: Dims = None,
    seed: Annotated[int, typer.Option(help="Of random inputs.", min=0)] = 1,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an accelerator's hardware: Verilog, README, register map, FuseSoC core file, and a bench with a Program.

    The bench compares memory and cycles with the simulator's. It runs a small example, or a Program or model of yours:
    with the first set of inputs of --input, random codes without it.
    """
    from gossamer import benches
    from gossamer.rtl import write_bundle

    if program is not None and (model is not None or dim):
        raise typer.BadParameter("--program excludes --model and --dim: a Program is compiled")
    if spec is None and program is None:
        raise typer.BadParameter("SPEC or --program must say which hardware")
    check_inputs(inputs, dim, program, model)
    check_output(output, spec=spec)
    check_output(output / "gossamer.toml", spec=spec)
    with report.Progress() as progress:
        arch, case = benches.bench(
            ArchSpec.load(spec) if spec is not None else None,
            program=program,
            model=model,
            arrays=load_arrays(inputs) if inputs else None,
            dims=parse_dims(dim or []) or None,
            seed=seed,
            progress=progress,
        )
        written = write_bundle(arch, output, case)
    if as_json:
        _print_json([str(path) for path in written])
    else:
        for path in written:
            typer.echo(f"wrote {path} ({path.stat().st_size / 1024:,.1f} KiB)")


@_command
def verify(
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPEC]...",
            help="TOML files or preset names; without any, four small machines.",
            autocompletion=complete_spec,
            show_default=False,
        ),
    ] = None,
    program: Annotated[
        Path | None, typer.Option("--program", "-p", metavar="FILE", help="A Program file; it brings its own spec.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", metavar="ONNX", help="A model to compile for every SPEC.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Only these layers of the model, each alone; globs are allowed."),
    ] = None,
    inputs: Inputs = None,
    dim: Dims = None,
    random: Annotated[
        int | None, typer.Option(metavar="N", help="Random legal programs for every SPEC (10).", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of programs, inputs, power-on and stalls.", min=0)] = 1,
    stalls: Annotated[
        bool, typer.Option("--stalls", help="Again with a memory that holds back at random, replayed in the simulator.")
    ] = False,
    wave: Annotated[
        Path | None, typer.Option("--wave", metavar="FILE", help="Write the hardware's waveforms (.vcd or .fst).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run Programs in the simulator and in the generated hardware, and compare every event and every byte.

    Prints what was compared, a line for every spec. Exit code 1 when anything differs; the first difference is named.
    """
    from gossamer import campaign

    if program is not None and (specs or model is not None or random is not None):
        raise typer.BadParameter("--program excludes SPEC, --model and --random: a Program brings its own spec")
    if model is not None and (not specs or random is not None):
        raise typer.BadParameter("--model needs SPEC and excludes --random")
    if layers is not None and (model is None or inputs is not None):
        raise typer.BadParameter("--layers needs --model and excludes --input: layers run on random codes")
    check_inputs(inputs, dim, program, model)
    if wave is not None and program is None and len(specs or ()) != 1:
        raise typer.BadParameter("--wave needs one SPEC or --program: a file shows one machine")
    check_output(wave, Program=program, model=model, input=inputs, spec=specs)
    with report.Progress() as progress:
        found = campaign.campaign(
            [ArchSpec.load(s) for s in specs] if specs else list(campaign.small_machines()),
            program=program,
            model=model,
            layers=layers.split(",") if layers else None,
            arrays=load_arrays(inputs) if inputs else None,
            dims=parse_dims(dim or []) or None,
            count=10 if random is None else random,
            seed=seed,
            stalls=stalls,
            wave=wave,
            progress=progress,
        )
    if as_json:
        _print_json([row.facts() for row in found])
    else:
        report.show_verification([row.facts() for row in found])
    if any(row.mismatches for row in found):
        raise typer.Exit(1)


@_command
def coverage(
    spec: Annotated[
        str, typer.Argument(metavar="[SPEC]", help="TOML file or preset name.", autocompletion=complete_spec)
    ] = "tiny",
    random: Annotated[int, typer.Option(metavar="N", help="Random legal programs.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Of programs, power-on and stalls.", min=0)] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="JSON", help="Write all counts and all holes.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what random programs reach of the generated hardware, and which kinds of work they never ask for.

    Lines and toggles of every module, as Verilator counts them, and the cross of operation, encoding, edge,
    back-pressure and bank. Exit code 1 when simulator and hardware differ.
    """
    from gossamer.coverage import measure

    check_output(output, spec=spec)
    with report.Progress() as progress:
        found = measure(ArchSpec.load(spec), random, seed, progress)
    facts = found.facts()
    if output is not None:
        output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if as_json:
        _print_json(facts)
    else:
        report.show_coverage(facts)
    if found.tally.mismatches:
        raise typer.Exit(1)


@_command
def synth(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="TOML file or preset name.", autocompletion=complete_spec, show_default=False
        ),
    ],
    liberty: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A liberty file of standard cells; may be repeated.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="cells (with --liberty), generic or ecp5.", show_default=False),
    ] = None,
    place: Annotated[
        bool, typer.Option("--place", help="With ecp5: place and route with nextpnr, if it fits (minutes).")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Give up on a tool after so long.", min=1)] = 3600,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Synthesise an accelerator with Yosys: cells, area, LUTs, DSPs, memories and longest path of each component."""
    from gossamer.rtl.synth import synthesise

    found = synthesise(ArchSpec.load(spec), target, liberty or [], place=place, timeout=timeout)
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo("\n".join(found.lines()))


@_command
def presets(as_json: Json = False, debug: Debug = False) -> None:
    """List the accelerators that ship with Gossamer."""
    rows = inspection.preset_table()
    if as_json:
        _print_json(rows)
    else:
        report.show_presets(rows)


@_command
def schema(as_json: Json = False, debug: Debug = False) -> None:
    """Print the JSON Schema of the spec, for editors (JSON with and without --json)."""
    _print_json(json_schema())

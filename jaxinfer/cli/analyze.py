"""The commands that look at models and runs, and generate nothing."""

from typing import Annotated, Any

import typer

from jaxinfer.cli.app import Plugin, Policy, Weights, app, library
from jaxinfer.host import plugins

Shape = Annotated[
    str, typer.Option("--model", help="A shape, such as llama-2-7b, or a checkpoint, whose shape is read.")
]
Device = Annotated[str, typer.Option(help="A device, such as h100; this-machine, which is measured; or a .yaml file.")]


@app.command()
def roofline(
    model: Shape = "smollm2-135m",
    hardware: Device = "this-machine",
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 1024,
    generate: Annotated[int, typer.Option(help="New tokens of each row.")] = 128,
    weights: Annotated[str, typer.Option(help="Bits of a weight, or a format such as int4 or nf4.")] = "16",
    activations: Annotated[int, typer.Option(help="Bits of an activation.")] = 16,
    kv: Annotated[str, typer.Option(help="Bits of a number in the cache, or a format.")] = "16",
    group: Annotated[int | None, typer.Option(help="Weights that share a scale; default: 128 up to 4 bits.")] = None,
    flash: Annotated[bool, typer.Option("--flash", help="Attention is one operator that keeps no scores.")] = False,
    width: Annotated[int, typer.Option(help="Tokens that a decode step scores.")] = 1,
    acceptance: Annotated[float | None, typer.Option(help="How likely a guess is right, where width > 1.")] = None,
    draft_cost: Annotated[float, typer.Option(help="The time of a step's guesses, as a share of the step.")] = 0.0,
    kv_budget: Annotated[int | None, typer.Option(help="Slots that a cache policy keeps of a row.")] = None,
    tensor_parallel: Annotated[int, typer.Option(help="Devices over which heads and MLPs are split.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(help="Devices over which layers are split.")] = 1,
    data_parallel: Annotated[int, typer.Option(help="Replicas over which rows are split.")] = 1,
    expert_parallel: Annotated[int, typer.Option(help="Devices over which experts are split.")] = 1,
    compat: Annotated[str | None, typer.Option(help="llm-viewer: that tool's arithmetic.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="A .csv of a machine, as the kind calibration writes: what it really reaches.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    plugin: Plugin = None,
) -> None:
    """Count what a model costs on a device, operator by operator: operations, bytes, bound, time, memory."""
    options: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("json", "plugin")}
    with library():
        from jaxinfer.cli.roofline import show
    plugins.load(plugin or (), name="--plugin")
    show(options, json)


@app.command()
def explore(
    model: Annotated[str | None, typer.Option("--model", help="A shape or a checkpoint, to begin with.")] = None,
    hardware: Annotated[str | None, typer.Option(help="A device, to begin with.")] = None,
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; 0 takes any that is free.")] = 8050,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser, where there is a display.")] = True,
    export: Annotated[str | None, typer.Option(help="Write the page as one file that works offline, and end.")] = None,
) -> None:
    """Show rooflines as a page: model, device and setting under controls; Ctrl-C ends it."""
    with library():
        from jaxinfer.analysis.explorer import serve
    if export is None:
        serve.serve(port, model, hardware, browser, typer.echo)
    else:
        typer.echo(f"explorer: {serve.export(export, model, hardware)}")


@app.command("compare")
def _compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs of one kind.")],
    html: Annotated[str | None, typer.Option(help="Write a page too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Put finished runs side by side, and mark what changed beyond noise."""
    with library():
        from jaxinfer.cli.compare import show
    show(runs, html, json)


@app.command("compile")
def _compile(
    model: Annotated[str, typer.Option(help="A shape, such as llama-3-70b, or a checkpoint: no weight is read.")],
    target: Annotated[str, typer.Option(help="A slice or a machine: v5e:8x8, v5p:4x4x4, h200:8, cpu:8.")],
    mesh: Annotated[str | None, typer.Option(help="Axes, as in data=1,tensor=64; default: all devices tensor.")] = None,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens that a row has room for.")] = 2048,
    prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt among them; default: half.")] = None,
    weights: Weights = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    policy: Policy = None,
    method: Annotated[str | None, typer.Option(help="A decode method, as in lookup:width=8; default: greedy.")] = None,
    steps: Annotated[str, typer.Option(help="Which programs: of prefill,decode,verify.")] = "prefill,decode",
    pad_heads: Annotated[
        bool, typer.Option("--pad-heads", help="Give heads that the mesh does not divide companions that are zero.")
    ] = False,
    json: Annotated[str | None, typer.Option(help="Write all figures into this file; - prints them.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page that needs nothing else.")] = None,
    save: Annotated[
        str | None, typer.Option(help="Keep the programs in this file: generate and run --executable load it.")
    ] = None,
    plugin: Plugin = None,
) -> int:
    """Compile a model for a machine that is not here: does it fit, what does it move, what bounds it.

    The exit code is 1 where it does not fit.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "plugin"}
    with library():
        from jaxinfer.cli.compile import run
    plugins.load(plugin or (), name="--plugin")
    return run(given)


@app.command()
def plan(
    model: Shape,
    target: Annotated[
        str, typer.Option(help="A family such as v5e, v6e or h200, or one slice of it, such as v5e:4x8.")
    ],
    prompt: Annotated[int, typer.Option(help="Goal: tokens of a prompt.")] = 1024,
    output: Annotated[int, typer.Option(help="Goal: new tokens of a request.")] = 256,
    context: Annotated[
        int | None, typer.Option(help="Goal: cache slots of a request; default: prompt + output.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Goal: requests at a time; default: any power of two.")] = None,
    rate: Annotated[float | None, typer.Option(help="Goal: new tokens a second in all, by as many slices.")] = None,
    ttft: Annotated[float | None, typer.Option(help="Goal: at most so many ms until the first token.")] = None,
    tpot: Annotated[float | None, typer.Option(help="Goal: at most so many ms from token to token.")] = None,
    weights: Annotated[str, typer.Option(help="Formats of weights to try.")] = "bf16,int8,int4",
    kv: Annotated[str, typer.Option(help="Formats of the cache to try.")] = "bf16,int8",
    price: Annotated[float | None, typer.Option(help="Dollars a chip and hour; default: the package's table.")] = None,
    prove: Annotated[int, typer.Option(help="Compile so many of the cheapest, to prove that they fit.")] = 3,
    top: Annotated[int, typer.Option(help="Lines of each table.")] = 8,
    html: Annotated[str | None, typer.Option(help="Write a page too, with cost over latency.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all options as JSON.")] = False,
) -> None:
    """Find the slice, mesh, formats and batch that serve a model at the lowest cost within limits of latency."""
    options: dict[str, Any] = locals().copy()
    with library():
        from jaxinfer.cli.plan import show
    show(options)

"""The `spaceport` command."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spaceport import local_run, machine, view
from spaceport.progress import Display, Work, duration

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Photos in, a 3D Gaussian splat out, on this machine."
)
console = Console()

INTERRUPTED_EXIT_STATUS = 130


class Preset(StrEnum):
    draft = "draft"
    standard = "standard"
    high = "high"


class Matcher(StrEnum):
    auto = "auto"
    exhaustive = "exhaustive"
    sequential = "sequential"
    spatial = "spatial"


class Jobs(StrEnum):
    process = "process"
    docker = "docker"


HowJobsRun = Annotated[Jobs, typer.Option("--jobs", help="Stages as child processes, or in the container images.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the result; made if it is not there.")]
Open = Annotated[bool, typer.Option("--open", help="Show the result in the browser when it is ready.")]


@app.command()
def run(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, or a zip of them; only read.")],
    out: OutFolder,
    preset: Annotated[Preset, typer.Option(help="How much time to spend.")] = Preset.standard,
    email: Annotated[str | None, typer.Option(help="Who is told; the mail lands in OUT/outbox.")] = None,
    title: Annotated[str | None, typer.Option(help="Shown above the scene; the folder's name otherwise.")] = None,
    matcher: Annotated[Matcher | None, typer.Option(help="Which photos are compared with which.")] = None,
    max_gaussians: Annotated[int | None, typer.Option(help="Hard cap on the number of Gaussians.")] = None,
    max_iterations: Annotated[int | None, typer.Option(help="Hard cap on training iterations.")] = None,
    max_image_long_side: Annotated[int | None, typer.Option(help="Photos are reduced to this many pixels.")] = None,
    sh_degree: Annotated[int | None, typer.Option(min=0, max=3, help="Degree of view-dependent colour.")] = None,
    test_photos: Annotated[
        bool | None, typer.Option(help="Keep every 8th photo out of everything, to measure with.", show_default=False)
    ] = None,
    jobs_dir: Annotated[Path | None, typer.Option(help="Where the jobs work; inside OUT otherwise.")] = None,
    jobs: HowJobsRun = Jobs.process,
    open_page: Open = False,
) -> None:
    """Turn photos into a splat page."""
    options = {
        "preset": preset.value,
        "email": email,
        "title": title,
        "matcher": matcher.value if matcher else None,
        "max_gaussians": max_gaussians,
        "max_iterations": max_iterations,
        "max_image_long_side": max_image_long_side,
        "sh_degree": sh_degree,
        "test_photos": test_photos,
    }
    given = {name: value for name, value in options.items() if value is not None}
    runner = runner_options(jobs)
    follow(lambda listener: local_run.run(photos, out, given, listener, jobs_dir, **runner), out, open_page)


@app.command()
def resume(
    out: Annotated[Path, typer.Argument(help="The --out folder of a run that was interrupted.")],
    jobs: HowJobsRun = Jobs.process,
    open_page: Open = False,
) -> None:
    """Go on with an interrupted run from where it was."""
    runner = runner_options(jobs)
    follow(lambda listener: local_run.resume(out, listener, **runner), out, open_page)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to put the photos.")],
    photos: Annotated[int, typer.Option(min=8, max=500, help="How many.")] = 24,
) -> None:
    """Render a set of sample photos with GPS, to try everything without photos of your own."""
    from spaceport.sample import render_sample

    with Work(console, "Rendering sample photos") as work:
        render_sample(folder, photos=photos, progress=work)
    console.print(f"{photos} photos in {folder}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Where results would go.")] = Path(),
    compile_now: Annotated[
        bool, typer.Option("--compile", help="Compile the kernels now, not in the first run.")
    ] = False,
) -> None:
    """What this machine can do."""
    if compile_now:
        try:
            with Work(console, "Compiling kernels, once"):
                machine.compile_kernels()
        except RuntimeError as error:
            print_error(error)
            raise typer.Exit(1) from error
    table = Table.grid(padding=(0, 2))
    for finding in machine.survey(folder):
        mark = "[green]✓[/]" if finding.ok else "[yellow]![/]"
        table.add_row(mark, finding.what, finding.value, f"[yellow]{finding.advice}[/]")
    console.print(table)


@app.command(name="view")
def view_result(
    folder: Annotated[Path, typer.Argument(help="A result folder.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Show a result in the browser."""
    if not (folder / "index.html").is_file():
        console.print(f"[red]There is no index.html in {folder}.[/] Name the --out folder of a finished run.")
        raise typer.Exit(2)
    view.show(folder, port, browser)


def runner_options(jobs: Jobs) -> dict[str, Any]:
    """What `local_run` needs to run jobs in containers; exits when there is no engine or an image is missing."""
    if jobs is Jobs.process:
        return {}
    from spaceport.jobs.docker import DockerError, DockerRunner

    try:
        runner = DockerRunner()
        runner.check()
    except DockerError as error:
        print_error(error)
        raise typer.Exit(2) from error
    return {"runner": runner}


def print_error(error: Exception) -> None:
    """The text as it is: a path may have brackets, which are rich's markup."""
    console.print(Text(str(error), "red"), soft_wrap=True)


def follow(start: Any, out: Path, open_page: bool) -> None:
    """Run ``start`` with a display, stop it cleanly on Ctrl-C or SIGTERM, and say how it ended."""
    stopping: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stopping:
            sys.exit(INTERRUPTED_EXIT_STATUS)  # asked twice: do not wait for the checkpoint
        stopping.append(number)
        local_run.stop()

    # Only while it runs: what comes after, the server of --open, ends at the first Ctrl-C like any program.
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display(console) as display:
            outcome = start(display)
    except local_run.LocalRunError as error:
        print_error(error)
        raise typer.Exit(2) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if outcome.status == "STOPPED":
        console.print(f"Stopped. Go on with: spaceport resume {out}")
        raise typer.Exit(INTERRUPTED_EXIT_STATUS)
    report(outcome, out)
    if outcome.status != "SUCCEEDED":
        raise typer.Exit(1)
    if open_page and not stopping:
        view.show(out)


def report(outcome: Any, out: Path) -> None:
    if outcome.status != "SUCCEEDED":
        console.print(Text.assemble((outcome.status, "red"), f" {outcome.error_code}: {outcome.reason}"))
        return
    stages = ", ".join(f"{state} {duration(seconds)}" for state, seconds in outcome.seconds_by_state.items())
    console.print(f"[green]Done[/] in {duration(outcome.seconds)}: {stages}", highlight=False)
    console.print(f"Result: {out / 'index.html'}   show it with: spaceport view {out}", highlight=False)


if __name__ == "__main__":
    app()

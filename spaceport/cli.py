"""The `spaceport` command."""

from __future__ import annotations

import inspect
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spaceport import local_run, machine, view
from spaceport.progress import Display, Work, duration
from spaceport.sample import copy_sample
from spaceport.stack import deploy_files
from spaceport.stack.job_options import JobOption, first_problem, local_options

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Photos in, a 3D Gaussian splat out, on this machine."
)
console = Console()

INTERRUPTED_EXIT_STATUS = 130


class Jobs(StrEnum):
    process = "process"
    docker = "docker"


HowJobsRun = Annotated[Jobs, typer.Option("--jobs", help="Stages as child processes, or in the container images.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the result; made if it is not there.")]
Open = Annotated[bool, typer.Option("--open", help="Show the result in the browser when it is ready.")]


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each option of a job (docs/options.md); it is called with those that were given.

    Raises typer.BadParameter for a value that job.json would be refused for.
    """
    declared = {option.name: option for option in local_options()}

    def checked(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in declared}
        given = {name: value for name, value in given.items() if value is not None}
        problem = first_problem(given)
        if problem:
            raise typer.BadParameter(problem[1], param_hint=declared[problem[0]].flag)
        command(**arguments, **given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [_parameter(option) for option in declared.values()]
    checked.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    checked.__annotations__ = {one.name: one.annotation for one in parameters}
    checked.__name__, checked.__doc__ = command.__name__, command.__doc__
    return checked


def _parameter(option: JobOption) -> inspect.Parameter:
    flags = [option.flag, f"--no-{option.flag.removeprefix('--')}"] if option.kind is bool else [option.flag]
    kind: Any = Literal[option.choices] if option.choices else option.kind
    limits = {"min": option.minimum, "max": option.maximum} if option.kind in (int, float) else {}
    described: Any = typer.Option(
        "/".join(flags),
        help=option.help,
        show_default=option.default is not None,
        rich_help_panel="Options of the job",
        **limits,  # type: ignore[arg-type]
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[kind | None, described],
    )


@app.command()
@with_job_options
def run(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, or a zip of them; only read.")],
    out: OutFolder,
    jobs_dir: Annotated[Path | None, typer.Option(help="Where the jobs work; inside OUT otherwise.")] = None,
    jobs: HowJobsRun = Jobs.process,
    open_page: Open = False,
    **options: Any,
) -> None:
    """Turn photos into a splat page."""
    runner = runner_options(jobs)
    follow(
        lambda listener, stop: local_run.run(photos, out, options, listener, jobs_dir, stop, **runner), out, open_page
    )


@app.command()
def resume(
    out: Annotated[Path, typer.Argument(help="The --out folder of a run that was interrupted.")],
    jobs: HowJobsRun = Jobs.process,
    open_page: Open = False,
) -> None:
    """Go on with an interrupted run from where it was."""
    runner = runner_options(jobs)
    follow(lambda listener, stop: local_run.resume(out, listener, stop, **runner), out, open_page)


@app.command()
def sample(folder: Annotated[Path, typer.Argument(help="Where to put the photos.")]) -> None:
    """Copy 24 sample photos with GPS, to try everything without photos of your own."""
    console.print(f"{copy_sample(folder)} photos in {folder}")


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


@app.command()
def deploy(
    folder: Annotated[
        Path | None, typer.Option("--print", metavar="FOLDER", help="Write all that `make deploy` needs into FOLDER.")
    ] = None,
) -> None:
    """Write what it takes to deploy to AWS into a new folder."""
    if folder is None:
        print_line("Write a folder to deploy from: spaceport deploy --print FOLDER, then: cd FOLDER && make deploy")
        raise typer.Exit(2)
    try:
        deploy_files.write_deploy_files(folder)
    except (deploy_files.FolderTakenError, OSError) as error:
        print_error(error)
        raise typer.Exit(2) from error
    print_line(
        f"Template, functions and sources of the images are in {folder}. "
        f"Deploy them with: cd {shlex.quote(str(folder))} && make deploy"
    )


def runner_options(jobs: Jobs) -> dict[str, Any]:
    """Arguments of `local_run` for jobs in containers; exits when there is no Docker or an image is missing."""
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
    print_line(str(error), "red")


def print_line(text: str, style: str = "") -> None:
    """The text as it is: a path may have brackets, which are rich's markup."""
    console.print(Text(text, style), soft_wrap=True)


def follow(start: Callable[[Display, threading.Event], local_run.Outcome], out: Path, open_page: bool) -> None:
    """Run ``start`` with a display, stop it cleanly on Ctrl-C or SIGTERM, and say how it ended."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            sys.exit(INTERRUPTED_EXIT_STATUS)  # asked twice: do not wait for the checkpoint
        stop.set()

    # Only while it runs: what comes after, the server of --open, ends at the first Ctrl-C like any program.
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display(console) as display:
            outcome = start(display, stop)
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
    if open_page and not stop.is_set():
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

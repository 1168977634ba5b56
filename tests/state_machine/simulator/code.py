"""The real functions, rules and state machine, loaded as deployed; or a copy with one planted bug."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from spaceport.aws.eventbridge import Pattern, compile_pattern
from spaceport.stack.template import Function, Stack, load_stack

ROOT = Path(__file__).resolve().parents[3]
PARAMETERS = {"SenderEmail": "s@example.org", "ResultBaseUrl": "https://results.example.org", "UseSpot": "true"}
QUIET = {
    "POWERTOOLS_TRACE_DISABLED": "true",
    "POWERTOOLS_METRICS_DISABLED": "true",
    "POWERTOOLS_LOG_LEVEL": "CRITICAL",
    "AWS_DEFAULT_REGION": "us-east-1",
}
Edit = tuple[str, str, str]  # file, text in it (once), text instead


class SerialPool:
    """ThreadPoolExecutor's face with no threads: a schedule must run the same way each time."""

    def __init__(self, max_workers: int = 1) -> None:
        self.max_workers = max_workers

    def __enter__(self) -> SerialPool:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""

    def map(self, function: Callable[..., Any], *items: Any) -> Iterator[Any]:
        return map(function, *items)

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - the future carries it, as that of a thread would
            future.set_exception(error)
        return future


@dataclass
class Code:
    """``handlers`` by ARN. ``rules``: (compiled pattern or None for a schedule, function ARN, what it is called)."""

    stack: Stack
    modules: dict[str, ModuleType]
    definition: dict[str, Any]
    handlers: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    rules: list[tuple[Pattern | None, str, str]] = field(default_factory=list)

    def seam(self, **replacements: Any) -> None:
        """Put ``replacements`` into functions/base/aws.py."""
        for name, value in replacements.items():
            setattr(self.modules["base.aws"], name, value)


def load(edits: tuple[Edit, ...] = ()) -> Code:
    """The checkout's code, with ``edits`` made in a copy."""
    if not edits:
        return _load(ROOT)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in ("functions", "statemachine"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "template.yaml", copy)
        for file, old, new in edits:
            text = (copy / file).read_text()
            if text.count(old) != 1:
                raise ValueError(f"{file}: {old!r} is there {text.count(old)} times, not once; the list is out of date")
            (copy / file).write_text(text.replace(old, new))
        return _load(copy)


def _load(root: Path) -> Code:
    stack = load_stack(root / "template.yaml", PARAMETERS)
    environment = {name: value for function in stack.functions for name, value in function.environment.items()}
    with _alone(root / "functions", {**environment, **QUIET}) as modules:
        handlers = {f.arn: importlib.import_module(f.handler.partition(".")[0]).handler for f in stack.functions}
        modules.update({name: sys.modules[name] for name in _names(root / "functions") if name in sys.modules})
        mails = modules["notifications.mails"]
        modules["base.settings"].settings()
        mails._templates().auto_reload = False
        for template in mails._templates().list_templates():
            mails._templates().get_template(template)  # the files of a copy are gone afterwards
    provider = modules["base.telemetry"].metrics.provider
    provider.flush_metrics = lambda **_: provider.clear_metrics()  # nothing is printed
    for module in modules.values():
        if hasattr(module, "count_by"):
            module.count_by = lambda *_: None  # type: ignore[attr-defined]
        if hasattr(module, "ThreadPoolExecutor"):
            module.ThreadPoolExecutor = SerialPool  # type: ignore[attr-defined]
    code = Code(stack, modules, stack.state_machines[0].definition, handlers, {f.arn: f for f in stack.functions})
    for rule in stack.rules:
        pattern = None if rule.pattern is None else compile_pattern(rule.pattern)
        code.rules += [(pattern, target.function_arn, rule.logical_id) for target in rule.targets]
    return code


def _names(folder: Path) -> list[str]:
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    return [".".join(path.parts).removesuffix(".__init__") for path in found]


@contextmanager
def _alone(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, ModuleType]]:
    """Import from ``folder`` without touching modules of the same names that others have imported."""
    names = _names(folder)
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    before_environment = dict(os.environ)
    os.environ.update(environment)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield {}
    finally:
        sys.path.remove(str(folder))
        os.environ.clear()
        os.environ.update(before_environment)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@lru_cache(maxsize=1)
def deployed() -> Code:
    return load()


def with_timeout(definition: dict[str, Any], seconds: int | None) -> dict[str, Any]:
    """The definition with another limit for the whole execution."""
    return definition if seconds is None else {**json.loads(json.dumps(definition)), "TimeoutSeconds": seconds}

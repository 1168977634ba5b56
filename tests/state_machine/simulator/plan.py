"""What happens to one run of the simulator: how the user acts, which faults strike where, what becomes of each job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from base.stages import STAGES

STAGE_OF = {stage.state: stage.name for stage in STAGES}


@dataclass(frozen=True)
class Fault:
    """Strikes the invocations ``first`` .. ``first + count - 1`` of ``where`` (a state, or what an event calls).

    kind: ``error`` (the call fails with ``name`` and never reaches the function), ``crash`` (cut off before, or
    with ``after`` after, the ``at``-th AWS call; ``at`` 0 means at the end), ``service`` (the ``at``-th AWS call
    answers ``name``), ``pause`` (``seconds`` pass before the ``at``-th AWS call), ``answer`` (the function runs,
    the answer is ``value``), ``silence`` (the answer never comes), ``mute`` (SNS and SES refuse), ``deaf`` (the bus
    refuses events for ``seconds`` from the first one on, whatever ``where``), ``early`` (an event of the stage's job
    comes just before its token is stored). ``code``: what the user must be told when it strikes and is fatal; empty
    where the job must survive it.
    """

    where: str
    kind: str
    name: str = ""
    at: int = 1
    after: bool = False
    seconds: float = 0
    value: Any = None
    first: int = 0
    count: int = 1
    code: str = ""


@dataclass(frozen=True)
class Fate:
    """What becomes of one SageMaker job. ``end``: a status and more fields, ``seconds`` after its start.

    ``refusals``: (code, message) of the creation, instead. ``interrupted_s``: spot takes the machine away then, and
    the job goes on. ``files`` False: it completes without what it promised. ``code`` as in Fault.
    """

    seconds: float = 1500
    status: str = "Completed"
    more: dict[str, Any] = field(default_factory=dict)
    interrupted_s: float = 0
    files: bool = True
    refusal: tuple[str, str] | None = None
    name_taken: bool = False
    code: str = ""


@dataclass(frozen=True)
class Act:
    """Something from outside, ``delay_s`` after the execution has entered ``state`` for the ``visit``-th time.

    kind: ``abort``, ``redrive`` (of an execution that has ended), ``send_failure`` (``error``, ``cause``),
    ``send_success`` (``output``), ``upload`` (one more photo, ``n``), ``old_object`` (the first photo's event once
    more, with its old time).
    """

    state: str
    kind: str
    delay_s: float = 1
    visit: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    code: str = ""


@dataclass(frozen=True)
class Delivery:
    """Delays in seconds with which one event is delivered; none: it is lost."""

    delays_s: tuple[float, ...] = (1.0,)


@dataclass
class Plan:
    """One schedule. ``deliveries``: (kind of event, n-th) -> Delivery; ``lost_sweeps``: [from, to) in seconds.

    Kinds of events: ``object``, ``job``, ``status``, or of one stage's jobs, such as ``train Completed``.
    """

    photos: int = 9
    photo_gap_s: float = 0.2
    options: bytes | None = b'{"ready": true, "email": "ada@example.org"}'
    options_first: bool = False
    faults: tuple[Fault, ...] = ()
    fates: dict[tuple[str, int], Fate] = field(default_factory=dict)
    acts: tuple[Act, ...] = ()
    deliveries: dict[tuple[str, int], Delivery] = field(default_factory=dict)
    lost_sweeps: tuple[float, float] = (0, 0)
    timeout_s: int | None = None
    possible: tuple[str, ...] = ()  # codes that may come of it, or not
    jobs: int | None = None  # how many the uploads must make, where that is certain

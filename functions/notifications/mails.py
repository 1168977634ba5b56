"""The messages to users: plain words, a link or a reason, text and HTML.

Sent by SES to the user or by SNS to the topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from functools import cache
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from base import aws
from base.failures import Failure
from base.settings import settings
from base.telemetry import logger
from notifications.report import ReportSummary
from table.rows import JobRow

TEMPLATES = Path(__file__).parent / "templates"
SNS_SUBJECT_LIMIT = 100  # characters; Publish refuses longer ones, control characters and what is not ASCII


@dataclass(frozen=True)
class Message:
    subject: str
    text: str
    html: str


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def succeeded(job: JobRow, link: str, report: ReportSummary, cost_usd: float) -> Message:
    """The link, whether it ends (it was signed), and the figures of report.json that exist."""
    return _render(
        "succeeded",
        f"Your 3D scene {title_of(job)} is ready",
        title=title_of(job),
        link=link,
        expires=link != job["result_url"],
        figures=figures(report, cost_usd),
    )


def failed(job: JobRow, failure: Failure) -> Message:
    """One plain reason and what to do."""
    return _render(
        "failed", f"Your 3D scene {title_of(job)} could not be made", title=title_of(job), failure=failure, job=job
    )


def wrong_folder(folder: str, suggestion: str) -> Message:
    return _render("wrong_folder", "Photos in a folder that cannot be a scene", folder=folder, suggestion=suggestion)


def title_of(job: JobRow) -> str:
    return str(job.get("options", {}).get("title") or job.get("scene") or job["job_id"])


def figures(report: ReportSummary, cost_usd: float) -> list[tuple[str, str]]:
    """(name, value) of what a user wants to know; a figure that the report lacks is left out."""
    photos, training, compression = report.photos, report.training, report.compression
    lines: list[tuple[str, str]] = []
    if photos.registered is not None and photos.total is not None:
        lines.append(("Photos used", f"{photos.registered} of {photos.total}"))
    if training.psnr is not None:
        lines.append(("Fidelity on photos held back", f"{training.psnr:.1f} dB"))
    if training.gaussians is not None:
        lines.append(("Gaussians", f"{training.gaussians:,}"))
    if compression.sog_bytes is not None and compression.ply_bytes is not None:
        sizes = f"{compression.sog_bytes / 1e6:.1f} MB, {compression.ply_bytes / 1e6:.1f} MB before compression"
        lines.append(("Size", sizes))
    if training.stop_reason == "cost_limit":
        lines.append(("Training", "shortened, because the cost limit paid for no more"))
    lines.append(("Cost", f"{cost_usd:.2f} USD"))
    return lines


def _render(template: str, subject: str, **values: Any) -> Message:
    text, html = (_templates().get_template(f"{template}.{kind}.j2").render(**values) for kind in ("txt", "html"))
    return Message(subject, text, html)


def send(message: Message, to: str | None) -> str:
    """Send to the user where an address and a sender are known, otherwise to the topic; returns ``email`` or ``topic``.

    When SES refuses (an address that does not exist, an account in the sandbox), the topic gets the message, so that
    somebody does.
    """
    if to and settings().sender_email:
        try:
            aws.sesv2().send_email(
                FromEmailAddress=settings().sender_email,
                Destination={"ToAddresses": [to]},
                Content={"Raw": {"Data": as_mime(message, to).as_bytes(policy=SMTP)}},
            )
        except (ClientError, BotoCoreError) as error:
            logger.warning("mail refused, the topic gets it", extra={"error": str(error)})
        else:
            return "email"
    publish(message)
    return "topic"


def publish(message: Message) -> None:
    """Send to the topic."""
    subject = message.subject.encode("ascii", "replace").decode()
    aws.sns().publish(TopicArn=settings().topic_arn, Subject=subject[:SNS_SUBJECT_LIMIT], Message=message.text)


def as_mime(message: Message, to: str) -> EmailMessage:
    mime = EmailMessage()
    mime["Subject"] = message.subject
    mime["From"] = settings().sender_email
    mime["To"] = to
    mime.set_content(message.text)
    mime.add_alternative(message.html, subtype="html")
    return mime

"""Mail of a local run: what SES and SNS would send becomes a file in the outbox."""

from __future__ import annotations

import base64
import email
import email.policy
import re
import threading
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Any

from spaceport.base.clock import Clock
from spaceport.base.durable import replace, sync_folder
from spaceport.stack.template import Topic

TOPIC_SENDER = "Spaceport <no-reply@sns.amazonaws.com>"


class Outbox:
    """Keeps every message (``messages``), and writes it to ``folder`` as ``<number>-<subject>.eml`` when there is one.

    ``on_mail(to, path)`` is called after each.
    """

    def __init__(
        self, folder: Path | None, topics: list[Topic], clock: Clock, on_mail: Callable[[str, Path | None], None]
    ) -> None:
        self.folder = folder
        self.topics = {topic.arn: topic for topic in topics}
        self.clock = clock
        self.on_mail = on_mail
        self.messages: list[EmailMessage] = []
        self._lock = threading.Lock()

    def send_email(self, request: dict[str, Any]) -> None:
        """SESv2 SendEmail, with ``Content.Raw`` or ``Content.Simple``."""
        content = request["Content"]
        if "Raw" in content:
            data = base64.b64decode(content["Raw"]["Data"])
            message = email.message_from_bytes(data, _class=EmailMessage, policy=email.policy.default)
        else:
            message = _simple_message(content["Simple"])
        destination = request.get("Destination", {})
        for header, key in (("To", "ToAddresses"), ("Cc", "CcAddresses")):
            if header not in message and destination.get(key):
                message[header] = ", ".join(destination[key])
        if "From" not in message and request.get("FromEmailAddress"):
            message["From"] = request["FromEmailAddress"]
        if "Reply-To" not in message and request.get("ReplyToAddresses"):
            message["Reply-To"] = ", ".join(request["ReplyToAddresses"])
        self._deliver(message)

    def publish(self, topic_arn: str, subject: str, message: str) -> None:
        """SNS Publish: one mail to each e-mail subscription that the template gives the topic."""
        topic = self.topics.get(topic_arn)
        for address in topic.emails if topic else ():
            mail = EmailMessage()
            mail["Subject"] = subject or "AWS Notification Message"
            mail["From"] = TOPIC_SENDER
            mail["To"] = address
            mail.set_content(message)
            self._deliver(mail)

    def _deliver(self, message: EmailMessage) -> None:
        if "Date" not in message:
            message["Date"] = format_datetime(self.clock.now())
        if "Message-ID" not in message:
            message["Message-ID"] = make_msgid(domain="spaceport.invalid")
        with self._lock:
            self.messages.append(message)
            path = self._write(message) if self.folder else None
        self.on_mail(str(message["To"]), path)

    def _write(self, message: EmailMessage) -> Path:
        assert self.folder is not None
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)
        taken = [int(file.name.split("-")[0]) for file in self.folder.glob("[0-9]*-*.eml")]
        words = re.sub(r"[^a-z0-9]+", "-", str(message["Subject"] or "no subject").lower()).strip("-")[:60]
        path = self.folder / f"{max(taken, default=0) + 1:03d}-{words}.eml"
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(message.as_bytes())
        replace(temporary, path)
        return path


def _simple_message(content: dict[str, Any]) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = content["Subject"]["Data"]
    body = content["Body"]
    if "Text" in body:
        message.set_content(body["Text"]["Data"])
        if "Html" in body:
            message.add_alternative(body["Html"]["Data"], subtype="html")
    else:
        message.set_content(body["Html"]["Data"], subtype="html")
    for header in content.get("Headers", []):
        message[header["Name"]] = header["Value"]
    return message

"""One loopback endpoint for every AWS service that the Lambdas call: moto, and before it what moto cannot play.

Requests are told apart as AWS's own front ends do: by the service name in the signature's credential scope and, for
the JSON protocols, by ``X-Amz-Target``. The same WSGI application serves HTTP (``HttpServer``) and calls inside the
process (``in_process_session``), which need neither a socket nor a thread.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from email.utils import formatdate
from typing import Any, Protocol

import boto3
import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder, run_wsgi_app

from spaceport.aws.storage import Storage
from spaceport.base.errors import ServiceError
from spaceport.stack.template import REGION

HOST = "127.0.0.1"
IN_PROCESS_URL = (
    f"http://{HOST}:9"  # the discard port: a request that is not caught fails instead of reaching something
)
ROW_WRITERS = {"PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"}

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class JsonService(Protocol):
    """A service of the JSON protocol (``X-Amz-Target: <prefix>.<operation>``)."""

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """The response of one operation. Raises ServiceError."""
        ...


class Mailbox(Protocol):
    """Who gets mail once moto has accepted it."""

    def send_email(self, request: dict[str, Any]) -> None:
        """A SESv2 SendEmail request."""
        ...

    def publish(self, topic_arn: str, subject: str, message: str) -> None:
        """An SNS Publish request."""
        ...


class AwsApplication:
    """WSGI application of the whole endpoint."""

    def __init__(self, storage: Storage, services: dict[str, JsonService], mailbox: Mailbox) -> None:
        self.storage = storage
        self.services = services  # by prefix of X-Amz-Target: SageMaker, AWSStepFunctions, AWSEvents
        self.mailbox = mailbox
        self.on_fault: Callable[[str], None] = lambda text: None
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = _read_body(environ)
        try:
            status, headers, answer = self.handle(environ, body)
        except ServiceError as error:
            status, headers, answer = _json_error(error)
        except Exception as error:  # noqa: BLE001 - the boundary of the server: the client sees it as AWS's own fault
            traceback.print_exc(file=sys.stderr)
            self.on_fault(f"{type(error).__name__}: {error}")
            status, headers, answer = _json_error(ServiceError("InternalFailure", repr(error), 500))
        start_response(status, headers)
        return [answer]

    def handle(self, environ: Environ, body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        service = _service_name(environ)
        prefix, _, operation = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
        if prefix in self.services:
            answer = self.services[prefix].call(operation, json.loads(body or b"{}"))
            return _json_answer("200 OK", answer)
        if service == "ses":
            self._accept_sender(body)
        part = self._part_of_object(environ) if service == "s3" else None
        if part is not None:
            return part
        with self.storage.lock:
            status, headers, answer_bytes = self._ask_moto(environ, body)
            if service == "dynamodb" and operation in ROW_WRITERS and status.startswith("2"):
                for table in _table_names(json.loads(body)):
                    self.storage.table_changed(table)
        if status.startswith("2"):
            self._after(service, environ, body)
        return status, headers, answer_bytes

    def _ask_moto(self, environ: Environ, body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        environ = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        chunks, status, headers = run_wsgi_app(self.moto, environ)
        return status, list(headers), b"".join(chunks)

    def _part_of_object(self, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes] | None:
        """The answer to a GET of some bytes, read from the object's file; moto reads all of it for each range.

        None for what moto should answer: other requests, and errors.
        """
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        bucket, key = _bucket_and_key(environ)
        if environ["REQUEST_METHOD"] != "GET" or byte_range is None or not key:
            return None
        first, last = int(byte_range[1]), int(byte_range[2])
        head = {name: value for name, value in environ.items() if name != "HTTP_RANGE"}
        with self.storage.lock:  # moto checks whether there is such an object, and the conditions of the request
            status, headers, _ = self._ask_moto({**head, "REQUEST_METHOD": "HEAD"}, b"")
            if not status.startswith("200"):
                return None
            size = self.storage.describe(bucket, key)["size"]
            if not first <= last or first >= size:
                return None
            data = self.storage.read_part(bucket, key, first, last + 1)
        whole = ("content-length", "x-amz-checksum")  # headers that are true of the whole object only
        headers = [(name, value) for name, value in headers if not name.lower().startswith(whole)]
        headers.append(("Content-Length", str(len(data))))
        headers.append(("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}"))
        return "206 Partial Content", headers, data

    def _accept_sender(self, body: bytes) -> None:
        """Every sender counts as verified on this machine; on AWS the template's identity is."""
        from moto.ses.models import ses_backends

        sender = re.sub(r".*<(.*)>.*", r"\1", json.loads(body or b"{}").get("FromEmailAddress") or "")
        if sender:
            with self.storage.lock:
                ses_backends[self.storage.account_id][self.storage.region].verify_email_identity(sender)

    def _after(self, service: str, environ: Environ, body: bytes) -> None:
        """Emit the object events and mails that follow from a call that moto accepted."""
        if service == "s3":
            self._after_s3(environ)
        elif service == "ses" and environ["PATH_INFO"].rstrip("/").endswith("/outbound-emails"):
            self.mailbox.send_email(json.loads(body))
        elif service == "sns":
            form = {key: values[0] for key, values in urllib.parse.parse_qs(body.decode()).items()}
            if form.get("Action") == "Publish":
                topic = form.get("TopicArn") or form.get("TargetArn") or ""
                self.mailbox.publish(topic, form.get("Subject", ""), form.get("Message", ""))

    def _after_s3(self, environ: Environ) -> None:
        bucket, key = _bucket_and_key(environ)
        query = set(urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        method = environ["REQUEST_METHOD"]
        if method == "PUT" and key and not query - {"x-id"}:
            reason = "CopyObject" if "HTTP_X_AMZ_COPY_SOURCE" in environ else "PutObject"
            self.storage.created(bucket, key, reason)
        elif method == "POST" and key and "uploadId" in query:
            self.storage.created(bucket, key, "CompleteMultipartUpload")
        elif (method == "DELETE" and key and "uploadId" not in query) or (method == "POST" and "delete" in query):
            self.storage.deleted(bucket)


def _bucket_and_key(environ: Environ) -> tuple[str, str]:
    bucket, _, key = environ["PATH_INFO"].encode("latin-1").decode("utf-8").lstrip("/").partition("/")
    return bucket, key


def _read_body(environ: Environ) -> bytes:
    length = environ.get("CONTENT_LENGTH")
    if length:
        return environ["wsgi.input"].read(int(length))
    return environ["wsgi.input"].read() if environ.get("wsgi.input_terminated") else b""


def _service_name(environ: Environ) -> str:
    """The service in ``Credential=<key>/<date>/<region>/<service>/aws4_request`` (Signature Version 4), or ''."""
    query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
    signature = environ.get("HTTP_AUTHORIZATION") or "Credential=" + query.get("X-Amz-Credential", [""])[0]
    match = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/,]+)/aws4_request", signature)
    return match.group(1) if match else ""


def _table_names(request: dict[str, Any]) -> set[str]:
    names = {request["TableName"]} if "TableName" in request else set(request.get("RequestItems", {}))
    for item in request.get("TransactItems", []):
        names.update(operation["TableName"] for operation in item.values())
    return {name.rpartition("/")[2] for name in names}


def _json_answer(status: str, answer: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    data = json.dumps(answer, default=_json_value).encode()
    return status, [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(data)))], data


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()  # the JSON protocols write times as seconds since 1970
    raise TypeError(f"{type(value).__name__} in a response")


def _json_error(error: ServiceError) -> tuple[str, list[tuple[str, str]], bytes]:
    reason = "Bad Request" if error.status < 500 else "Internal Server Error"
    status, headers, data = _json_answer(
        f"{error.status} {reason}", {"__type": error.code, "message": error.message, "Message": error.message}
    )
    return status, [*headers, ("x-amzn-ErrorType", error.code)], data


class _QuietHandler(MotoRequestHandler):
    """Keeps connections open, and writes no line per request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: with Nagle each answer waits for a delayed ACK

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            print(f"{formatdate()} {message % args}", file=sys.stderr)


class HttpServer:
    """Serves an application on a free port of 127.0.0.1 until closed."""

    def __init__(self, application: AwsApplication) -> None:
        self._server = make_server(HOST, 0, application, threaded=True, request_handler=_QuietHandler)
        self.url = f"http://{HOST}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="spaceport-endpoint", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _RawBody(io.BytesIO):
    """The part of urllib3's response that botocore uses."""

    def stream(self, size: int = 65536, **_options: Any) -> Iterator[bytes]:
        while block := self.read(size):
            yield block


class _InProcess:
    """The application that in-process clients reach. Functions keep their clients from one engine to the next."""

    application: AwsApplication | None = None


@functools.cache
def in_process_session() -> boto3.Session:
    """A session whose clients call the application of ``use_in_process`` instead of opening a connection."""
    # Nothing of the user's own AWS configuration: a profile that does not exist would be an error.
    core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    core.set_config_variable("config_file", os.devnull)
    core.set_config_variable("credentials_file", os.devnull)

    def before_send(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        if _InProcess.application is None:
            raise ServiceError("NoEngine", "no engine runs in this process", 500)
        return send_in_process(_InProcess.application, request)

    core.register("before-send", before_send)  # type: ignore[arg-type] # the stubs know no handler with an answer
    return boto3.Session(botocore_session=core, region_name=REGION)


def use_in_process(application: AwsApplication | None) -> None:
    """Let in-process clients reach this application from now on; None lets them fail."""
    _InProcess.application = application


def send_in_process(application: AwsApplication, request: AWSPreparedRequest) -> AWSResponse:
    """Answer one signed request by calling the application."""
    url = urllib.parse.urlsplit(request.url)
    body: Any = request.body
    data = body.read() if hasattr(body, "read") else body or b""
    headers = [(k, v.decode("latin-1") if isinstance(v, bytes) else str(v)) for k, v in request.headers.items()]
    environ = EnvironBuilder(
        method=request.method,
        base_url=f"{url.scheme}://{url.netloc}",
        query_string=url.query,
        headers=headers,
        data=data.encode() if isinstance(data, str) else bytes(data),
        environ_overrides={  # as signed: EnvironBuilder would quote the path anew
            "PATH_INFO": urllib.parse.unquote_to_bytes(url.path).decode("latin-1"),
            "RAW_URI": request.url[request.url.index(url.netloc) + len(url.netloc) :],
        },
    ).get_environ()
    chunks, status, answered = run_wsgi_app(application, environ)
    return AWSResponse(request.url, int(status.split()[0]), dict(answered), _RawBody(b"".join(chunks)))  # type: ignore[arg-type]

"""Events as they go out: a stream read by a stock library, and a webhook verified by one."""

import contextlib
import http.client
import http.server
import json
import queue
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import sseclient
import standardwebhooks

from .expectation import expect, expect_equal, expect_members, step
from .setting import Setting

KIND = "machine.labels-changed"
WITHIN = 30


def run(setting: Setting) -> None:
    """One machine gets a label, and loses it again."""
    machine = setting.of_role("desk")[0]
    with receiver() as (url, deliveries), step("events"):
        webhook = setting.administration.create("webhooks", {"url": url, "kinds": [KIND]})
        streams = [open_stream(setting, server, machine.id) for server in setting.servers]
        for labels in ({"streamed": "yes"}, {"streamed": None}):
            setting.administration.call("PATCH", f"machines/{machine.id}", {"labels": labels}).succeeded(200)
        told = [[next(stream) for _ in range(2)] for stream in streams]
        expect_told(told, machine.id)
        first, second = told[0]
        again = next(open_stream(setting, setting.servers[1], machine.id, first.id))
        expect_equal((again.id, again.data), (second.id, second.data), f"what follows on {first.id}")
        with step("webhooks"):
            expect_delivered(deliveries, webhook["secret"], [json.loads(event.data) for event in told[0]])
        setting.administration.delete(f"webhooks/{webhook['id']}")


def open_stream(setting: Setting, server: str, machine_id: str, after: str | None = None) -> Iterator[sseclient.Event]:
    """The events of one machine, from now on or after an event, as the library reads them."""
    parts = urllib.parse.urlsplit(server)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=WITHIN, context=setting.trust)
    headers = setting.administration.connection.authorization | {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = after
    connection.request("GET", f"/v1/admin/events/stream?kind={KIND}&machine_id={machine_id}", headers=headers)
    response = connection.getresponse()
    expect_equal(response.status, 200, "the status of the stream")
    expect_equal(response.headers.get_content_type(), "text/event-stream", "the content type of the stream")
    return sseclient.SSEClient(response).events()


def expect_told(told: list[list[sseclient.Event]], machine_id: str) -> None:
    """Both replicas tell the same, in the order in which it happened."""
    expect_equal([event.data for event in told[1]], [event.data for event in told[0]], "what the second replica tells")
    for event in told[0]:
        data = json.loads(event.data)
        expect_members(data, {"id", "at", "machine_id", "kind", "detail", "sequence"}, "the event")
        expect_equal((event.event, event.id), (data["kind"], str(data["sequence"])), "kind and id of the event")
        expect_equal((data["kind"], data["machine_id"]), (KIND, machine_id), "the event")
    expect(int(told[0][0].id) < int(told[0][1].id), "the sequence does not rise")


def expect_delivered(deliveries: "queue.Queue[tuple[dict[str, str], bytes]]", secret: str, events: list[Any]) -> None:
    """Each event once, in any order, verified by the library; a changed body is not."""
    webhook = standardwebhooks.Webhook(secret)
    found = []
    for _ in events:
        headers, body = deliveries.get(timeout=WITHIN)
        message = webhook.verify(body, headers)
        expect_members(message, {"type", "timestamp", "data"}, "the message")
        expect_equal((message["type"], message["timestamp"]), (KIND, message["data"]["at"]), "type and timestamp")
        found.append(message["data"])
        with contextlib.suppress(standardwebhooks.WebhookVerificationError):
            webhook.verify(body + b" ", headers)
            expect(False, "a changed body is verified")
    found.sort(key=lambda event: event["sequence"])
    expect_equal(found, events, "what was delivered")


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, "queue.Queue[tuple[dict[str, str], bytes]]"]]:
    """A receiver that takes everything: its URL, and what it gets."""
    deliveries: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Takes a delivery."""

        def do_POST(self) -> None:
            """Hands it on, and says so."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            deliveries.put((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", deliveries
    finally:
        server.shutdown()
        server.server_close()

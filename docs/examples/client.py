#!/usr/bin/env python3
"""A controller in Python, with nothing but the standard library.

    client.py HOST INSTANCE METHOD [key=value ...]       e.g. client.py node1 web1 reboot_instance reboot_type=HARD

It lists the instances of HOST, shows the one of that name or UUID, casts METHOD to it and follows the task's
events to their end. NATS_SERVER is where NATS is (default 127.0.0.1:4222). docs/rpc.md describes the wire.
With the package nats-py the class Nats below is not needed; the rest stays as it is.
"""
import json
import os
import socket
import sys
import uuid


class Nats:
    """As much of the NATS protocol as a controller needs: publish, subscribe, request."""

    def __init__(self, server, timeout=60):
        host, _, port = server.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout)
        self.file = self.sock.makefile("rb")
        self.file.readline()  # INFO {...}
        self.send('CONNECT {"verbose": false, "headers": true, "no_responders": true}\r\nPING\r\n')
        while (line := self.file.readline()) != b"PONG\r\n":
            if not line or line.startswith(b"-ERR"):
                raise OSError(line.decode() or "NATS closed the connection")

    def send(self, text):
        self.sock.sendall(text.encode())

    def subscribe(self, subject, sid):
        self.send(f"SUB {subject} {sid}\r\n")

    def publish(self, subject, body, headers=None, reply=""):
        head = "NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items()) + "\r\n"
        size, total = len(head.encode()), len(head.encode()) + len(body.encode())
        self.send(f"HPUB {subject} {reply} {size} {total}\r\n{head}{body}\r\n")

    def next(self):
        """The next message of any subscription: its sid, its headers as text, its body."""
        while line := self.file.readline():
            word, *rest = line.decode().split()
            if word == "PING":
                self.send("PONG\r\n")
            elif word in ("MSG", "HMSG"):
                payload = self.file.read(int(rest[-1]) + 2)[:-2]
                split = int(rest[-2]) if word == "HMSG" else 0
                return rest[1], payload[:split].decode(), payload[split:].decode()
            elif word == "-ERR":
                raise OSError(line.decode())
        raise OSError("NATS closed the connection")

    def request(self, subject, body, headers=None):
        inbox = "_INBOX." + uuid.uuid4().hex
        self.subscribe(inbox, "reply")
        self.publish(subject, body, headers, inbox)
        while True:
            sid, head, answer = self.next()
            if sid == "reply":
                self.send("UNSUB reply\r\n")
                return head, answer


def token(host):
    """A host name as one token of a subject."""
    return "".join(chr(b) if chr(b).isalnum() and b < 128 or b in b"_-" else f"={b:02X}" for b in host.encode())


def fail(error):
    sys.exit(f"{error['kind']}: {error['message']}" + (f" ({error['hint']})" if error.get("hint") else ""))


def call(nats, host, method, **args):
    head, answer = nats.request(f"compute.call.{token(host)}.{method}", json.dumps(args), {"Compute-Version": "1.0"})
    if head.startswith("NATS/1.0 503"):
        sys.exit(f"unavailable: no agent answers for host {host}")
    if "Nats-Service-Error-Code" in head:
        fail(json.loads(answer))
    return json.loads(answer)


def cast(nats, host, method, **args):
    """Store a cast and yield its events. Whoever wants to be sure sends it again, with the same id, until it is accepted."""
    request = str(uuid.uuid4())
    nats.subscribe(f"compute.event.{token(host)}.task.{request}", "task")  # before it is sent, so that none is missed
    headers = {"Compute-Request-Id": request, "Nats-Msg-Id": f"{token(host)}/{request}", "Compute-Version": "1.0"}
    _, stored = nats.request(f"compute.cast.{token(host)}.{method}", json.dumps(args), headers)
    if "error" in json.loads(stored or '{"error": "no stream takes it"}'):
        sys.exit(f"the cast is not stored: {stored}")
    while True:
        sid, _, body = nats.next()
        if sid == "task":
            event = json.loads(body)
            yield event
            if event["state"] in ("succeeded", "failed", "refused"):
                return


def main(host, name, method, *pairs):
    nats = Nats(os.environ.get("NATS_SERVER", "127.0.0.1:4222"))
    instances = call(nats, host, "list_instances")["instances"]
    print("instances:", ", ".join(sorted(i["name"] for i in instances)))
    found = [i["uuid"] for i in instances if name in (i["name"], i["uuid"])]
    if len(found) != 1:
        sys.exit(f"{len(found)} instances of {host} are called {name}")
    instance = call(nats, host, "show_instance", instance=found[0])["instance"]
    print(instance["name"], "is", instance["vm_state"])
    for event in cast(nats, host, method, instance=instance["uuid"], **dict(p.split("=", 1) for p in pairs)):
        print(method, event["state"])
        if "error" in event:
            fail(event["error"])


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

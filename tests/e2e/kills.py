"""A server whose executors and media decoders are killed at random, under mixed clients, a quarter of which leave in
the middle: usage: kills.py PROGRAM [--requests N] [--clients N]

Every answer must be complete and the one that an undisturbed server gives, or end in a clear error. At the end there
must be no KV block, sidecar byte, open file or process more than before; SIGTERM must leave nothing behind."""

import argparse
import http.client
import json
import os
import pathlib
import random
import signal
import statistics
import threading
import time

from plans import Plans, ask_all, golden_mix
from serving import Server, Tap

LEAVES = 0.25


def children(pid):
    """Processes below pid: {pid: command line}."""
    parents, names = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (OSError, ValueError):
            continue
    found, frontier = {}, [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier and child not in found]
        found |= {child: names[child] for child in frontier if names[child]}
    return found


class Killer(threading.Thread):
    """Kills a child of the server now and then, when all executors take work."""

    def __init__(self, server, every_s, only=None):
        super().__init__(daemon=True)
        self.server, self.every_s, self.only = server, every_s, only
        self.rng, self.over, self.killed = random.Random(5), threading.Event(), {"executor": 0, "media-decoder": 0}
        self.executors = server.metric("cornserve_executors")

    def run(self):
        while not self.over.wait(self.rng.uniform(0.5, 1.5) * self.every_s):
            if self.server.metric("cornserve_executors_ready") < self.executors:
                continue
            kinds = {}
            for child, command in children(self.server.process.pid).items():
                kinds.setdefault(command.split(" ")[1], []).append(child)
            kind = self.rng.choice([k for k in kinds if k in self.killed and (not self.only or k == self.only)] or [None])
            if kind:
                os.kill(self.rng.choice(kinds[kind]), signal.SIGKILL)
                self.killed[kind] += 1

    def stop(self):
        self.over.set()
        self.join()


def stream(server, request, leave_after=None):
    """The text of each choice as it was streamed, and how it ended: "done", "left", or an error's message; and the
    longest time between two events."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    body = json.dumps({**request, "stream": True, "logprobs": False, "top_logprobs": None})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    texts, last, longest, n = {}, time.monotonic(), 0, 0
    try:
        if response.status != 200:
            return texts, json.loads(response.read())["error"]["message"], longest
        for line in response:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            longest, last, n = max(longest, now - last), now, n + 1
            if line.startswith(b"data: [DONE]"):
                return texts, "done", longest
            event = json.loads(line[6:])
            if "error" in event:
                return texts, event["error"]["message"], longest
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
            if leave_after is not None and n > leave_after:
                return texts, "left", longest
        return texts, "cut", longest
    finally:
        connection.close()


class Clients:
    """Threads that ask until n requests are done."""

    def __init__(self, server, requests, expected, n, n_clients):
        self.server, self.requests, self.expected, self.left = server, requests, expected, n
        self.lock, self.rng = threading.Lock(), random.Random(6)
        self.wrong, self.ends, self.pauses, self.errors = [], {"done": 0, "left": 0, "error": 0}, [], {}
        self.threads = [threading.Thread(target=self.ask) for _ in range(n_clients)]

    def run(self):
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()

    def ask(self):
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
                i = self.rng.randrange(len(self.requests))
                leave_after = self.rng.randrange(12) if self.rng.random() < LEAVES else None
            try:
                texts, end, pause = stream(self.server, self.requests[i], leave_after)
            except (OSError, http.client.HTTPException) as error:
                texts, end, pause = {}, "cut", 0
                print(f"# {error!r}")
            with self.lock:
                self.note(i, texts, end, pause)

    def note(self, i, texts, end, pause):
        self.ends[end if end in ("done", "left") else "error"] += 1
        self.pauses.append(pause)
        if end == "done" and texts != self.expected[i]:
            self.wrong.append((i, self.expected[i], texts))
        elif any(not self.expected[i][k].startswith(text) for k, text in texts.items()):
            self.wrong.append((i, self.expected[i], texts))
        elif end == "cut":
            self.wrong.append((i, "an end", "a connection that closed in the middle"))
        elif end not in ("done", "left"):
            self.errors[end] = self.errors.get(end, 0) + 1


def leftovers(server):
    """What must be as before once nothing runs."""
    return {"files": server.open_files(), "processes": len(children(server.process.pid))}


def wait_for(what, server, expected, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = leftovers(server)
        if all(found[k] <= expected[k] for k in expected) and server.metric("cornserve_sidecar_bytes") == 0:
            return True
        time.sleep(0.2)
    print(f"# {what}: {found}, before {expected}; sidecar {server.metric('cornserve_sidecar_bytes')} bytes")
    return False


def storm(tap, server, requests, expected, n, n_clients, every_s):
    executors = server.metric("cornserve_executors")
    tap.check(ask_text(server, requests) == expected, "it answers as a server without a plan")
    server.wait_until_idle()
    before = leftovers(server)
    killer = Killer(server, every_s)
    clients = Clients(server, requests, expected, n, n_clients)
    killer.start()
    begun = time.monotonic()
    clients.run()
    took = time.monotonic() - begun
    killer.stop()
    pauses = sorted(clients.pauses)
    print(f"# {n} requests of {n_clients} clients in {took:.1f} s: {clients.ends}; killed {killer.killed}; "
          f"{server.metric('cornserve_retries_total'):.0f} ran again; longest pause: median {statistics.median(pauses):.2f} s, "
          f"p99 {pauses[int(len(pauses) * 0.99)]:.2f} s, most {pauses[-1]:.2f} s")
    for message, count in clients.errors.items():
        print(f"# {count} x {message}")
    tap.check(not clients.wrong, "every answer is the undisturbed one, or ends in an error", clients.wrong[:3])
    tap.check(min(killer.killed.values()) > 0, "executors and media decoders were killed", killer.killed)
    tap.check(clients.ends["done"] > clients.ends["error"], "most are answered all the same", clients.ends)
    tap.check(server.wait_until_idle(30), "no request and no KV block is left")
    tap.check(wait_for("left", server, before), "no file, process or byte of the sidecar is left")
    tap.check(ask_text(server, requests) == expected, "afterwards it answers as before")
    tap.equal(server.metric("cornserve_executors_ready"), executors, "all executors are ready again")


def ask_text(server, requests):
    answers = ask_all(server, requests)
    return [{c["index"]: c["message"]["content"] for c in a["choices"]} for a in answers]


def resumption(tap, server):
    """The thinker dies in the middle of a long answer, several times: the client sees pauses."""
    request = {"messages": [{"role": "user", "content": "tell me everything"}], "max_tokens": 3500, "temperature": 0,
               "ignore_eos": True}
    expected = ask_text(server, [request])[0]
    deaths = server.metric("cornserve_executor_deaths_total")
    killer = Killer(server, 0.02, "executor")
    killer.start()
    texts, end, pause = stream(server, request)
    killer.stop()
    tap.check(killer.killed["executor"] > 0, "executors were killed in the middle of an answer")
    tap.check(end == "done" and texts == expected, "an answer goes on where it stopped",
              f"{end}: {len(texts.get(0, ''))} characters of {len(expected[0])}")
    print(f"# longest pause {pause:.2f} s, {server.metric('cornserve_executor_deaths_total') - deaths:.0f} deaths")


def stopped(tap, server):
    """All executors are stopped in the middle of an answer, as a machine that swaps does: they do not answer, are
    killed, and the answer goes on."""
    request = {"messages": [{"role": "user", "content": "tell me everything"}], "max_tokens": 3500, "temperature": 0,
               "ignore_eos": True}
    expected = ask_text(server, [request])[0]
    answer = []
    client = threading.Thread(target=lambda: answer.extend(stream(server, request)))
    client.start()
    time.sleep(0.1)
    for child, command in children(server.process.pid).items():
        if command.split(" ")[1] == "executor":
            os.kill(child, signal.SIGSTOP)
    client.join()
    texts, end, pause = answer
    tap.check(end == "done" and texts == expected, "an answer goes on after executors that hang", end)
    print(f"# longest pause {pause:.2f} s")


def sigterm(tap, server):
    """While clients are served."""
    below = list(children(server.process.pid))
    request = {"messages": [{"role": "user", "content": "on and on"}], "max_tokens": 1500, "ignore_eos": True}
    clients = [threading.Thread(target=lambda: stream(server, request)) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(0.3)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(20)
    took = time.monotonic() - begun
    time.sleep(0.1)
    alive = [pid for pid in below if pathlib.Path(f"/proc/{pid}").exists()]
    tap.check(status == 0 and took < 5 and not alive, "SIGTERM drains and leaves no process",
              f"status {status}, {took:.1f} s, alive {alive}")
    for client in clients:
        client.join()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--every", type=float, default=0.3, help="seconds between two kills")
    parser.add_argument("--plan", default="encoder, prefill and decode apart")
    arguments = parser.parse_args()
    tap = Tap()
    requests = [{k: v for k, v in r.items() if k not in ("logprobs", "top_logprobs")} for r in golden_mix(40)]
    for request in requests:
        request["max_tokens"] *= 10
    with Server(arguments.program) as server:
        expected = ask_text(server, requests)
    with Plans() as plans, Server(arguments.program, "--plan", plans.file(arguments.plan), "--drain-seconds", "2", "--max-context", "4096") as server:
        tap.run("storm", storm, tap, server, requests, expected, arguments.requests, arguments.clients, arguments.every)
        tap.run("resumption", resumption, tap, server)
        tap.run("stopped", stopped, tap, server)
        tap.run("sigterm", sigterm, tap, server)
        sanitizer = [line for line in server.log if "Sanitizer" in line or "runtime error" in line]
        tap.check(not sanitizer, "no sanitizer complained", sanitizer[:5])
    tap.end()


if __name__ == "__main__":
    main()

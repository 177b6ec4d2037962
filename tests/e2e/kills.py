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
from serving import Clients, Server, Tap, children

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


class Answer:
    """What has come of a chat: the text of each choice, how it ended, and the longest time between two events."""

    def __init__(self):
        self.texts, self.end, self.pause = {}, "cut", 0


def stream(server, request, leave_after=None):
    """Streams a chat; its client leaves after so many events."""
    answer = Answer()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    body = json.dumps({**request, "stream": True, "logprobs": False, "top_logprobs": None})
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            answer.end = json.loads(response.read())["error"]["message"]
        else:
            take_events(answer, response, leave_after)
        return answer
    finally:
        connection.close()


def take_events(answer, response, leave_after):
    last, n = time.monotonic(), 0
    for line in response:
        if not line.startswith(b"data: "):
            continue
        now = time.monotonic()
        answer.pause, last, n = max(answer.pause, now - last), now, n + 1
        if line.startswith(b"data: [DONE]"):
            answer.end = "done"
            return
        event = json.loads(line[6:])
        if "error" in event:
            answer.end = event["error"]["message"]
            return
        for choice in event["choices"]:
            answer.texts[choice["index"]] = answer.texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
        if leave_after is not None and n > leave_after:
            answer.end = "left"
            return


def is_right(answer, expected):
    """All of it, or its beginning."""
    if answer.end == "done":
        return answer.texts == expected
    return all(expected[k].startswith(text) for k, text in answer.texts.items())


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
    clients = Clients(lambda request, leave_after: stream(server, request, leave_after), is_right, requests, expected, n_clients, n=n)
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
    answer = stream(server, request)
    killer.stop()
    tap.check(killer.killed["executor"] > 0, "executors were killed in the middle of an answer")
    tap.check(answer.end == "done" and answer.texts == expected, "an answer goes on where it stopped",
              f"{answer.end}: {len(answer.texts.get(0, ''))} characters of {len(expected[0])}")
    print(f"# longest pause {answer.pause:.2f} s, {server.metric('cornserve_executor_deaths_total') - deaths:.0f} deaths")


def stopped(tap, server):
    """All executors are stopped in the middle of an answer, as a machine that swaps does: they do not answer, are
    killed, and the answer goes on."""
    request = {"messages": [{"role": "user", "content": "tell me everything"}], "max_tokens": 3500, "temperature": 0,
               "ignore_eos": True}
    expected = ask_text(server, [request])[0]
    answers = []
    client = threading.Thread(target=lambda: answers.append(stream(server, request)))
    client.start()
    time.sleep(0.1)
    for child, command in children(server.process.pid).items():
        if command.split(" ")[1] == "executor":
            os.kill(child, signal.SIGSTOP)
    client.join()
    answer = answers[0]
    tap.check(answer.end == "done" and answer.texts == expected, "an answer goes on after executors that hang", answer.end)
    print(f"# longest pause {answer.pause:.2f} s")


def suspended(tap, server):
    """All processes stop for longer than an executor may be silent, as on a machine that sleeps: nobody is taken for dead."""
    deaths = server.metric("cornserve_executor_deaths_total")
    pids = [server.process.pid, *children(server.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    tap.equal(server.metric("cornserve_executor_deaths_total"), deaths, "no executor dies of a machine that sleeps")


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
        tap.run("suspended", suspended, tap, server)
        tap.run("sigterm", sigterm, tap, server)
        sanitizer = [line for line in server.log if "Sanitizer" in line or "runtime error" in line]
        tap.check(not sanitizer, "no sanitizer complained", sanitizer[:5])
    tap.end()


if __name__ == "__main__":
    main()

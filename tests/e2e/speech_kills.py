"""Speech from executors that are killed: usage: speech_kills.py PROGRAM [--requests N] [--clients N] [--give-up]

Whatever dies in mid-utterance, text and sound are to the last bit those of an undisturbed server, with no gap and no
repeat, or the request ends in an error event. Clients that leave take everything with them. Nothing is left at the end."""

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time

from kills import Killer
from serving import Clients, Server, Tap, children
from speech_plans import SPEECH_PLANS, speak, speak_all, speech_mix, wait_until_silent

PLAN = "three apart"


def streamed(request):
    path, body = request
    return path, {**body, **({"stream": True} if "messages" in body else {"stream_format": "sse"})}


def utterance(seed):
    """A chat whose text goes on for a while."""
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "tell me everything"}], "modalities": ["text", "audio"],
                                    "audio": {"voice": "Chelsie", "format": "pcm16"}, "max_tokens": 400, "temperature": 0.9, "seed": seed,
                                    "stream": True, "ignore_eos": True}


def pid_of(server, name):
    executors = json.loads(server.request("GET", "/status")[1])["executors"]
    return next((x["pid"] for x in executors if x["name"].startswith(name + "#") and x["state"] == "ready" and x["in_flight"] > 0), None)


class Once:
    """Kills the executor of that name that works, when the condition first holds."""

    def __init__(self, server, name, condition):
        self.server, self.name, self.condition, self.killed = server, name, condition, False

    def __call__(self, speech):
        if self.killed or not self.condition(speech):
            return
        pid = pid_of(self.server, self.name)
        if pid:
            os.kill(pid, signal.SIGKILL)
            self.killed = True


def wait_until_ready(server):
    end = time.monotonic() + 20
    while time.monotonic() < end and server.metric("cornserve_executors_ready") < server.metric("cornserve_executors"):
        time.sleep(0.02)


def one_death(tap, server, request, expected, name):
    """Each component at several moments: before anything is heard, in the middle, and near the end."""
    for component in ("thinker", "talker", "vocoder"):
        pauses, n_killed, wrong = [], 0, []
        for share in (0, 0.3, 0.7):
            once = Once(server, component, lambda s, share=share: len(s.sound) >= share * len(expected.sound) and s.n_events > 3)
            found = speak(server, request, on_event=once)
            n_killed += once.killed
            pauses.append(round(found.pause, 2))
            if found != expected:
                wrong.append((share, expected, found))
            wait_until_ready(server)
        tap.check(not wrong, f"{name}: {component} killed in mid-utterance: the same text and sound", wrong[:1])
        tap.check(n_killed > 0, f"{name}: {component} was killed")
        print(f"# killed {n_killed} times, longest pauses {pauses} s")


def is_right(found, expected):
    """All of it, or its beginning."""
    if found.end == "done":
        return found == expected
    return expected.text.startswith(found.text) and expected.sound.startswith(found.sound)


def leftovers(server):
    """Files and processes, but for media decoders and their sockets: as many of these start as are of use."""
    commands = list(children(server.process.pid).values())
    n_decoders = sum("media-decoder" in command for command in commands)
    return server.open_files() - n_decoders, len(commands) - n_decoders


def wait_for(server, before, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(now <= then for now, then in zip(leftovers(server), before)) and server.metric("cornserve_sidecar_bytes") == 0:
            return True
        time.sleep(0.2)
    print(f"# files and processes: {leftovers(server)}, before {before}")
    return False


def storm(tap, server, requests, expected, n, n_clients):
    speak_all(server, requests)
    server.wait_until_idle()
    before = leftovers(server)
    killer = Killer(server, 1, "executor")
    clients = Clients(lambda request, leave_after: speak(server, request, leave_after), is_right, requests, expected, n_clients, n=n, most_events=30)
    killer.start()
    clients.run()
    killer.stop()
    print(f"# {n} speeches of {n_clients} clients: {clients.ends}; killed {killer.killed['executor']}; "
          f"{server.metric('cornserve_retries_total'):.0f} ran again; longest pause: median {statistics.median(clients.pauses):.2f} s, "
          f"most {max(clients.pauses):.2f} s; {clients.errors}")
    tap.check(not clients.wrong, "every speech is the undisturbed one, or ends in an error", clients.wrong[:2])
    tap.check(killer.killed["executor"] > 0, "executors were killed")
    tap.check(clients.ends["done"] > clients.ends["error"], "most are spoken all the same", clients.ends)
    tap.check(server.wait_until_idle(30) and wait_until_silent(server), "no request, no KV block and no sound is left")
    tap.check(wait_for(server, before), "no file, process or byte of the sidecar is left")
    wait_until_ready(server)
    tap.check([f == e for f, e in zip(speak_all(server, requests), expected)] == [True] * len(requests), "afterwards it speaks as before")


def leaving(tap, server):
    """A client that goes in mid-speech frees everything in all executors at once."""
    for after in (1, 8, 16):
        found = speak(server, utterance(10), leave_after=after)
        time.sleep(0.6)  # executors tell twice a second
        idle = server.wait_until_idle(0.1) and wait_until_silent(server, 0.1)
        tap.check(found.end == "left" and idle, f"nothing is left of a speech whose client leaves after {after} events", found)


def give_up(tap, server):
    """A vocoder that dies whenever it gets work: an error event, and no end that looks like success."""
    over = threading.Event()

    def kill():
        while not over.wait(0.005):
            pid = pid_of(server, "vocoder")
            if pid:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = speak(server, ("/v1/audio/speech", {"input": "hello there", "voice": "Ethan", "response_format": "pcm", "stream_format": "sse"}))
    over.set()
    killer.join()
    tap.check(found.end not in ("done", "cut") and "attempts" in found.end, "attempts are exhausted: the request ends in an error", found)
    wait_until_ready(server)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--give-up", action="store_true", help="also until all attempts are spent, which takes half a minute")
    arguments = parser.parse_args()
    tap = Tap()
    requests = [streamed(r) for r in speech_mix(12)]
    with Server(arguments.program, "--max-context", "2048") as server:
        expected, long = speak_all(server, requests), speak(server, utterance(10))
    tap.check(all(e.end == "done" for e in [*expected, long]), "an undisturbed server speaks")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(SPEECH_PLANS[PLAN], file)
        file.flush()
        with Server(arguments.program, "--plan", file.name, "--max-context", "2048") as server:
            tap.run("one death", one_death, tap, server, utterance(10), long, PLAN)
            tap.run("leaving", leaving, tap, server)
            tap.run("storm", storm, tap, server, requests, expected, arguments.requests, arguments.clients)
            if arguments.give_up:
                tap.run("giving up", give_up, tap, server)
            sanitizer = [line for line in server.log if "Sanitizer" in line or "runtime error" in line]
            tap.check(not sanitizer, "no sanitizer complained", sanitizer[:5])
    tap.end()


if __name__ == "__main__":
    main()

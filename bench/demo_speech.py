#!/usr/bin/env python3
"""How well the demo model's speech is understood: words recognised by pocketsphinx and by the model's own ear.

    bench/demo_speech.py SET [--url http://127.0.0.1:8000] [--binary build/cornserve] [--model models/demo] [--limit 40]

SET is a folder written by tools/demo/make held-out; its descriptions and typed questions are asked, each answer by one of the model's
voices in turn. pocketsphinx (apt-get install pocketsphinx pocketsphinx-en-us) knows the grammar of the answers; the
same sentences said by espeak-ng are the measure of what it can recognise at all. Prints the share of words recognised.
"""

import argparse
import base64
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools/demo"))
import demo_accuracy  # noqa: E402
import grammar  # noqa: E402

LISTENER = "/usr/share/pocketsphinx/model/en-us"
ESPEAK = {"Chelsie": ("en-us+f2", 150, 50), "Ethan": ("en-us+m3", 150, 40)}


def answers_grammar():
    """The grammar of descriptions and of answers to questions, in JSGF."""
    either = lambda items: "(" + " | ".join(items) + ")"
    lines = ["#JSGF V1.0;", "grammar answers;", f"<color> = {either(grammar.COLORS)};", f"<shape> = {either(grammar.SHAPES)};",
             f"<size> = {either(grammar.SIZES)};", f"<place> = {either(grammar.CELLS)};",
             "<thing> = a <size> <color> <shape>;", "<placed> = <thing> <place>;",
             f"<short> = {either(grammar.NUMBERS[1:])} | none | yes | no | left | right | above | below | nothing;",
             "public <answer> = <placed> [[<placed>] [<placed>] and <placed>] | <thing> | <place> | <color> | <size> | a <shape>"
             " | <short> | there is no <shape>;"]
    return "\n".join(lines) + "\n"


def recognised(sounds, folder):
    """What pocketsphinx hears in each WAV file."""
    rules = folder / "answers.jsgf"
    rules.write_text(answers_grammar())
    found = []
    for sound in sounds:
        ready = folder / "ready.wav"
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-i", str(sound), "-af", "adelay=200,apad=pad_dur=0.3", "-ar", "16000",
                        "-ac", "1", str(ready)], check=True)
        heard = subprocess.run(["pocketsphinx_continuous", "-infile", str(ready), "-hmm", LISTENER + "/en-us", "-dict",
                                LISTENER + "/cmudict-en-us.dict", "-jsgf", str(rules), "-logfn", "/dev/null"],
                               capture_output=True, text=True, check=True).stdout
        found.append(" ".join(heard.split()))
    return found


def share(heard, said):
    errors = [demo_accuracy.word_errors(h, s) for h, s in zip(heard, said)]
    return 100 * (1 - sum(e for e, _ in errors) / sum(n for _, n in errors))


def speak(options, url, folder):
    """Ask the set: what the model says in text, the sounds, the voices, and what it hears in them itself."""
    model = demo_accuracy.call(url + "/v1/models")["data"][0]
    if not model.get("voices"):
        raise RuntimeError(f"{model['id']} does not speak")
    said, sounds, voices, own = [], [], [], []
    lines = [line for line in demo_accuracy.read(options.set / "requests.jsonl")
             if line["skill"].startswith(("describe", "typed"))]
    for number, line in enumerate(lines[::max(1, len(lines) // options.limit)][:options.limit]):
        speaker = sorted(model["voices"])[number % len(model["voices"])]
        body = {"model": model["id"], "temperature": 0, "max_tokens": 96, "modalities": ["text", "audio"],
                "audio": {"voice": speaker, "format": "wav"}, "messages": demo_accuracy.with_data(line["messages"], options.set)}
        message = demo_accuracy.call(url + "/v1/chat/completions", body)["choices"][0]["message"]
        sounds.append(folder / f"{number}.wav")
        sounds[-1].write_bytes(base64.b64decode(message["audio"]["data"]))
        said.append(message["content"] or message["audio"]["transcript"])
        voices.append(speaker)
        parts = [{"type": "input_audio", "input_audio": {"data": message["audio"]["data"], "format": "wav"}},
                 {"type": "text", "text": "Transcribe the speech."}]
        heard = demo_accuracy.call(url + "/v1/chat/completions", {
            "model": model["id"], "temperature": 0, "max_tokens": 96, "modalities": ["text"],
            "messages": [{"role": "user", "content": parts}]})
        own.append(heard["choices"][0]["message"]["content"])
    return said, sounds, voices, own


def by_espeak(said, voices, folder):
    sounds = []
    for number, (text, speaker) in enumerate(zip(said, voices)):
        voice, speed, pitch = ESPEAK.get(speaker, ESPEAK["Chelsie"])
        sounds.append(folder / f"espeak-{number}.wav")
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(sounds[-1]), text], check=True)
    return sounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=pathlib.Path)
    parser.add_argument("--url")
    parser.add_argument("--binary", default="build/cornserve")
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--port", type=int, default=18349)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--espeak-only", action="store_true", help="only how espeak-ng is recognised, saying the right answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.espeak_only:
            lines = [line["answer"] for line in demo_accuracy.read(options.set / "requests.jsonl")
                     if line["skill"].startswith(("describe", "typed"))]
            said = lines[::max(1, len(lines) // options.limit)][:options.limit]
            voices = [("Chelsie", "Ethan")[k % 2] for k in range(len(said))]
        else:
            server, url = (None, options.url.rstrip("/")) if options.url else demo_accuracy.start(options)
            try:
                said, sounds, voices, own = speak(options, url, folder)
            finally:
                if server:
                    os.killpg(server.pid, signal.SIGTERM)
                    server.wait(10)
            print(f"the model, by pocketsphinx   {share(recognised(sounds, folder), said):5.1f} % of words")
            print(f"the model, by its own ear    {share(own, said):5.1f} % of words")
        print(f"espeak-ng, by pocketsphinx   {share(recognised(by_espeak(said, voices, folder), folder), said):5.1f} % of words")
        print(f"{len(said)} answers")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How well the demo model's speech is understood: words recognised by pocketsphinx and by the model's own ear.

    bench/demo_speech.py SET [--url http://127.0.0.1:8000] [--binary build/cornserve] [--model models/demo] [--limit 40]

SET is a folder written by tools/demo/make held-out; its descriptions and typed questions are asked, each answer by one of the model's
voices in turn. pocketsphinx (apt-get install pocketsphinx pocketsphinx-en-us) knows the grammar of the answers; the
same answers said by espeak-ng are the measure of what it can recognise at all. The model's own ear was taught sentences, not
answers: it hears the model read the sentences of the set's transcriptions aloud, and espeak-ng too. Prints the share of words
recognised.
"""

import argparse
import base64
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import urllib.request

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
             "<thing> = a <size> <color> <shape>;", "<placed> = <thing> <place>;", "<kind> = (a | an) <color> <shape>;",
             f"<count> = <kind> [[<kind>] [<kind>] and <kind>] {either(grammar.NUMBERS[1:])} | none;",
             "<relation> = the <shape> is <place> and the <shape> <place> (left | right | above | below);",
             "public <answer> = <placed> [[<placed>] [<placed>] and <placed>] | <thing> | <place> | <color> | <size> | a <shape>"
             " | <count> | <relation> | yes | no | nothing | there is no <shape>;"]
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


def lines_of(options, kinds):
    lines = [line for line in demo_accuracy.read(options.set / "requests.jsonl") if line["skill"].startswith(kinds)]
    return lines[::max(1, len(lines) // options.limit)][:options.limit]


def voices_of(url):
    model = demo_accuracy.call(url + "/v1/models")["data"][0]
    if not model.get("voices"):
        raise RuntimeError(f"{model['id']} does not speak")
    return sorted(model["voices"])


def answers(options, url, folder):
    """Ask the set: what the model says in text, the sounds, the voices."""
    said, sounds, speakers, known = [], [], [], voices_of(url)
    for number, line in enumerate(lines_of(options, ("describe", "typed"))):
        speakers.append(known[number % len(known)])
        body = {"temperature": 0, "max_tokens": 96, "modalities": ["text", "audio"], "seed": number,
                "audio": {"voice": speakers[-1], "format": "wav"}, "messages": demo_accuracy.with_data(line["messages"], options.set)}
        message = demo_accuracy.call(url + "/v1/chat/completions", body)["choices"][0]["message"]
        sounds.append(folder / f"{number}.wav")
        sounds[-1].write_bytes(base64.b64decode(message["audio"]["data"]))
        said.append(message["audio"]["transcript"])
    return said, sounds, speakers


def readings(options, url, folder):
    """Sentences, the sounds of the model that reads them aloud, the voices."""
    said, sounds, speakers, known = [], [], [], voices_of(url)
    for number, line in enumerate(lines_of(options, "transcription")):
        speakers.append(known[number % len(known)])
        said.append(line["answer"])
        body = json.dumps({"input": line["answer"], "voice": speakers[-1], "response_format": "wav", "seed": number})
        request = urllib.request.Request(url + "/v1/audio/speech", body.encode(), {"Content-Type": "application/json"})
        sounds.append(folder / f"reading-{number}.wav")
        with urllib.request.urlopen(request) as answer:
            sounds[-1].write_bytes(answer.read())
    return said, sounds, speakers


def own_ear(url, sounds):
    """What the model hears in each sound."""
    found = []
    for sound in sounds:
        data = base64.b64encode(sound.read_bytes()).decode()
        parts = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
                 {"type": "text", "text": "Transcribe the speech."}]
        heard = demo_accuracy.call(url + "/v1/chat/completions", {
            "temperature": 0, "max_tokens": 96, "modalities": ["text"], "messages": [{"role": "user", "content": parts}]})
        found.append(heard["choices"][0]["message"]["content"])
    return found


def by_espeak(said, voices, folder, name):
    sounds = []
    for number, (text, speaker) in enumerate(zip(said, voices)):
        voice, speed, pitch = ESPEAK.get(speaker, ESPEAK["Chelsie"])
        sounds.append(folder / f"espeak-{name}-{number}.wav")
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
    parser.add_argument("--wrong", action="store_true", help="print what was not understood")
    parser.add_argument("--espeak-only", action="store_true", help="only how espeak-ng is recognised, saying the right answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.espeak_only:
            said = [line["answer"] for line in lines_of(options, ("describe", "typed"))]
            voices = [("Chelsie", "Ethan")[k % 2] for k in range(len(said))]
        else:
            server, url = (None, options.url.rstrip("/")) if options.url else demo_accuracy.start(options)
            try:
                said, sounds, voices = answers(options, url, folder)
                read, reading, readers = readings(options, url, folder)
                own = own_ear(url, reading)
                own_of_espeak = own_ear(url, by_espeak(read, readers, folder, "reading"))
            finally:
                if server:
                    os.killpg(server.pid, signal.SIGTERM)
                    server.wait(10)
            heard = recognised(sounds, folder)
            if options.wrong:
                for found, text in [*zip(heard, said), *zip(own, read)]:
                    if demo_accuracy.word_errors(found, text)[0]:
                        print(f"said {text!r}, heard {found!r}")
            print(f"answers of the model, by pocketsphinx     {share(heard, said):5.1f} % of words")
        by_other = recognised(by_espeak(said, voices, folder, "answer"), folder)
        print(f"answers by espeak-ng, by pocketsphinx     {share(by_other, said):5.1f} % of words")
        if not options.espeak_only:
            print(f"sentences of the model, by its own ear    {share(own, read):5.1f} % of words")
            print(f"sentences by espeak-ng, by the model's ear {share(own_of_espeak, read):4.1f} % of words")
            print(f"{len(read)} sentences,", end=" ")
        print(f"{len(said)} answers")


if __name__ == "__main__":
    main()

"""Writes a held-out set: pictures, sounds and clips the training never saw, with what the model should answer.

    python held_out.py DIR --seed 99 --count 200

    python held_out.py models/demo/examples --seed 5 --examples

DIR gets the media as ordinary files (PNG, WAV, MP4) and requests.jsonl, one request a line:
{"skill": ..., "messages": OpenAI messages whose media parts name a file instead of holding data, "answer": ...}.
Voices have settings (speed, pitch) that training never uses; half of the transcriptions also a voice it never uses.
With --examples it is a handful of requests about few and small files with telling names, for demonstrations and tests.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import subprocess
import wave

import numpy as np

import grammar
import pictures
import speech
import tokenizer as tokens

CLIP_RATE = 10  # frames a second


class Writer:
    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.rng, self.lines = folder, random.Random(f"held out {seed}"), []
        self._espeak, self._prose, self._files = speech.Espeak(), tokens.general_text(), 0
        self.names: list[str] = []  # of the next files, instead of numbers
        folder.mkdir(parents=True, exist_ok=True)

    def _name(self, suffix: str) -> str:
        self._files += 1
        return self.names.pop(0) if self.names else f"{self._files:04d}.{suffix}"

    def text(self, text: str) -> dict:
        return {"type": "text", "text": text}

    def picture(self, scene: grammar.Scene) -> dict:
        name = self._name("png")
        pictures.draw_scene(self.rng, scene)[0].save(self.folder / name, quality=92)
        return {"type": "image_url", "image_url": {"file": name}}

    def sound(self, text: str, unseen_variant: bool = False) -> dict:
        name = self._name("wav")
        voice = speech.held_out_voice(self.rng, unseen_variant)
        samples = speech.room(self.rng, self._espeak.say(text, voice))
        with wave.open(str(self.folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(speech.RATE)
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        return {"type": "input_audio", "input_audio": {"file": name, "format": "wav"}}

    def clip(self, clip: grammar.Clip) -> dict:
        name = self._name("mp4")
        frames, _ = pictures.draw_clip(self.rng, clip, 2 * CLIP_RATE)
        width, height = frames[0].size
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
                        f"{width}x{height}", "-r", str(CLIP_RATE), "-i", "-", "-pix_fmt", "yuv420p", "-crf", "16",
                        str(self.folder / name)], input=b"".join(np.asarray(f).tobytes() for f in frames), check=True)
        return {"type": "video_url", "video_url": {"file": name}}

    def add(self, skill: str, parts: list[dict], answer: str) -> None:
        self.lines.append({"skill": skill, "messages": [{"role": "user", "content": parts}], "answer": answer})

    def close(self) -> None:
        with (self.folder / "requests.jsonl").open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)

    # One method a skill.

    def describe(self):
        scene = grammar.random_scene(self.rng)
        self.add("describe", [self.picture(scene), self.text(self.rng.choice(grammar.DESCRIBE))],
                 grammar.describe(scene))

    def typed(self):
        scene = grammar.random_scene(self.rng)
        kind, asked, answer = grammar.question(self.rng, scene)
        self.add(f"typed question: {kind}", [self.picture(scene), self.text(asked)], answer)

    def spoken(self):
        scene = grammar.random_scene(self.rng)
        kind, asked, answer = grammar.question(self.rng, scene)
        self.add(f"spoken question: {kind}", [self.picture(scene), self.sound(asked)], answer)

    def transcribe(self):
        text, unseen = grammar.spoken_sentence(self.rng), len(self.lines) % 2 == 1
        self.add("transcription: " + ("new voice" if unseen else "new setting"),
                 [self.sound(text, unseen), self.text(self.rng.choice(grammar.TRANSCRIBE))], text)

    def pair(self):
        first = grammar.random_scene(self.rng, (1, 1, 1, 0.5))
        second, says = grammar.change(self.rng, first)
        self.add("two pictures", [self.picture(first), self.picture(second),
                                  self.text(self.rng.choice(grammar.DIFFER))], says)

    def moving(self):
        clip = grammar.random_clip(self.rng)
        _, asked, answer = grammar.clip_question(self.rng, clip)
        self.add("clip", [self.clip(clip), self.text(asked)], answer)

    def small(self):
        asked, answer = self.rng.choice(grammar.SMALL_TALK)
        self.add("small talk", [self.text(self.rng.choice(asked))], answer)

    def unknown(self):
        self.add("not its world", [self.text(grammar.unknown_question(self.rng, self._prose))], grammar.UNKNOWN)

    def blind(self):
        _, asked, _ = grammar.question(self.rng, grammar.random_scene(self.rng))
        self.add("no picture", [self.text(asked)], grammar.NO_PICTURE)


# Skill -> share of --count.
SKILLS = {"describe": 1.0, "typed": 1.0, "spoken": 1.0, "transcribe": 1.0, "pair": 0.5, "moving": 0.25, "small": 0.1,
          "unknown": 0.25, "blind": 0.1}


def examples(writer: Writer) -> None:
    """One picture asked in several ways, a second one that differs, a sentence, a clip, and small talk."""
    rng = writer.rng
    scene = grammar.random_scene(rng, (0, 0, 1, 0))
    while len({t.shape for t in scene.things} | {t.color for t in scene.things}) < 6:
        scene = grammar.random_scene(rng, (0, 0, 1, 0))
    thing = scene.things[1]
    writer.names = ["picture.jpg", "question.wav", "second.jpg", "sentence.wav", "clip.mp4"]
    picture = writer.picture(scene)
    writer.add("describe", [picture, writer.text("Describe the picture.")], grammar.describe(scene))
    asked, place = f"Where is the {thing.color} {thing.shape}?", grammar.sentence(grammar.CELLS[thing.cell])
    writer.add("spoken question", [picture, writer.sound(asked)], place)
    writer.lines[-1]["spoken"] = asked
    writer.add("typed question", [picture, writer.text(asked)], place)
    writer.add("typed question", [picture, writer.text("How many shapes are there?")], grammar.plain(grammar.number(list(scene.things))))
    second, says = grammar.change(rng, scene)
    while second == scene:
        second, says = grammar.change(rng, scene)
    writer.add("two pictures", [picture, writer.picture(second), writer.text("What differs?")], says)
    text = grammar.spoken_sentence(rng)
    writer.add("transcription", [writer.sound(text), writer.text("Transcribe the speech.")], text)
    clip = grammar.Clip(grammar.random_thing(rng, 4), rng.randrange(4))
    writer.add("clip", [writer.clip(clip), writer.text("Which way does the shape move?")],
               grammar.sentence(grammar.DIRECTIONS[clip.direction]))
    writer.add("small talk", [writer.text("What can you do?")], grammar.ABLE)
    writer.add("not its world", [writer.text("What is the capital of France?")], grammar.UNKNOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--examples", action="store_true")
    options = parser.parse_args()
    writer = Writer(options.folder, options.seed)
    if options.examples:
        examples(writer)
    else:
        for skill, share in SKILLS.items():
            for _ in range(max(1, round(options.count * share))):
                getattr(writer, skill)()
    writer.close()
    print(f"{options.folder}: {len(writer.lines)} requests")


if __name__ == "__main__":
    main()

"""Draws scenes and clips, and cuts pictures into the patches that the vision encoder reads.

The pixel pipeline is the published one (Qwen2-VL's image processor with the pixel limits of the demo checkpoint):
resize to multiples of 28 within the limits, scale, normalise, 14 x 14 patches in groups of 2 x 2.
"""

from __future__ import annotations

import io
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from grammar import Clip, Scene, Thing

PATCH, MERGE = 14, 2
UNIT = PATCH * MERGE
MIN_PIXELS, MAX_PIXELS = 12 * UNIT * UNIT, 13000  # at most 16 units; not exactly, so that a square is 4 x 4 after rounding
MAX_PATCHES = 16 * MERGE * MERGE
# Clips: the limits are the reference processor's own, which no file of a checkpoint can change.
MIN_CLIP_PIXELS, MAX_CLIP_PIXELS = 128 * UNIT * UNIT, 768 * UNIT * UNIT
CLIP_SHAPES = ((1, 1), (3, 4), (4, 3), (9, 16), (16, 9))  # height to width
MAX_CLIP_PATCHES = 144 * MERGE * MERGE
PATCH_VALUES = 3 * PATCH * PATCH
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

RGB = {"red": (214, 36, 40), "green": (34, 150, 60), "blue": (36, 78, 208), "yellow": (242, 216, 44),
       "orange": (245, 134, 26), "purple": (132, 44, 158), "white": (248, 248, 248), "black": (18, 18, 18)}
# Grounds keep away from every shape's colour: greys, tans and pale or dull tints.
GROUNDS = ((128, 128, 128), (160, 160, 160), (96, 100, 104), (176, 166, 150), (150, 170, 180), (190, 176, 190),
           (130, 120, 104), (112, 128, 136), (176, 190, 176), (200, 184, 170))
RADIUS = {"small": (0.080, 0.105), "large": (0.155, 0.185)}  # of the shorter side


def smart_size(height: int, width: int, least: int = MIN_PIXELS, most: int = MAX_PIXELS) -> tuple[int, int]:
    """The size a picture is resized to (the published rule): multiples of UNIT between the pixel limits."""
    new_height = max(UNIT, round(height / UNIT) * UNIT)
    new_width = max(UNIT, round(width / UNIT) * UNIT)
    if new_height * new_width > most:
        scale = math.sqrt(height * width / most)
        new_height = max(UNIT, math.floor(height / scale / UNIT) * UNIT)
        new_width = max(UNIT, math.floor(width / scale / UNIT) * UNIT)
    elif new_height * new_width < least:
        scale = math.sqrt(least / (height * width))
        new_height = math.ceil(height * scale / UNIT) * UNIT
        new_width = math.ceil(width * scale / UNIT) * UNIT
    return new_height, new_width


def random_size(rng: random.Random) -> tuple[int, int]:
    """Height and width of a picture as a client might send it: 96 to 320 pixels, up to 5:3 either way."""
    short = rng.randint(96, 224)
    ratio = rng.choice((1.0, 1.0, 1.0, rng.uniform(1.0, 1.6)))
    sides = (short, round(short * ratio))
    return sides if rng.random() < 0.5 else sides[::-1]


def random_clip_size(rng: random.Random) -> tuple[int, int]:
    tall, wide = rng.choice(CLIP_SHAPES)
    unit = rng.uniform(96, 200) / min(tall, wide)
    return round(tall * unit / 2) * 2, round(wide * unit / 2) * 2  # even, for the video encoder


def clip_size(height: int, width: int) -> tuple[int, int]:
    return smart_size(height, width, MIN_CLIP_PIXELS, MAX_CLIP_PIXELS)


def _star(points: int, inner: float, turn: float) -> list[tuple[float, float]]:
    return [((inner if k % 2 else 1.0) * math.sin(turn + math.pi * k / points),
             -(inner if k % 2 else 1.0) * math.cos(turn + math.pi * k / points)) for k in range(2 * points)]


def _polygon(shape: str, turn: float) -> list[tuple[float, float]]:
    if shape == "square":
        base = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif shape == "triangle":
        base = [(0.0, -1.05), (1.0, 0.8), (-1.0, 0.8)]
    elif shape == "cross":
        a, b = 0.34, 1.0
        base = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a),
                (-a, -a)]
    else:
        base = _star(5, 0.42, 0.0)
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in base]


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, rgb, x: float, y: float, radius: float, turn: float) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=rgb)
    elif shape == "ring":
        draw.ellipse(box, outline=rgb, width=max(2, round(radius * 0.36)))
    else:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _polygon(shape, turn)], fill=rgb)


def _vary(rng: random.Random, rgb, spread: int):
    return tuple(min(255, max(0, value + rng.randint(-spread, spread))) for value in rgb)


def ground(rng: random.Random, height: int, width: int) -> np.ndarray:
    """A plain or shaded ground, float32 [height, width, 3]."""
    base = np.array(_vary(rng, rng.choice(GROUNDS), 10), np.float32)
    picture = np.broadcast_to(base, (height, width, 3)).copy()
    if rng.random() < 0.5:
        angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(5, 28)
        ys, xs = np.mgrid[0:height, 0:width]
        slope = (xs / width - 0.5) * math.cos(angle) + (ys / height - 0.5) * math.sin(angle)
        picture += (slope * 2 * depth)[..., None].astype(np.float32)
    return picture


def finish(rng: random.Random, picture: Image.Image) -> Image.Image:
    """Camera-like faults: noise, and JPEG artefacts in half of the pictures."""
    if rng.random() < 0.6:
        noise = np.random.default_rng(rng.randrange(1 << 32)).normal(0, rng.uniform(1, 9), (*picture.size[::-1], 3))
        picture = Image.fromarray(np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=rng.randint(45, 95))
        picture = Image.open(packed).convert("RGB")
    return picture


def place(rng: random.Random, scene: Scene, height: int, width: int) -> list[tuple[float, float, float]]:
    """Centre and radius in pixels of every thing; neighbours do not touch."""
    short = min(height, width)
    while True:
        spots = []
        for thing in scene.things:
            radius = rng.uniform(*RADIUS[thing.size]) * short
            x = ((thing.cell % 3) + 0.5 + rng.uniform(-0.22, 0.22)) * width / 3
            y = ((thing.cell // 3) + 0.5 + rng.uniform(-0.22, 0.22)) * height / 3
            x = min(max(x, radius * 1.1), width - radius * 1.1)
            y = min(max(y, radius * 1.1), height - radius * 1.1)
            spots.append((x, y, radius))
        if all(math.dist(a[:2], b[:2]) > (a[2] + b[2]) * 1.02 for i, a in enumerate(spots) for b in spots[:i]):
            return spots


def _render(base: np.ndarray, things, spots, rgbs, turns) -> Image.Image:
    """Draw at twice the size and halve it, for smooth edges."""
    height, width = base.shape[:2]
    picture = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8)).resize((width * 2, height * 2), Image.NEAREST)
    draw = ImageDraw.Draw(picture)
    for thing, (x, y, radius), rgb, turn in zip(things, spots, rgbs, turns):
        draw_shape(draw, thing.shape, rgb, 2 * x, 2 * y, 2 * radius, turn)
    return picture.reduce(2)


def _looks(rng: random.Random, things: tuple[Thing, ...]):
    return [_vary(rng, RGB[t.color], 10) for t in things], [rng.uniform(-0.14, 0.14) for _ in things]


def draw_scene(rng: random.Random, scene: Scene, size=None) -> tuple[Image.Image, list[tuple[float, float, float]]]:
    """Draw a scene: the picture and every thing's (x, y, radius) as fractions of width, height, shorter side."""
    height, width = size or random_size(rng)
    spots = place(rng, scene, height, width)
    picture = finish(rng, _render(ground(rng, height, width), scene.things, spots, *_looks(rng, scene.things)))
    return picture, [(x / width, y / height, r / min(height, width)) for x, y, r in spots]


def draw_clip(rng: random.Random, clip: Clip, frames: int):
    """Draw the frames of a clip of two seconds, evenly spaced from its first moment to its last: frames and spots."""
    height, width = random_clip_size(rng)
    radius = rng.uniform(*RADIUS[clip.thing.size]) * min(height, width)
    travel = rng.uniform(0.35, 0.62)
    start, drift = 0.5 - travel / 2, rng.uniform(0.35, 0.65)
    base, looks = ground(rng, height, width), _looks(rng, (clip.thing,))
    margin_x, margin_y = radius * 1.1 / width, radius * 1.1 / height
    still = (rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
    pictures, spots = [], []
    for k in range(frames):
        along = start + travel * k / (frames - 1)
        if clip.direction in (0, 2):
            along = 1 - along
        x, y = still if clip.direction < 0 else (along, drift) if clip.direction < 2 else (drift, along)
        x, y = min(max(x, margin_x), 1 - margin_x), min(max(y, margin_y), 1 - margin_y)
        picture = _render(base, (clip.thing,), [(x * width, y * height, radius)], *looks)
        pictures.append(finish(rng, picture))
        spots.append((x, y, radius / min(height, width)))
    return pictures, spots


def patches(picture: Image.Image, clip: bool = False) -> tuple[np.ndarray, int, int]:
    """Resize and cut: uint8 [patches, 3 * 14 * 14] in the encoder's order, and the grid's rows and columns."""
    height, width = (clip_size if clip else smart_size)(picture.height, picture.width)
    pixels = np.asarray(picture.resize((width, height), Image.BICUBIC), np.uint8)
    rows, columns = height // PATCH, width // PATCH
    cut = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, PATCH_VALUES), rows, columns

"""Golden sizes and resized pixels, sampled frames, and log-mel features at the published number of bins."""

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from . import config, media, preprocess, texts

SIZES = [
    (1, 1), (1, 199), (1, 200), (1, 201), (3, 700), (14, 14), (27, 29), (28, 28), (41, 43), (42, 42), (56, 56), (70, 98),
    (100, 100), (137, 91), (199, 1), (224, 224), (301, 67), (333, 777), (640, 480), (480, 640), (720, 1280), (1080, 1920),
    (1200, 7), (2160, 3840), (3000, 4000), (4001, 2999), (10000, 51), (12000, 9000),
]  # fmt: skip
LIMITS = [
    (28, 3136, 12845056),  # pictures as published
    (28, 100352, 602112),  # video frames
    (28, 3136, 1003520),
    (24, 2304, 20736),  # the small checkpoint
    (24, 100352, 602112),
]


def sizes():
    out = []
    for factor, low, high in LIMITS:
        for height, width in SIZES:
            case = {
                "height": height,
                "width": width,
                "factor": factor,
                "min_pixels": low,
                "max_pixels": high,
            }
            try:
                case["resized"] = smart_resize(height, width, factor, low, high)
            except ValueError:
                case["error"] = "aspect ratio over 200"
            out.append(case)
    return out


# (picture or [width, height, seed] of noise, width, height)
RESIZES = [
    ("stamp.png", 48, 48), ("stamp.png", 31, 29), ("stamp.png", 7, 90), ("stamp.png", 24, 24), ("stamp.png", 1, 1),
    ("tower.png", 72, 240), ("tower.png", 48, 144), ("tower.png", 53, 60), ("tower.png", 20, 149),
    ("harbour.jpg", 168, 96), ("harbour.jpg", 224, 140), ("harbour.jpg", 24, 24), ("harbour.jpg", 700, 448),
    ("banner.jpg", 288, 48), ("banner.jpg", 3, 2), ("banner.jpg", 336, 84),
    ([640, 480, 1], 224, 168), ([97, 31, 2], 98, 30), ([1, 50, 3], 5, 28), ([50, 1, 4], 28, 28), ([2, 2, 5], 56, 56),
]  # fmt: skip
FULL = 3000  # bytes up to which the pixels themselves are kept


def noise(width, height, seed):
    """Bytes of a 32-bit linear congruential generator, the top byte of each state: no library needed to repeat it."""
    state, out = seed, bytearray()
    for _ in range(width * height * 3):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(state >> 24)
    return Image.frombytes("RGB", (width, height), bytes(out))


def resizes(media_directory):
    cases, tensors = [], {}
    for i, (source, width, height) in enumerate(RESIZES):
        image = (
            Image.open(media_directory / source).convert("RGB")
            if isinstance(source, str)
            else noise(*source)
        )
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        case = {
            "source": source,
            "width": width,
            "height": height,
            "fnv1a64": texts.fnv1a64(pixels.tobytes()),
        }
        if pixels.nbytes <= FULL:
            case["tensor"] = f"resize{i}"
            tensors[case["tensor"]] = np.ascontiguousarray(pixels)
        cases.append(case)
    decoded = []
    for name in media.IMAGES:
        pixels = np.asarray(Image.open(media_directory / name).convert("RGB"))
        decoded.append({"file": name, "height": pixels.shape[0], "width": pixels.shape[1],
                        "fnv1a64": texts.fnv1a64(pixels.tobytes())})  # fmt: skip
    return cases, decoded, tensors


def frames():
    out = []
    for total, fps in (
        (17, 5.0), (4, 1.0), (5, 30.0), (8, 4.0), (9, 2.0), (30, 30.0), (31, 29.97), (61, 24.0), (75, 25.0), (250, 25.0),
        (301, 29.97), (1000, 60.0), (3000, 23.976), (20000, 25.0),
    ):  # fmt: skip
        indices = preprocess.sample_indices(total, fps)
        case = {"frames": total, "fps": fps, "count": len(indices)}
        case |= {"indices": indices} if len(indices) < 32 else {"fnv1a64": texts.hash_ids(indices)}
        out.append(case)
    return out


def audio_lengths():
    """Frames that the mask keeps of so many samples, and tokens of so many frames, cut at chunk_length."""
    extractor = WhisperFeatureExtractor(**config.PREPROCESSOR)
    out = []
    for samples in (
        1,
        159,
        160,
        161,
        320,
        321,
        400,
        480,
        481,
        640,
        641,
        8000,
        16000,
        16001,
        319999,
        320000,
        320001,
        400000,
    ):
        mask = extractor(np.zeros(samples, np.float32), sampling_rate=16000, padding="max_length",
                         return_attention_mask=True, return_tensors="np")["attention_mask"]  # fmt: skip
        count = int(mask.sum())
        after_conv = (count - 1) // 2 + 1
        out.append({"samples": samples, "frames": count, "tokens": (after_conv - 2) // 2 + 1})
    return out


def gated(samples):
    """Sound, digital silence, and sound again up to the last sample."""
    return np.concatenate([samples[3000:3700], np.zeros(900, np.float32), samples[5000:5555]])


def mel(media_directory):
    """With the published 128 bins and 300 s of padding; what a short, a gated, a silent and a clipped sound give."""
    fields = {**config.PREPROCESSOR, "feature_size": 128, "chunk_length": 300}
    extractor = WhisperFeatureExtractor(**fields)
    bell = preprocess.sound(media_directory / "bell.flac")
    sounds = {
        "bell": bell,
        "short": bell[4000:4173],
        "gated": gated(bell),
        "silent": np.zeros(1000, np.float32),
        "clipped": np.clip(bell[:1600] * 40, -1, 1),
    }
    out = {}
    for name, samples in sounds.items():
        batch = extractor(
            samples,
            sampling_rate=16000,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="np",
        )
        features = (
            batch["input_features"][0].T[: int(batch["attention_mask"].sum())].astype(np.float32)
        )
        out[f"mel128.{name}.samples"] = samples[:1] if name == "bell" else samples
        rows = np.unique(np.linspace(0, len(features) - 1, 7).round().astype(np.int32))
        out[f"mel128.{name}"], out[f"mel128.{name}.rows"] = (
            np.ascontiguousarray(features[rows]),
            rows,
        )
        out[f"mel128.{name}.frames"] = np.array([len(features)], np.int32)
    del out["mel128.bell.samples"]  # of media/bell.flac
    return out


def write(directory, media_directory):
    cases, decoded, tensors = resizes(media_directory)
    texts.write_rows(
        directory / "preprocess.json",
        {
            "version": 1,
            "tensors": "preprocess.safetensors",
            "smart_resize": sizes(),
            "decoded": decoded,
            "resize": cases,
            "sampled_frames": frames(),
            "audio_lengths": audio_lengths(),
        },
    )
    save_file({**tensors, **mel(media_directory)}, directory / "preprocess.safetensors")

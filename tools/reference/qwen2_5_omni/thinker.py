"""Tensors at every boundary of the thinker's components, for each request."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from . import checkpoint, config, preprocess, requests

STEPS = 64
MIN_GAP = 2e-3  # twice what any correct f32 implementation may need
MIN_DISTINCT = 20
MAX_BF16_ERROR = 1.6e-2
CUT_BYTES = 5000  # a larger tensor is stored as evenly spaced rows
# What lies inside a component, and the processors' output, is stored once a modality; boundaries always.
INSIDE = (
    "patch_embed",
    "block0",
    "block1",
    "block2",
    "merger",
    "audio.layer0",
    "audio.layer2",
    "thinker.layer0",
)
INSIDE_OF = ("req02", "req04", "req07")
PIXELS_OF = ("req02", "req03", "req07")
SOUND_OF = ("req04", "req05")
MEAN = np.array(config.PREPROCESSOR["image_mean"], np.float32)
STD = np.array(config.PREPROCESSOR["image_std"], np.float32)


class Taps:
    """Outputs of named modules during one run."""

    def __init__(self, thinker):
        self.seen = {}
        self.handles = []
        visual, audio = thinker.visual, thinker.audio_tower
        self.watch(visual.patch_embed, "patch_embed", vision=True)
        for i in (0, 1, 2):
            self.watch(visual.blocks[i], f"block{i}", vision=True)
        self.watch(visual.merger, "merger", vision=True)
        self.watch(visual, "out", vision=True)
        self.watch(audio.layers[0], "audio.layer0")
        self.watch(audio.layers[-1], f"audio.layer{len(audio.layers) - 1}")
        self.watch(audio, "audio.out")
        self.watch(thinker.model.layers[0], "thinker.layer0")
        self.watch(thinker.model.norm, "thinker.hidden")
        self.visual_calls = 0
        self.handles.append(visual.register_forward_pre_hook(self.count))
        self.handles.append(thinker.model.register_forward_pre_hook(self.embeds, with_kwargs=True))

    def count(self, module, args):
        self.visual_calls += 1

    def embeds(self, module, args, kwargs):
        self.seen.setdefault("thinker.embeds", kwargs["inputs_embeds"][0])
        self.seen.setdefault("position_ids", kwargs["position_ids"][:, 0])

    def watch(self, module, name, vision=False):
        def hook(_module, _args, output):
            out = output
            if not torch.is_tensor(out):
                out = out[0] if isinstance(out, tuple) else out.last_hidden_state
            key = f"{self.vision_names[self.visual_calls - 1]}.{name}" if vision else name
            if key not in self.seen:
                self.seen[key] = out[0] if out.dim() == 3 else out

        self.handles.append(module.register_forward_hook(hook))

    def run(self, thinker, inputs):
        """Pictures are encoded before videos, each in one call."""
        self.vision_names = [
            n
            for n, k in (("vision", "pixel_values"), ("video", "pixel_values_videos"))
            if k in inputs
        ]
        with torch.no_grad():
            return thinker(**inputs, use_cache=True)

    def remove(self):
        for handle in self.handles:
            handle.remove()


def float_inputs(batch, dtype, use_audio_in_video):
    out = {k: v for k, v in batch.items() if k != "video_second_per_grid"}
    if "video_second_per_grid" in batch:
        out["video_second_per_grid"] = torch.as_tensor(
            batch["video_second_per_grid"], dtype=torch.float32
        )
    for k in ("pixel_values", "pixel_values_videos", "input_features"):
        if k in out:
            out[k] = out[k].to(dtype)
    return {**out, "use_audio_in_video": use_audio_in_video}


def greedy(thinker, first, length, steps=STEPS):
    """Greedy tokens past any end token, each step's gap between the best two logits, and the last logits."""
    tokens, gaps = [], []
    logits, cache = first.logits[0, -1], first.past_key_values
    for step in range(steps):
        best = torch.topk(logits.float(), 2).values
        gaps.append(float(best[0] - best[1]))
        tokens.append(int(logits.argmax()))
        if step == steps - 1:
            break
        with torch.no_grad():
            out = thinker(
                input_ids=torch.tensor([[tokens[-1]]]),
                attention_mask=torch.ones(1, length + step + 1, dtype=torch.long),
                past_key_values=cache,
                cache_position=torch.tensor([length + step]),
                use_cache=True,
            )
        logits, cache = out.logits[0, -1], out.past_key_values
    return tokens, gaps, logits


def run(thinker, proc, media, messages, use_audio_in_video, dtype=torch.float32, steps=STEPS):
    """Every tensor of one request as numpy, by its golden name."""
    batch, sounds = preprocess.inputs(proc, media, messages, use_audio_in_video)
    inputs = float_inputs(batch, dtype, use_audio_in_video)
    taps = Taps(thinker)
    try:
        first = taps.run(thinker, inputs)
    finally:
        taps.remove()
    length = inputs["input_ids"].shape[1]
    out = {
        k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in taps.seen.items()
    }
    out["input_ids"] = inputs["input_ids"][0].numpy()
    out["position_delta"] = thinker.rope_deltas.reshape(1).numpy()
    out["logits_prefill"] = first.logits[0].float().numpy()
    if steps:
        tokens, gaps, logits = greedy(thinker, first, length, steps)
        out["greedy_tokens"], out["greedy_gap"] = np.array(tokens), np.array(gaps, np.float32)
        out["logits_last"] = logits.float().numpy()[None]
    for kind, pixels, grid in (
        ("vision", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if pixels in batch:
            out[f"{kind}.grid_thw"] = batch[grid].numpy()
            out[f"{kind}.pixel_values"] = batch[pixels].numpy()
            out[f"{kind}.window_index"] = thinker.visual.get_window_index(batch[grid])[0].numpy()
    if "video_second_per_grid" in batch:
        out["video.second_per_grid"] = np.asarray(batch["video_second_per_grid"], np.float32)
    if sounds:
        mask = batch["feature_attention_mask"].bool()
        out["audio.feature_lengths"] = mask.sum(-1).numpy()
        features = batch["input_features"].permute(0, 2, 1)[
            mask
        ]  # frames of all sounds, padding cut off
        out["audio.features"] = features.numpy()
        for i, samples in enumerate(sounds):
            out[f"audio.samples{i}"] = samples
    return out


def pixels_u8(values):
    """Normalised patches back to the resized picture's bytes, exactly."""
    n, width = values.shape
    channel = values.reshape(n, 3, -1)
    bytes_ = (channel * STD[None, :, None] + MEAN[None, :, None]) * 255.0
    out = np.rint(bytes_)
    assert np.abs(out - bytes_).max() < 1e-2
    return out.astype(np.uint8).reshape(n, width)


def wanted(request, name):
    if name.endswith(INSIDE):
        return request in INSIDE_OF
    if name.endswith(("pixel_values", "window_index")):
        return request in PIXELS_OF
    return request in SOUND_OF or not name.startswith(("audio.features", "audio.samples"))


def cut(name, value, limit=CUT_BYTES):
    if value.nbytes <= limit or value.ndim != 2 or value.shape[0] == 1:
        return {name: np.ascontiguousarray(value)}
    keep = max(2, limit // (value.nbytes // value.shape[0]))
    rows = np.unique(np.linspace(0, value.shape[0] - 1, keep).round().astype(np.int32))
    return {name: np.ascontiguousarray(value[rows]), f"{name}.rows": rows}


def pack(request, tensors):
    """Integers as I32, floats as F32, pictures as U8; what is large is cut to rows listed in NAME.rows."""
    out = {}
    for name, value in tensors.items():
        if not wanted(request, name):
            continue
        if value.dtype.kind in "iu" and value.dtype != np.uint8:
            out[name] = np.ascontiguousarray(value, np.int32)
            continue
        if name.endswith("pixel_values"):
            value = pixels_u8(value)
            name = name.replace("pixel_values", "pixel_u8")
        elif name.startswith("audio.samples"):
            # The decoded sound: only resampled ones are kept, others are the file's own 16-bit steps.
            if np.array_equal(np.rint(value * 32768), value * 32768):
                continue
        out.update(cut(name, value))
    return out


def normalised_error(value, reference):
    return float(np.abs(value.astype(np.float64) - reference).max() / np.abs(reference).max())


BOUNDARIES = (
    "vision.out",
    "video.out",
    "audio.out",
    "thinker.embeds",
    "thinker.hidden",
    "logits_prefill",
)


def replay_all(thinker, proc, media, dtype, steps):
    return {
        name: run(thinker, proc, media, messages, use_audio_in_video, dtype, steps)
        for name, (messages, use_audio_in_video) in requests.REQUESTS.items()
    }


def unfit(results, rounded):
    """Why a seed is discarded, or None: near ties in greedy decoding, monotonous text, a coarse bf16 reference."""
    for name, result in results.items():
        if result["greedy_gap"].min() < MIN_GAP:
            return f"{name}: the best two logits come within {result['greedy_gap'].min():.5f}"
        if len(set(result["greedy_tokens"].tolist())) < MIN_DISTINCT:
            return f"{name}: only {len(set(result['greedy_tokens'].tolist()))} different tokens"
        for key in ("vision.out", "video.out", "audio.out"):
            if (
                key in result
                and (error := normalised_error(rounded[name][key], result[key])) > MAX_BF16_ERROR
            ):
                return f"{name}: the bf16 reference is {error:.4f} off at {key}"
    return None


def write(directory, model_directory, media):
    """Golden files of all requests and requests.json; returns why the seed is unfit, or None."""
    proc = preprocess.processor(model_directory)
    results = replay_all(
        checkpoint.load(model_directory).thinker, proc, media, torch.float32, STEPS
    )
    bf16 = checkpoint.load(model_directory, torch.bfloat16).thinker
    rounded = replay_all(bf16, proc, media, torch.bfloat16, 0)
    reason = unfit(results, rounded)
    if reason:
        return reason
    entries = []
    for name, (messages, use_audio_in_video) in requests.REQUESTS.items():
        reference = results[name]
        save_file(pack(name, reference), directory / f"{name}.safetensors")
        entries.append(
            {
                "name": name,
                "file": f"{name}.safetensors",
                "messages": messages,
                "use_audio_in_video": use_audio_in_video,
                "prompt": preprocess.prompt(proc, messages),
                "prompt_tokens": len(reference["input_ids"]),
                "greedy_text": proc.tokenizer.decode(
                    reference["greedy_tokens"], skip_special_tokens=True
                ),
                "least_gap": round(float(reference["greedy_gap"].min()), 5),
                "bf16_error": {
                    k: round(normalised_error(rounded[name][k], reference[k]), 6)
                    for k in BOUNDARIES
                    if k in reference
                },
            }
        )
        print(
            name,
            entries[-1]["prompt_tokens"],
            entries[-1]["least_gap"],
            entries[-1]["bf16_error"],
            flush=True,
        )
    text = json.dumps(
        {"version": 1, "media": "media", "requests": entries}, indent=1, ensure_ascii=False
    )
    (directory / "requests.json").write_text(text + "\n", encoding="utf-8")
    return None

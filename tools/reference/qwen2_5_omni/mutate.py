"""Planted bugs: what each does to the tensors, and that the bars would catch it by a wide margin."""

import copy
import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.activations import ACT2FN
from transformers.audio_utils import mel_filter_bank
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling

from . import checkpoint, config, preprocess, requests, sizes, speech, thinker

BAR = 1e-4  # of every component boundary in f32
PREPROCESSING_BAR = 1e-3
MARGIN = 10


@dataclass
class Mutation:
    name: str
    what: str
    item: str  # request, utterance or sound
    boundary: str
    config: dict = field(default_factory=dict)  # dotted path in config.json: the wrong value
    zero: str = ""  # a tensor of the checkpoint that is left out of the sum
    plant: object = None  # changes the model or its code while it runs


@contextmanager
def swapped_axes(_model):
    """Height and width angles change places in the image encoder."""
    original = modeling.Qwen2_5OmniVisionEncoder.rot_pos_emb

    def swapped(self, grid_thw):
        angles = original(self, grid_thw)
        half = angles.shape[1] // 2
        return torch.cat([angles[:, half:], angles[:, :half]], dim=1)

    with patch.object(modeling.Qwen2_5OmniVisionEncoder, "rot_pos_emb", swapped):
        yield


@contextmanager
def quick_gelu(model):
    model.thinker.visual.merger.mlp[1] = ACT2FN["quick_gelu"]
    yield


@contextmanager
def one_window_too_many_rows(_model):
    """Windows are shifted by one merge group."""
    original = modeling.Qwen2_5OmniVisionEncoder.get_window_index

    def shifted(self, grid_thw):
        index, seqlens = original(self, grid_thw)
        inner = [s + 4 if 0 < i < len(seqlens) - 1 else s for i, s in enumerate(seqlens)]
        return index, [min(s, seqlens[-1]) for s in inner]

    with patch.object(modeling.Qwen2_5OmniVisionEncoder, "get_window_index", shifted):
        yield


@contextmanager
def codec_tokens_swapped(model):
    talker = model.talker
    talker.codec_bos_token, talker.codec_pad_token = talker.codec_pad_token, talker.codec_bos_token
    yield


@contextmanager
def media_kept(model):
    """Media embeddings reach the talker, which should see zeros there."""
    model.config = copy.deepcopy(model.config)
    for name in ("image_token_index", "audio_token_index", "video_token_index"):
        setattr(model.config.thinker_config, name, config.VOCAB_SIZE - 1)
    yield


@contextmanager
def half_rotation(_model):
    """The DiT rotates halves, as language models do, instead of neighbours."""

    def halves(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + modeling.rotate_half(q) * sin, k * cos + modeling.rotate_half(k) * sin

    with patch.object(modeling, "apply_rotary_pos_emb", halves):
        yield


@contextmanager
def zero_padding(model):
    for module in model.token2wav.code2wav_dit_model.input_embed.spk_encoder.modules():
        if isinstance(module, nn.Conv1d):
            module.padding_mode = "zeros"
    yield


@contextmanager
def classical_runge_kutta(_model):
    def step(self, function, start, width, end, value, function_value_start=None):
        k1 = function_value_start
        k2 = function(start + width / 2, value + width * k1 / 2)
        k3 = function(start + width / 2, value + width * k2 / 2)
        k4 = function(end, value + width * k3)
        return (k1 + 2 * (k2 + k3) + k4) * width / 6

    with patch.object(modeling.RungeKutta4ODESolver, "_rk4_step", step):
        yield


def sampling(**wrong):
    @contextmanager
    def plant(_model):
        original = modeling.Qwen2_5OmniToken2WavDiTModel.sample

        def sample(self, *args, **kwargs):
            return original(self, *args, **{**kwargs, **wrong})

        with patch.object(modeling.Qwen2_5OmniToken2WavDiTModel, "sample", sample):
            yield

    return plant


@contextmanager
def no_anti_aliasing(_model):
    with patch.object(modeling.TorchActivation1d, "forward", lambda self, x: self.act(x)):
        yield


@contextmanager
def beta_for_alpha(model):
    """The periodic activation takes its frequency from beta and its magnitude from alpha."""
    for module in model.token2wav.code2wav_bigvgan_model.modules():
        if isinstance(module, modeling.SnakeBeta):
            module.alpha, module.beta = module.beta, module.alpha
    yield


T, V, A, K = (
    "thinker_config.text_config",
    "thinker_config.vision_config",
    "thinker_config.audio_config",
    "talker_config",
)
D, B = "token2wav_config.dit_config", "token2wav_config.bigvgan_config"
MUTATIONS = [
    Mutation("rope_sections_swapped", "height and width sections change places", "req02", "thinker.hidden",
             config={f"{T}.rope_scaling.mrope_section": [2, 3, 4]}),
    Mutation("rope_theta_published", "rope_theta is not read", "req01", "thinker.hidden", config={f"{T}.rope_theta": 1e6}),
    Mutation("text_bias_skipped", "no key bias in layer 1", "req00", "thinker.hidden",
             zero="thinker.model.layers.1.self_attn.k_proj.bias"),
    Mutation("video_time_scale", "position_id_per_seconds is not read", "req07", "thinker.hidden",
             config={"thinker_config.position_id_per_seconds": 25}),
    Mutation("interleave_chunk", "seconds_per_chunk is not read", "req08", "thinker.hidden",
             config={"thinker_config.seconds_per_chunk": 2}),
    Mutation("window_size_off_by_one", "windows are one merge group wider", "req02", "vision.out",
             config={f"{V}.window_size": 96}),
    Mutation("window_border_off_by_one", "each window ends one merge group late", "req02", "vision.out",
             plant=one_window_too_many_rows),
    Mutation("full_attention_off_by_one", "the next block attends fully", "req03", "vision.out",
             config={f"{V}.fullatt_block_indexes": [2, 4]}),
    Mutation("vision_bias_skipped", "no query bias in block 2", "req02", "vision.out",
             zero="thinker.visual.blocks.2.attn.q.bias"),
    Mutation("vision_axes_swapped", "height and width angles change places", "req03", "vision.out", plant=swapped_axes),
    Mutation("merger_gelu_quick", "the merger's GELU is x * sigmoid(1.702 x)", "req02", "vision.out", plant=quick_gelu),
    Mutation("audio_chunk_off_by_one", "chunks are two frames longer", "req04", "audio.out", config={f"{A}.n_window": 28}),
    Mutation("audio_bias_skipped", "no value bias in layer 1", "req05", "audio.out",
             zero="thinker.audio_tower.layers.1.self_attn.v_proj.bias"),
    Mutation("talker_rope_sections_swapped", "time and height sections change places", "speech1", "talker.hidden",
             config={f"{K}.rope_scaling.mrope_section": [4, 3, 7]}),
    Mutation("talker_bias_skipped", "no bias in the projection", "speech0", "talker.hidden",
             zero="talker.thinker_to_talker_proj.bias"),
    Mutation("codec_tokens_swapped", "codec pad and start change places", "speech0", "talker.hidden",
             plant=codec_tokens_swapped),
    Mutation("media_kept", "media embeddings are not zeroed", "speech1", "talker.hidden", plant=media_kept),
    Mutation("dit_block_off_by_one", "blocks are a frame longer", "speech0", "mel", config={f"{D}.block_size": 15}),
    Mutation("dit_no_look_ahead", "no layer looks ahead", "speech0", "mel", config={f"{D}.look_ahead_layers": []}),
    Mutation("dit_look_back_off_by_one", "the wrong layer looks back", "speech0", "mel",
             config={f"{D}.look_backward_layers": [1, 2]}),
    Mutation("dit_bias_skipped", "no output bias of attention in block 1", "speech0", "mel",
             zero="token2wav.code2wav_dit_model.transformer_blocks.1.attn.to_out.0.bias"),
    Mutation("dit_half_rotation", "rotation of halves instead of neighbours", "speech1", "mel", plant=half_rotation),
    Mutation("speaker_zero_padding", "the speaker encoder pads with zeros", "speech1", "mel", plant=zero_padding),
    Mutation("ode_classical", "the classical Runge-Kutta step instead of the 3/8 rule", "speech0", "mel",
             plant=classical_runge_kutta),
    Mutation("ode_no_sway", "times are evenly spaced", "speech0", "mel", plant=sampling(sway_coefficient=None)),
    Mutation("ode_guidance", "guidance 0.45 instead of 0.5", "speech0", "mel", plant=sampling(guidance_scale=0.45)),
    Mutation("vocoder_bias_skipped", "no bias of the second upsampling", "speech0", "waveform",
             zero="token2wav.code2wav_bigvgan_model.ups.1.0.bias"),
    Mutation("vocoder_dilations_swapped", "the last two rows of dilations change places", "speech0", "waveform",
             config={f"{B}.resblock_dilation_sizes": [[1, 3, 5], [1, 3, 7], [1, 2, 4]]}),
    Mutation("vocoder_no_anti_aliasing", "activations run at the signal's own rate", "speech0", "waveform",
             plant=no_anti_aliasing),
    Mutation("vocoder_beta_for_alpha", "alpha and beta change places", "speech0", "waveform", plant=beta_for_alpha),
]  # fmt: skip


def load(model_directory, mutation):
    fields = json.loads((model_directory / "config.json").read_text())
    for path, value in mutation.config.items():
        *parents, last = path.split(".")
        section = fields
        for parent in parents:
            section = section[parent]
        assert section[last] != value, path
        section[last] = value
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        model_directory,
        config=Qwen2_5OmniConfig(**fields),
        dtype=torch.float32,
        attn_implementation="sdpa",
    ).eval()
    if mutation.zero:
        dict(model.named_parameters())[mutation.zero].data.zero_()
    return model


def tensors(model, proc, media, item, noise, codes):
    """The boundaries that a mutation may name, of one request or utterance."""
    if item.startswith("req"):
        return thinker.run(model.thinker, proc, media, *requests.REQUESTS[item], steps=0)
    request, speaker, tokens, limit = speech.UTTERANCES[item]
    batch = preprocess.inputs(proc, media, *requests.REQUESTS[request])[0]
    out = speech.talk(model, batch, request, speaker, tokens, limit, 1.0)
    if codes is None:
        codes = out["codes"]
        noise = torch.randn(
            [2 * len(codes), config.DIT["mel_dim"]], generator=torch.Generator().manual_seed(5)
        )
    voice = model.speaker_map[speaker]
    out["given"] = (noise, codes)
    out.update(
        speech.synthesise(
            model.token2wav, torch.from_numpy(codes.astype(np.int64)), voice, noise, torch.float32
        )
    )
    return out


def network_errors(model_directory, media):
    proc, plain, out = preprocess.processor(model_directory), {}, []
    for mutation in MUTATIONS:
        if mutation.item not in plain:
            plain[mutation.item] = tensors(
                checkpoint.load(model_directory), proc, media, mutation.item, None, None
            )
        reference = plain[mutation.item]
        model = load(model_directory, mutation)
        with mutation.plant(model) if mutation.plant else nullcontext():
            wrong = tensors(
                model, proc, media, mutation.item, *reference.get("given", (None, None))
            )
        error = thinker.normalised_error(wrong[mutation.boundary], reference[mutation.boundary])
        entry = {
            "name": mutation.name,
            "what": mutation.what,
            "item": mutation.item,
            "boundary": mutation.boundary,
        }
        if mutation.config:
            entry["config"] = mutation.config
        if mutation.zero:
            entry["zero"] = mutation.zero
        out.append({**entry, "bar": BAR, "error": float(f"{error:.3g}")})
        print(mutation.name, out[-1]["error"], flush=True)
    return out


def symmetric_window(extractor):
    original = torch.hann_window
    return patch.object(
        torch, "hann_window", lambda n, **kwargs: original(n, periodic=False, **kwargs)
    )


def htk_scale(extractor):
    extractor.mel_filters = mel_filter_bank(
        num_frequency_bins=201, num_mel_filters=128, min_frequency=0.0, max_frequency=8000.0,
        sampling_rate=16000, norm="slaney", mel_scale="htk",
    )  # fmt: skip
    return nullcontext()


def no_floor(extractor):
    """Values more than 8 below the loudest are not raised to it."""
    return patch.object(torch, "maximum", lambda values, floor: values)


SOUND = "mel128.gated"


def sound_errors(media):
    out = []
    samples = sizes.gated(preprocess.sound(media / "bell.flac"))

    def features(plant=None):
        extractor = WhisperFeatureExtractor(
            **{**config.PREPROCESSOR, "feature_size": 128, "chunk_length": 300}
        )
        with plant(extractor) if plant else nullcontext():
            batch = extractor(
                samples, sampling_rate=16000, padding="max_length", return_tensors="np"
            )
        return batch["input_features"][0][:, : len(samples) // 160]

    reference = features()
    for name, what, plant in (
        ("mel_window_symmetric", "the Hann window is symmetric", symmetric_window),
        ("mel_scale_htk", "the mel scale is HTK's", htk_scale),
        ("mel_no_floor", "quiet values are not raised to 8 below the loudest", no_floor),
    ):
        error = thinker.normalised_error(features(plant), reference)
        out.append({"name": name, "what": what, "item": SOUND, "boundary": "audio.features",
                    "bar": PREPROCESSING_BAR, "error": float(f"{error:.3g}")})  # fmt: skip
        print(name, out[-1]["error"], flush=True)
    return out


def write(directory, model_directory, media):
    entries = network_errors(model_directory, media) + sound_errors(media)
    for entry in entries:
        assert entry["error"] > MARGIN * entry["bar"], (
            f"{entry['name']}: {entry['error']} would pass"
        )
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    (directory / "mutations.json").write_text(
        f'{{"version": 1, "mutations": [\n{rows}\n]}}\n', encoding="utf-8"
    )

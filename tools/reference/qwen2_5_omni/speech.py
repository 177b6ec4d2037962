"""Tensors at every boundary of talker, DiT and vocoder, for a few of the requests spoken aloud."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from . import checkpoint, config, preprocess, requests, thinker

# name: (request, speaker, thinker tokens, most codec tokens)
UTTERANCES = {
    "speech0": ("req00", "Chelsie", 21, 49),
    "speech1": ("req06", "Ethan", 17, 24),
    "speech2": ("req08", "Chelsie", 13, 12),
}
STATES = (1, 2, 5)  # ODE steps after which the state is kept, beside the last
MIN_GAP = 2e-3
PENALTY = 1.05


class Recorder:
    """First outputs of modules, and all outputs where asked, through one generate call."""

    def __init__(self):
        self.first, self.all, self.handles = {}, {}, []

    def watch(self, module, name, every=False, inputs=False):
        def hook(_module, args, kwargs, output):
            value = (args[0] if args else kwargs["inputs_embeds"]) if inputs else output
            if isinstance(value, tuple):
                value = value[0]
            if every:
                self.all.setdefault(name, []).append(value.detach().clone())
            self.first.setdefault(name, value.detach().clone())

        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self):
        for handle in self.handles:
            handle.remove()


def watch_talker(recorder, talker):
    recorder.watch(talker.thinker_to_talker_proj, "talker.embeds", inputs=True)
    recorder.watch(talker.thinker_to_talker_proj, "talker.projected")
    recorder.watch(talker.model.layers[0], "talker.layer0")
    recorder.watch(talker.model.norm, "talker.hidden")
    recorder.watch(talker.codec_head, "talker.logits", every=True)

    def reply(_module, args, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            recorder.first.setdefault("talker.reply", kwargs["thinker_reply_part"].detach().clone())

    def positions(_module, args, kwargs):
        recorder.first.setdefault("talker.position_ids", kwargs["position_ids"].detach().clone())

    recorder.handles.append(talker.register_forward_pre_hook(reply, with_kwargs=True))
    recorder.handles.append(talker.model.register_forward_pre_hook(positions, with_kwargs=True))


def watch_token2wav(recorder, token2wav):
    dit, vocoder = token2wav.code2wav_dit_model, token2wav.code2wav_bigvgan_model
    recorder.watch(dit.input_embed.spk_encoder, "dit.speaker")
    recorder.watch(dit.input_embed, "dit.input")
    recorder.watch(dit.time_embed, "dit.time")
    for i in (0, 1):
        recorder.watch(dit.transformer_blocks[i], f"dit.block{i}")
    recorder.watch(dit, "dit.out", every=True)
    recorder.watch(vocoder.conv_pre, "vocoder.pre")
    recorder.watch(vocoder.ups[0][0], "vocoder.up0")
    recorder.watch(vocoder.ups[1][0], "vocoder.up1", inputs=True)


def synthesise(token2wav, codes, voice, noise, dtype):
    """token2wav by itself with given noise: every boundary, and the states of the ODE."""
    recorder = Recorder()
    token2wav = token2wav.to(dtype)
    watch_token2wav(recorder, token2wav)
    dit = token2wav.code2wav_dit_model
    times = torch.linspace(0, 1, 10, dtype=dtype)
    times = times - (torch.cos(torch.pi / 2 * times) - 1 + times)
    calls = []

    def keep(_module, args, kwargs):
        calls.append(kwargs["hidden_states"].detach().clone())

    recorder.handles.append(dit.register_forward_pre_hook(keep, with_kwargs=True))
    original = torch.randn
    torch.randn = lambda *args, **kwargs: torch.cat(
        [noise.to(dtype)[None], torch.zeros(1, 30000 - len(noise), noise.shape[1], dtype=dtype)], 1
    )
    try:
        mel = dit.sample(voice["cond"].to(dtype), voice["ref_mel"].to(dtype), codes[None])
        wave = token2wav.code2wav_bigvgan_model(mel)
    finally:
        torch.randn = original
        recorder.remove()
    out = {k: v for k, v in recorder.first.items()}
    out["dit.times"] = times
    for step in STATES:
        out[f"dit.state{step}"] = calls[4 * step][0]
    out["mel"], out["waveform"] = mel[0].T, wave
    return {k: squeeze(v).double().numpy() for k, v in out.items()}


def squeeze(tensor):
    return tensor[0] if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor


def talk(model, batch, request, speaker, tokens, codes, penalty):
    """The reference's own generate, greedy everywhere. Returns the talker's tensors and its codec tokens."""
    recorder = Recorder()
    watch_talker(recorder, model.talker)
    result = {}
    token2wav = model.token2wav.forward

    def catch(code, **kwargs):
        result["codes"] = code
        return torch.zeros(1)

    model.token2wav.forward = catch
    try:
        inputs = thinker.float_inputs(batch, model.dtype, requests.REQUESTS[request][1])
        sequences, _ = model.generate(
            **inputs,
            speaker=speaker,
            return_audio=True,
            thinker_max_new_tokens=tokens,
            thinker_do_sample=False,
            thinker_eos_token_id=config.VOCAB_SIZE - 1,
            talker_do_sample=False,
            talker_max_new_tokens=codes,
            talker_eos_token_id=[config.CODEC_PAD, config.CODEC_END],
            talker_repetition_penalty=penalty,
        )
    finally:
        model.token2wav.forward = token2wav
        recorder.remove()
    out = {k: squeeze(v) for k, v in recorder.first.items()}
    out["talker.position_ids"] = recorder.first["talker.position_ids"][:, 0]
    steps = [logits[0, -1].float().clone() for logits in recorder.all["talker.logits"]]
    out["talker.logits_prefill"] = out.pop("talker.logits")
    out["talker.logits_last"] = steps[-1][None].clone()
    for logits in steps:
        logits[config.CODEC_START] = -torch.inf
    # The last code is dropped by the reference, be it the end token or the one that reached the limit.
    out["talker.codes"] = torch.stack([logits.argmax() for logits in steps])
    gaps = torch.stack([torch.topk(logits, 2).values for logits in steps])
    out["talker.gap"] = gaps[:, 0] - gaps[:, 1]
    out["thinker.tokens"] = sequences[0, batch["input_ids"].shape[1] :]
    out["codes"] = result["codes"][0]
    assert penalty != 1.0 or torch.equal(out["talker.codes"][:-1], out["codes"])
    return {k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in out.items()}


def rounded_errors(talker, result):
    """How far the talker in bf16 is from itself in float32, given the same input embeddings and positions."""
    embeds = torch.from_numpy(result["talker.embeds"])[None].bfloat16()
    positions = torch.from_numpy(result["talker.position_ids"])[:, None]
    hidden = talker.model(
        inputs_embeds=talker.thinker_to_talker_proj(embeds), position_ids=positions
    ).last_hidden_state
    found = {"talker.hidden": hidden[0], "talker.logits_prefill": talker.codec_head(hidden)[0]}
    return {
        k: round(thinker.normalised_error(v.float().numpy(), result[k]), 6)
        for k, v in found.items()
    }


def unfit(results):
    ended = [
        int(r["talker.codes"][-1]) in (config.CODEC_PAD, config.CODEC_END) for r in results.values()
    ]
    for name, result in results.items():
        if result["talker.gap"].min() < MIN_GAP:
            return f"{name}: the best two codec logits come within {result['talker.gap'].min():.5f}"
        if len(set(result["codes"].tolist())) < len(result["codes"]) // 3:
            return f"{name}: monotonous codes"
    if (
        not ended[0]
        or min(len(r["codes"]) for r in results.values()) < 8
        or len(results["speech0"]["codes"]) < 20
    ):
        return "the first utterance does not end by itself after 20 codes or more, or another ends too early"
    return None


KEPT = (
    "talker.embeds", "talker.reply", "talker.position_ids", "talker.layer0", "talker.hidden", "talker.logits_prefill",
    "talker.logits_last", "talker.codes", "talker.gap", "thinker.tokens", "codes", "codes_penalty",
    "dit.noise", "dit.times", "dit.time", "dit.speaker", "dit.input", "dit.block0", "dit.block1", "dit.out",
    "dit.state1", "dit.state2", "dit.state5", "mel", "vocoder.pre", "vocoder.up0", "vocoder.up1", "waveform",
)  # fmt: skip


# Inside a component: kept of the first utterance only.
INSIDE = (
    "talker.projected", "talker.layer0", "talker.logits_last", "dit.time", "dit.input", "dit.block0", "dit.block1",
    "dit.state1", "dit.state2", "vocoder.pre", "vocoder.up0", "vocoder.up1",
)  # fmt: skip
CUT_BYTES = 3000


def pack(name, tensors):
    return {
        k: v
        for key in KEPT
        if name == "speech0" or key not in INSIDE
        for k, v in pack_one(key, tensors[key])
    }


def pack_one(name, value):
    value = value.astype(np.int32 if value.dtype.kind in "iu" else np.float32)
    if value.ndim == 3:  # guided and null halves of one call stay apart
        for half, part in zip(("guided", "null"), value, strict=True):
            yield from thinker.cut(f"{name}.{half}", part, CUT_BYTES).items()
    elif name in ("dit.noise", "talker.reply", "talker.position_ids", "mel") or value.ndim == 1:
        yield name, np.ascontiguousarray(value)
    else:
        yield from thinker.cut(name, value, CUT_BYTES).items()


def write(directory, model_directory, media):
    proc = preprocess.processor(model_directory)
    model = checkpoint.load(model_directory)
    batches = {
        request: preprocess.inputs(proc, media, *requests.REQUESTS[request])[0]
        for request, *_ in UTTERANCES.values()
    }
    results = {
        name: talk(model, batches[request], request, speaker, tokens, codes, 1.0)
        for name, (request, speaker, tokens, codes) in UTTERANCES.items()
    }
    reason = unfit(results)
    if reason:
        return reason
    entries = []
    bf16 = checkpoint.load(model_directory, torch.bfloat16).talker
    for name, (request, speaker, tokens, codes) in UTTERANCES.items():
        result = results[name]
        penalised = talk(model, batches[request], request, speaker, tokens, codes, PENALTY)
        result["codes_penalty"] = penalised["codes"]
        generator = torch.Generator().manual_seed(1000 + int(name[-1]))
        count = 2 * len(result["codes"])
        noise = torch.randn([count, config.DIT["mel_dim"]], generator=generator)
        voice, ids = model.speaker_map[speaker], torch.from_numpy(result["codes"].astype(np.int64))
        single = synthesise(model.token2wav, ids, voice, noise, torch.float32)
        double = synthesise(model.token2wav, ids, voice, noise, torch.float64)
        model.token2wav.float()
        errors = {k: thinker.normalised_error(single[k], double[k]) for k in double}
        result.update(single, **{"dit.noise": noise.numpy()})
        save_file(dict(pack(name, result)), directory / f"{name}.safetensors")
        entries.append(
            {
                "name": name,
                "file": f"{name}.safetensors",
                "request": request,
                "speaker": speaker,
                "thinker_max_tokens": tokens,
                "talker_max_tokens": codes,
                "repetition_penalty": PENALTY,
                "bf16_error": rounded_errors(bf16, result),
                "f32_error": {k: float(f"{errors[k]:.2e}") for k in ("dit.out", "mel", "waveform")},
            }
        )
        wave = np.abs(single["waveform"]).max()
        print(
            entries[-1], f"mel {single['mel'].min():.1f}..{single['mel'].max():.1f} wave {wave:.2f}"
        )
    text = json.dumps({"version": 1, "utterances": entries}, indent=1)
    (directory / "speech.json").write_text(text + "\n", encoding="utf-8")
    return None

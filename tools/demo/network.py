"""The thinker of Qwen2.5-Omni, written compactly for training on CPU in bfloat16.

The mathematics and the weights' names are those of the published model (export.py checks that transformers computes
the same); only the layout of the work differs. Pictures are padded to MAX_PATCHES patches, sounds are cut in chunks of
2 * n_window mel frames, conversations are packed in rows, and every shape is fixed, so that torch.compile can fuse.

Weights are a dict from name to float32 master copy; each function casts what it needs to bfloat16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

import pictures

CONFIG = {
    "hidden": 192, "layers": 5, "heads": 6, "kv_heads": 2, "head": 32, "inner": 448, "theta": 100.0,
    "sections": (4, 6, 6), "eps": 1e-6, "vocabulary": 1152,
    "v_hidden": 128, "v_layers": 4, "v_heads": 4, "v_inner": 320, "v_window": 112, "v_full": (1, 3),
    "a_hidden": 128, "a_layers": 4, "a_heads": 4, "a_inner": 448, "a_window": 100,
}
TOKENS_PER_SECOND = 25
# Height and width, in patches, of every picture that the pixel limits allow.
GRIDS = tuple((2 * h, 2 * w) for h in range(1, 17) for w in range(1, 17) if 6 <= h * w <= 16 and 6 >= max(h, w))
CLIP_GRIDS = ((24, 24), (20, 28), (28, 20), (18, 32), (32, 18))
FAR = -30000.0
# Text layers whose first head learns to look at the thing that is spoken about.
POINTING = (2, 3)


def init(seed: int, config: dict = CONFIG) -> dict[str, torch.Tensor]:
    """Draw the weights; names are those of the checkpoint."""
    c, generator, weights = config, torch.Generator().manual_seed(seed), {}

    def matrix(name, *shape, gain=1.0):
        fan_in = math.prod(shape[1:])
        weights[name + ".weight"] = torch.randn(*shape, generator=generator) * gain / math.sqrt(fan_in)

    def bias(name, size):
        weights[name + ".bias"] = torch.zeros(size)

    def norm(name, size, with_bias=False):
        weights[name + ".weight"] = torch.ones(size)
        if with_bias:
            bias(name, size)

    def linear(name, out, size, gain=1.0, with_bias=True):
        matrix(name, out, size, gain=gain)
        if with_bias:
            bias(name, out)

    h, kv = c["hidden"], c["kv_heads"] * c["head"]
    weights["thinker.model.embed_tokens.weight"] = torch.randn(c["vocabulary"], h, generator=generator) * 0.5
    for k in range(c["layers"]):
        p, deep = f"thinker.model.layers.{k}.", 1 / math.sqrt(2 * c["layers"])
        norm(p + "input_layernorm", h)
        linear(p + "self_attn.q_proj", c["heads"] * c["head"], h)
        linear(p + "self_attn.k_proj", kv, h)
        linear(p + "self_attn.v_proj", kv, h)
        linear(p + "self_attn.o_proj", h, c["heads"] * c["head"], deep, False)
        norm(p + "post_attention_layernorm", h)
        linear(p + "mlp.gate_proj", c["inner"], h, 1.0, False)
        linear(p + "mlp.up_proj", c["inner"], h, 1.0, False)
        linear(p + "mlp.down_proj", h, c["inner"], deep, False)
    norm("thinker.model.norm", h)
    linear("thinker.lm_head", c["vocabulary"], h, 0.5, False)

    d = c["v_hidden"]
    matrix("thinker.visual.patch_embed.proj", d, 3, 2, pictures.PATCH, pictures.PATCH, gain=1.4)
    for k in range(c["v_layers"]):
        p, deep = f"thinker.visual.blocks.{k}.", 1 / math.sqrt(2 * c["v_layers"])
        norm(p + "norm1", d)
        norm(p + "norm2", d)
        for name in "qkv":
            linear(p + "attn." + name, d, d)
        linear(p + "attn.proj", d, d, deep)
        linear(p + "mlp.gate_proj", c["v_inner"], d)
        linear(p + "mlp.up_proj", c["v_inner"], d)
        linear(p + "mlp.down_proj", d, c["v_inner"], deep)
    norm("thinker.visual.merger.ln_q", d)
    linear("thinker.visual.merger.mlp.0", 4 * d, 4 * d)
    linear("thinker.visual.merger.mlp.2", h, 4 * d, 0.7)

    d = c["a_hidden"]
    matrix("thinker.audio_tower.conv1", d, 128, 3, gain=1.4)
    bias("thinker.audio_tower.conv1", d)
    matrix("thinker.audio_tower.conv2", d, d, 3, gain=1.4)
    bias("thinker.audio_tower.conv2", d)
    weights["thinker.audio_tower.audio_bos_eos_token.weight"] = torch.zeros(2, h)  # published, but never read
    for k in range(c["a_layers"]):
        p, deep = f"thinker.audio_tower.layers.{k}.", 1 / math.sqrt(2 * c["a_layers"])
        norm(p + "self_attn_layer_norm", d, True)
        norm(p + "final_layer_norm", d, True)
        for name in ("q_proj", "v_proj"):
            linear(p + "self_attn." + name, d, d)
        linear(p + "self_attn.k_proj", d, d, 1.0, False)
        linear(p + "self_attn.out_proj", d, d, deep)
        linear(p + "fc1", c["a_inner"], d)
        linear(p + "fc2", d, c["a_inner"], deep)
    norm("thinker.audio_tower.ln_post", d, True)
    linear("thinker.audio_tower.proj", h, d, 0.7)
    return weights


# --- Parts shared by the three networks -------------------------------------------------------------------------------


def _cast(weight):
    return weight.to(torch.bfloat16)


def _linear(w, name, x):
    bias = w.get(name + ".bias")
    return F.linear(x, _cast(w[name + ".weight"]), None if bias is None else _cast(bias))


def _joint(w, names, x):
    """Several linear maps of the same input as one product; a missing bias is zero."""
    weight = torch.cat([w[n + ".weight"] for n in names])
    bias = torch.cat([w[n + ".bias"] if n + ".bias" in w else torch.zeros(w[n + ".weight"].shape[0]) for n in names])
    return F.linear(x, _cast(weight), _cast(bias))


def _rms(w, name, x, eps=1e-6):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps) * w[name + ".weight"]).to(torch.bfloat16)


def _layer_norm(w, name, x):
    y = F.layer_norm(x.float(), x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-5)
    return y.to(torch.bfloat16)


def _turn(x, cos, sin):
    """Rotary positions on [..., heads, head]; cos and sin are [..., 1, head / 2] float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(torch.bfloat16)


def _attend(q, k, v, mask):
    """q [n, l, heads, head], k and v [n, l, kv heads, head], mask additive [n, 1, 1, 1 or l, l] -> [n, l, heads * head].

    Query head i reads key head i // (heads / kv heads).
    """
    n, length, heads, head = q.shape
    groups = k.shape[2]
    share = heads // groups
    q = q.reshape(n, length, groups, share, head).permute(0, 2, 3, 1, 4).reshape(n * groups, share * length, head)
    k = k.permute(0, 2, 3, 1).reshape(n * groups, head, length)
    v = v.permute(0, 2, 1, 3).reshape(n * groups, length, head)
    score = torch.bmm(q, k).view(n, groups, share, length, length).float() * head ** -0.5 + mask
    score = torch.softmax(score, -1).to(torch.bfloat16).view(n * groups, share * length, length)
    mixed = torch.bmm(score, v).view(n, groups, share, length, head)
    return mixed.permute(0, 3, 1, 2, 4).reshape(n, length, heads * head)


# --- Vision encoder ---------------------------------------------------------------------------------------------------


def vision_tables(grids=GRIDS, most: int = pictures.MAX_PATCHES, config: dict = CONFIG) -> dict[str, torch.Tensor]:
    """What depends on a picture's grid only, one row for every grid, padded to most patches."""
    head = config["v_hidden"] // config["v_heads"]
    frequency = 1.0 / (10000.0 ** (torch.arange(0, head // 2, 2).float() / (head // 2)))
    angles, full, near = [], [], []
    for rows, columns in grids:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        order = lambda g: g.reshape(rows // 2, 2, columns // 2, 2).permute(0, 2, 1, 3).reshape(-1)
        y, x = order(y), order(x)
        side = config["v_window"] // pictures.PATCH
        window = (y // side) * 100 + x // side
        pad = most - rows * columns
        angles.append(F.pad(torch.cat((y[:, None] * frequency, x[:, None] * frequency), 1), (0, 0, 0, pad)))
        seen = torch.arange(most) < rows * columns
        window = F.pad(window, (0, pad), value=-1)
        full.append(seen[None, :].expand(most, -1))
        near.append((window[:, None] == window[None, :]) & seen[None, :])
    mask = lambda m: torch.where(torch.stack(m), 0.0, FAR).to(torch.bfloat16)
    angles = torch.stack(angles)
    return {"cos": angles.cos(), "sin": angles.sin(), "full": mask(full), "near": mask(near)}


def cell_table(grids=GRIDS, most: int = pictures.MAX_PATCHES) -> torch.Tensor:
    """Which ninth of the picture each merged token's centre lies in [grids, most / 4]; -100 where there is no token."""
    table = torch.full((len(grids), most // 4), -100)
    for k, (rows, columns) in enumerate(grids):
        y, x = ((torch.arange(side // 2) * 6 + 3) // side for side in (rows, columns))
        table[k, :rows * columns // 4] = (y[:, None] * 3 + x).flatten()
    return table


def vision(w, tables, pixels, still: int, grid, light, config: dict = CONFIG):
    """Encode pictures: (patch features [n, most, v_hidden], merged tokens [n, most / 4, hidden]).

    pixels uint8 [still + 2 * moving, most, 588]: stills, then the first, then the second frames of clips' frame pairs;
    grid [n] is the row of tables, n = still + moving; light float32 [n, 2]: gain and offset on raw values (augmentation).
    """
    c, p = config, "thinker.visual."
    moving = (pixels.shape[0] - still) // 2
    mean = torch.tensor(pictures.MEAN).repeat_interleave(pictures.PATCH ** 2)
    scale = 1.0 / torch.tensor(pictures.STD).repeat_interleave(pictures.PATCH ** 2)
    lights = torch.cat((light, light[still:]))[:, None, :]
    x = pixels.float() * (lights[..., :1] / 255.0) + lights[..., 1:]
    x = ((x - mean) * scale).to(torch.bfloat16)
    cut = w[p + "patch_embed.proj.weight"]
    first, second = (cut[:, :, t].reshape(c["v_hidden"], -1) for t in range(2))
    parts = [F.linear(x[:still], _cast(first + second))] if still else []
    if moving:
        parts.append(F.linear(x[still:still + moving], _cast(first)) + F.linear(x[still + moving:], _cast(second)))
    x = torch.cat(parts)
    n, length, d = x.shape
    cos, sin = tables["cos"][grid][:, :, None], tables["sin"][grid][:, :, None]
    full, near = (tables[name][grid][:, None, None].float() for name in ("full", "near"))
    for k in range(c["v_layers"]):
        b = f"{p}blocks.{k}."
        qkv = _joint(w, [b + "attn." + s for s in "qkv"], _rms(w, b + "norm1", x))
        q, key, v = qkv.view(n, length, 3, c["v_heads"], -1).unbind(2)
        mixed = _attend(_turn(q, cos, sin), _turn(key, cos, sin), v, full if k in c["v_full"] else near)
        x = x + _linear(w, b + "attn.proj", mixed)
        gate, up = _joint(w, [b + "mlp.gate_proj", b + "mlp.up_proj"], _rms(w, b + "norm2", x)).chunk(2, -1)
        x = x + _linear(w, b + "mlp.down_proj", F.silu(gate) * up)
    merged = _rms(w, p + "merger.ln_q", x).view(n, length // 4, 4 * d)
    merged = _linear(w, p + "merger.mlp.2", F.gelu(_linear(w, p + "merger.mlp.0", merged)))
    return x, merged


# --- Audio encoder ----------------------------------------------------------------------------------------------------


def audio(w, mel, frames, config: dict = CONFIG):
    """Encode chunks of sound: mel float16 [n, 200, 128], frames [n] valid ones -> [n, 50, hidden]."""
    c, p = config, "thinker.audio_tower."
    n, length, _ = mel.shape
    d, heads = c["a_hidden"], c["a_heads"]
    valid = (torch.arange(length) < frames[:, None])[..., None]
    x = F.pad(mel.to(torch.bfloat16) * valid, (0, 0, 1, 1))
    x = torch.cat((x[:, :-2], x[:, 1:-1], x[:, 2:]), -1)
    kernel = w[p + "conv1.weight"].permute(0, 2, 1).reshape(d, -1)
    x = F.gelu(F.linear(x, _cast(kernel), _cast(w[p + "conv1.bias"]))) * valid
    x = F.pad(x, (0, 0, 1, 1))
    x = torch.cat((x[:, 0:length:2], x[:, 1:length + 1:2], x[:, 2:length + 2:2]), -1)
    kernel = w[p + "conv2.weight"].permute(0, 2, 1).reshape(d, -1)
    x = F.gelu(F.linear(x, _cast(kernel), _cast(w[p + "conv2.bias"])))
    step = math.log(10000.0) / (d // 2 - 1)
    angle = torch.arange(length // 2).float()[:, None] * torch.exp(-step * torch.arange(d // 2).float())
    x = x + torch.cat((angle.sin(), angle.cos()), 1).to(torch.bfloat16)
    heard = torch.arange(length // 2) < ((frames - 1) // 2 + 1)[:, None]
    mask = torch.where(heard, 0.0, FAR)[:, None, None, None, :]
    for k in range(c["a_layers"]):
        b = f"{p}layers.{k}."
        names = [b + "self_attn." + s for s in ("q_proj", "k_proj", "v_proj")]
        qkv = _joint(w, names, _layer_norm(w, b + "self_attn_layer_norm", x)).view(n, length // 2, 3, heads, -1)
        x = x + _linear(w, b + "self_attn.out_proj", _attend(*qkv.unbind(2), mask))
        inner = F.gelu(_linear(w, b + "fc1", _layer_norm(w, b + "final_layer_norm", x)))
        x = x + _linear(w, b + "fc2", inner)
    x = x.view(n, length // 4, 2, d).float().mean(2)
    return _linear(w, p + "proj", _layer_norm(w, p + "ln_post", x))


def audio_tokens(frames: int) -> int:
    """How many tokens a sound of so many mel frames becomes."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


# --- Text network -----------------------------------------------------------------------------------------------------


def text_tables(position, segment, config: dict = CONFIG):
    """Cosines and sines [rows, length, 1, head / 2] and the additive mask [rows, 1, 1, length, length].

    position [rows, length, 3]: time, height, width; segment [rows, length]: the conversation a token belongs to.
    """
    c = config
    section = torch.repeat_interleave(torch.arange(3), torch.tensor(c["sections"]))
    frequency = c["theta"] ** (-torch.arange(c["head"] // 2).float() / (c["head"] // 2))
    angle = (position[:, :, section].float() * frequency)[:, :, None]
    places = torch.arange(position.shape[1])
    seen = (segment[:, :, None] == segment[:, None, :]) & (places[:, None] >= places)
    return angle.cos(), angle.sin(), torch.where(seen, 0.0, FAR).to(torch.bfloat16)[:, None, None]


def text(w, source, index, cos, sin, mask, wanted, config: dict = CONFIG):
    """Logits of the next token at wanted places [s], flat: float32 [s, vocabulary]. The rest as hidden() takes it.

    Also how the first head of every POINTING layer looks from there at its row: float32 [layers, s, length].
    """
    x, looks = _text_layers(w, source, index, cos, sin, mask, config)
    x = _rms(w, "thinker.model.norm", x.reshape(index.numel(), -1)[wanted])
    looks = torch.stack([look.view(index.numel(), -1)[wanted] for look in looks])
    return _linear(w, "thinker.lm_head", x).float(), looks


def hidden(w, source, index, cos, sin, mask, config: dict = CONFIG):
    """The last hidden states [rows, length, hidden].

    source [m, hidden]: merged pictures and sounds, which follow the vocabulary in index [rows, length];
    cos, sin, mask: text_tables().
    """
    return _rms(w, "thinker.model.norm", _text_layers(w, source, index, cos, sin, mask, config)[0])


def _text_layers(w, source, index, cos, sin, mask, config):
    c, p = config, "thinker.model."
    rows, length = index.shape
    table = torch.cat((_cast(w[p + "embed_tokens.weight"]), source))
    x, looks = F.embedding(index, table), []
    q_size, kv_size = c["heads"] * c["head"], c["kv_heads"] * c["head"]
    for k in range(c["layers"]):
        b = f"{p}layers.{k}."
        names = [b + "self_attn." + s for s in ("q_proj", "k_proj", "v_proj")]
        q, key, v = _joint(w, names, _rms(w, b + "input_layernorm", x)).split((q_size, kv_size, kv_size), -1)
        shape = (rows, length, -1, c["head"])
        q, key = _turn(q.reshape(shape), cos, sin), _turn(key.reshape(shape), cos, sin)
        mixed = _attend(q, key, v.reshape(shape), mask)
        if k in POINTING:
            looks.append(torch.bmm(q[:, :, 0], key[:, :, 0].transpose(1, 2)).float() * c["head"] ** -0.5 + mask[:, 0, 0])
        x = x + _linear(w, b + "self_attn.o_proj", mixed)
        inner = _rms(w, b + "post_attention_layernorm", x)
        gate, up = F.linear(inner, _cast(torch.cat((w[b + "mlp.gate_proj.weight"],
                                                    w[b + "mlp.up_proj.weight"])))).chunk(2, -1)
        x = x + _linear(w, b + "mlp.down_proj", F.silu(gate) * up)
    return x, looks

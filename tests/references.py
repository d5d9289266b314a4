"""Slow, obvious versions of what the package computes fast: plain loops, NumPy in float64, Python integers.

Written from the paper and the references' described behaviour, never from the package's code.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def patchify(clip: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """(B, C, T, H, W) to (B, N, P): tokens by time, row, column; values by frame, row, column, channel."""
    B, C, T, H, W = clip.shape
    pt, ph, pw = patch
    tokens = list(product(range(T // pt), range(H // ph), range(W // pw)))
    out = np.empty((B, len(tokens), pt * ph * pw * C), clip.dtype)
    for n, (t, h, w) in enumerate(tokens):
        for p, (i, y, x, c) in enumerate(product(range(pt), range(ph), range(pw), range(C))):
            out[:, n, p] = clip[:, c, t * pt + i, h * ph + y, w * pw + x]
    return out


def unpatchify(patches: np.ndarray, shape: tuple[int, ...], patch: tuple[int, int, int]) -> np.ndarray:
    """(B, N, P) to clips of `shape` (B, C, T, H, W)."""
    _, C, T, H, W = shape
    pt, ph, pw = patch
    clip = np.empty(shape, patches.dtype)
    for c, t, y, x in product(range(C), range(T), range(H), range(W)):
        token = (t // pt * (H // ph) + y // ph) * (W // pw) + x // pw
        value = ((t % pt * ph + y % ph) * pw + x % pw) * C + c
        clip[:, c, t, y, x] = patches[:, token, value]
    return clip


def sincos_half(position: int, width: int) -> list[float]:
    """Sines, then cosines, of position * 10000^(-i / (width/2)), for an even width."""
    angles = [position * 10000.0 ** (-i / (width // 2)) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def sincos_separable(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """(N, D) for D a multiple of 8: a quarter of the columns for time, half of the rest each for row and column."""
    assert width % 8 == 0
    time, row = width // 4, 2 * ((width - width // 4) // 4)
    column = width - time - row
    return np.array(
        [
            sincos_half(t, time) + sincos_half(h, row) + sincos_half(w, column)
            for t, h, w in product(*(range(n) for n in grid))
        ]
    )


def sincos_interleaved(tokens: int, width: int) -> np.ndarray:
    """(N, D): column 2i is sin(n / 10000^(2i/D)), column 2i + 1 its cosine (VideoMAE)."""
    table = np.empty((tokens, width))
    for n, j in product(range(tokens), range(width)):
        angle = n / 10000.0 ** (2 * (j // 2) / width)
        table[n, j] = math.sin(angle) if j % 2 == 0 else math.cos(angle)
    return table


def splitmix64(seed: int, count: int) -> list[int]:
    """The first `count` numbers of the SplitMix64 generator (Steele, Lea and Flood 2014), in Python integers."""
    word, state, numbers = 1 << 64, seed % (1 << 64), []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % word
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % word
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % word
        numbers.append(z ^ (z >> 31))
    return numbers


def visible_count(tokens: int, mask_ratio: float) -> int:
    """floor(N (1 - ratio)) in exact arithmetic on the ratio as it is written, at least 1, at most N - 1."""
    exact = math.floor(tokens * (1 - Fraction(str(mask_ratio))))
    return min(max(exact, 1), tokens - 1)


def agnostic(noise: np.ndarray, count: int) -> np.ndarray:
    """`hidden` (B, N): all but the `count` tokens of smallest noise; the earlier token first where it is equal."""
    hidden = np.ones(noise.shape, bool)
    for b, row in enumerate(noise.tolist()):
        for n in sorted(range(len(row)), key=lambda n: (row[n], n))[:count]:
            hidden[b, n] = False
    return hidden


def space(key: int, grid: tuple[int, int, int], count: int) -> np.ndarray:
    """(t, h, w): the same `count` cells visible in every time step."""
    t, h, w = grid
    frame = agnostic(np.array([signed(splitmix64(key, h * w))]), count).reshape(h, w)
    return np.stack([frame] * t)


def time(key: int, grid: tuple[int, int, int], count: int) -> np.ndarray:
    """(t, h, w): `count` time steps visible."""
    steps = agnostic(np.array([signed(splitmix64(key, grid[0]))]), count)[0]
    hidden = np.empty(grid, bool)
    for t in range(grid[0]):
        hidden[t] = steps[t]
    return hidden


def boxes(key: int, grid: tuple[int, int, int], count: int, number: int = 128) -> np.ndarray:
    """(t, h, w): box after box is hidden, each from its last token on, until `count` tokens are left."""
    N = math.prod(grid)
    numbers = splitmix64(key, 6 * number + N)
    hidden, left = np.zeros(grid, bool), N - count

    def hide(places) -> None:
        nonlocal left
        for place in places:
            if left and not hidden[place]:
                hidden[place] = True
                left -= 1

    for k in range(number):
        ranges = []
        for axis, size in enumerate(grid):
            least, most = max(1, size // 4), max(1, size // 2)
            side = least + (numbers[axis * number + k] >> 32) * (most - least + 1) // 2**32
            first = (numbers[(3 + axis) * number + k] >> 32) * (size + side - 1) // 2**32 - side + 1
            ranges.append(range(max(first, 0), min(first + side, size)))
        hide(reversed(list(product(*ranges))))
    rest = signed(numbers[6 * number :])
    # What no box covers: the smallest number stays visible longest.
    hide(np.unravel_index(n, grid) for n in sorted(range(N), key=lambda n: -rest[n]))
    return hidden


def motion(key: int, grid: tuple[int, int, int], count: int, patches: np.ndarray) -> np.ndarray:
    """(N,): hidden but for the `count` tokens of smallest place by change plus place in a random order."""
    t, N = grid[0], math.prod(grid)
    cells = N // t
    noise = signed(splitmix64(key, N))
    change = []
    for n in range(N):
        other = n + cells if n // cells < t - 1 else n - cells
        change.append(
            sum(abs(int(a) - int(b)) for a, b in zip(patches[n], patches[other], strict=True)) if t > 1 else 0
        )
    shuffled = sorted(range(N), key=lambda n: noise[n])
    ordered = sorted(shuffled, key=lambda n: change[n])
    place = np.array([shuffled.index(n) + ordered.index(n) for n in range(N)])
    return agnostic(place[None], count)[0]


def signed(numbers: list[int]) -> list[int]:
    return [n - (1 << 64) if n >> 63 else n for n in numbers]


def running_cell(key: int, hidden_ids: list[int], grid: tuple[int, int, int], count: int) -> list[int]:
    """The `count` hidden tokens whose turn it is, or nearly is."""
    _, h, w = grid
    noise = splitmix64(key ^ 0x6465636F6465, math.prod(grid))
    begin = splitmix64(key, 1)[0]
    around = {(0, 0): 0, (0, 1): 1, (1, 1): 2, (1, 0): 3}

    def turn(n: int) -> tuple[int, int]:
        time, row, column = n // (h * w), n // w % h, n % w
        return (around[row % 2, column % 2] - time - begin) % 4, noise[n] >> 3

    return sorted(sorted(hidden_ids, key=turn)[:count])


def hog(frames: np.ndarray, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients of one channel (H, W): (H / cell, W / cell, bins)."""
    H, W = frames.shape
    padded = np.pad(frames, 1, mode="reflect")
    out = np.zeros((H // cell, W // cell, bins))
    for y, x in product(range(H), range(W)):
        near = padded[y : y + 3, x : x + 3]
        across = near[0, 0] + 2 * near[1, 0] + near[2, 0] - near[0, 2] - 2 * near[1, 2] - near[2, 2]
        down = near[0, 0] + 2 * near[0, 1] + near[0, 2] - near[2, 0] - 2 * near[2, 1] - near[2, 2]
        out[y // cell, x // cell, math.floor(math.atan2(across, down) / math.pi * bins) % bins] += math.hypot(
            across, down
        )
    norms = np.sqrt((out**2).sum(axis=-1, keepdims=True))
    return out / np.maximum(norms, 1e-12)


def target_frames(kind: str, frames: int, pt: int) -> list[int]:
    """Frames predicted, in order."""
    count = frames // pt
    if kind == "all":
        return list(range(frames))
    if kind == "strided":
        return [pt * k for k in range(count)]
    return [math.floor(Fraction(k * (frames - 1), count - 1)) if count > 1 else 0 for k in range(count)]


def standardise(values: np.ndarray) -> np.ndarray:
    """Each last-dimension row to (x - mean) / sqrt(unbiased variance + 1e-6)."""
    out = np.empty(values.shape)
    for index in np.ndindex(values.shape[:-1]):
        row = [float(x) for x in values[index]]
        mean = sum(row) / len(row)
        variance = sum((x - mean) ** 2 for x in row) / (len(row) - 1)
        out[index] = [(x - mean) / math.sqrt(variance + 1e-6) for x in row]
    return out


def normalise(clip: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 (B, C, ...) to floats, per channel."""
    shape = (-1,) + (1,) * (clip.ndim - 2)
    return (clip / 255.0 - np.reshape(mean, shape)) / np.reshape(std, shape)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    variance = x.var(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + eps) * weight + bias


def block(x: np.ndarray, p: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """One pre-norm block over (L, D), one head after the other."""
    L, D = x.shape
    d = D // heads
    h = layer_norm(x, p["norm1.weight"], p["norm1.bias"])
    qkv = h @ p["attn.qkv.weight"].T + p.get("attn.qkv.bias", 0.0)
    q, k, v = qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :]
    out = np.empty((L, D))
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(d))
        out[:, part] = scores / scores.sum(axis=1, keepdims=True) @ v[:, part]
    x = x + out @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    h = layer_norm(x, p["norm2.weight"], p["norm2.bias"])
    h = h @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
    h = 0.5 * h * (1 + _ERF(h / math.sqrt(2)))
    return x + h @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]


def cross_block(x: np.ndarray, memory: np.ndarray, p: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """One block whose tokens (L, D) look at `memory` (K, D) and not at each other."""
    D = x.shape[1]
    d = D // heads
    seen = layer_norm(memory, p["norm_memory.weight"], p["norm_memory.bias"])
    q = layer_norm(x, p["norm1.weight"], p["norm1.bias"]) @ p["attn.q.weight"].T + p["attn.q.bias"]
    k = seen @ p["attn.kv.weight"][:D].T + p["attn.kv.bias"][:D]
    v = seen @ p["attn.kv.weight"][D:].T + p["attn.kv.bias"][D:]
    out = np.empty_like(x)
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(d))
        out[:, part] = scores / scores.sum(axis=1, keepdims=True) @ v[:, part]
    x = x + out @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    h = layer_norm(x, p["norm2.weight"], p["norm2.bias"]) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
    return x + 0.5 * h * (1 + _ERF(h / math.sqrt(2))) @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]


def under(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def positions(p: dict[str, np.ndarray]) -> np.ndarray:
    """(N, D) from the tables under `positions.`."""
    if "positions.joint" in p:
        return p["positions.joint"]
    temporal, spatial = p["positions.temporal"], p["positions.spatial"]
    return np.array([time + space for time in temporal for space in spatial])


def stack(x: np.ndarray, p: dict[str, np.ndarray], depth: int, heads: int) -> np.ndarray:
    for i in range(depth):
        x = block(x, under(p, f"blocks.{i}."), heads)
    return layer_norm(x, p["norm.weight"], p["norm.bias"])


def autoencode(
    weights: dict[str, np.ndarray], patches: np.ndarray, hidden: np.ndarray, config, decoded: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A masked autoencoder over the normalised patches (N, P) of one clip, as the references do it.

    The encoder's output is put back in token order with mask tokens in the gaps, the decoder computes every token of
    every block, and only then are the hidden ones picked. Returns `latent` (V, D) and `prediction` (M, P).

    `decoded`: token ids, if not all hidden ones are decoded; the decoder is then given no others.
    """
    enc, dec = under(weights, "encoder."), under(weights, "decoder.")
    first = int(config.encoder.class_token)
    tokens = patches @ enc["patch_embed.proj.weight"].T + enc["patch_embed.proj.bias"] + positions(enc)
    if config.mask_tokens_in_encoder:
        tokens[hidden] = weights["encoder_mask_token"] + positions(enc)[hidden]
    else:
        tokens = tokens[~hidden]
    if first:
        tokens = np.concatenate([enc["class_token"] + enc["positions.class_position"], tokens])
    latent = stack(tokens, enc, config.encoder.blocks.depth, config.encoder.blocks.heads)

    ids = np.flatnonzero(hidden) if decoded is None else decoded
    if config.decoder.kind == "linear":
        rows = latent[first:]
        return {"latent": rows[~hidden], "prediction": rows[ids] @ dec["head.weight"].T + dec["head.bias"]}
    embedded = latent @ dec["embed.weight"].T + dec["embed.bias"]
    if config.mask_tokens_in_encoder:
        full, seen = embedded[first:], latent[first:][~hidden]
    else:
        full, seen = np.repeat(dec["mask_token"], len(hidden), axis=0), latent[first:]
        full[~hidden] = embedded[first:]
    full = full + positions(dec)
    own = {"own": lambda: dec["class_token"], "encoder": lambda: embedded[:1], "none": lambda: None}
    row = own[config.decoder.class_token]()
    there = (
        np.flatnonzero(~hidden)
        if config.decoder.kind == "cross_attention"
        else np.sort([*np.flatnonzero(~hidden), *ids])
    )
    memory = full[there]
    if row is not None:
        memory = np.concatenate([row + dec["positions.class_position"], memory])
    if config.decoder.kind == "cross_attention":
        tokens = full[ids]
        for i in range(config.decoder.blocks.depth):
            tokens = cross_block(tokens, memory, under(dec, f"blocks.{i}."), config.decoder.blocks.heads)
        painted = layer_norm(tokens, dec["norm.weight"], dec["norm.bias"])
    else:
        painted = stack(memory, dec, config.decoder.blocks.depth, config.decoder.blocks.heads)
        painted = painted[int(row is not None) :][np.isin(there, ids)]
    return {"latent": seen, "prediction": painted @ dec["head.weight"].T + dec["head.bias"]}


def encode_all(enc: dict[str, np.ndarray], patches: np.ndarray, config) -> np.ndarray:
    """All normalised patches (N, P) of a clip through the blocks, without the last norm or the class token: (N, D)."""
    tokens = patches @ enc["patch_embed.proj.weight"].T + enc["patch_embed.proj.bias"] + positions(enc)
    if config.class_token:
        tokens = np.concatenate([enc["class_token"] + enc["positions.class_position"], tokens])
    for i in range(config.blocks.depth):
        tokens = block(tokens, under(enc, f"blocks.{i}."), config.blocks.heads)
    return tokens[int(config.class_token) :]


def targets(clip: np.ndarray, config) -> np.ndarray:
    """Targets (B, N, P) of every token of normalised clips (B, C, T, H, W)."""
    pt, ph, pw = config.encoder.clip.patch
    chosen = clip[:, :, target_frames(config.predict_frames, clip.shape[2], pt)]
    if config.target == "hog":
        return hog_tokens(chosen, (pt if config.predict_frames == "all" else 1, ph, pw))
    values = patchify(chosen, (pt if config.predict_frames == "all" else 1, ph, pw))
    return standardise(values) if config.target == "normalized_pixels" else values


def hog_tokens(frames: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """HOG of frames (B, C, T, H, W) by token (B, N, P); values by frame, channel, bin, cell row, cell column."""
    B, C, T, H, W = frames.shape
    pt, ph, pw = patch[0], patch[1] // 8, patch[2] // 8
    maps = np.array([[[hog(frames[b, c, t]) for t in range(T)] for c in range(C)] for b in range(B)])
    tokens = []
    for t, y, x in product(range(T // pt), range(H // 8 // ph), range(W // 8 // pw)):
        part = maps[:, :, t * pt : (t + 1) * pt, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw]  # B, C, pt, ph, pw, bins
        tokens.append(part.transpose(0, 2, 1, 5, 3, 4).reshape(B, -1))
    return np.stack(tokens, axis=1)

"""Times attention layers in PyTorch on the CPU, each after a comparison with a plain definition in float64.

Batch 1, 16 heads; float32 unless the name says otherwise. Prints one JSON object a line: peer, T, threads, runs, ms
(median), version.

    python torch_peer.py THREADS T CASE...

log_linear_masks    chunked log-linear attention, scalar decay, K 128, V 64, one group: one mask over chunks a level
log_linear_tree     the same, its blocks of chunks summed in a tree: each level is read by the half that needs it
log_linear_paper    the same by the authors' own chunked reference (log-linear-attention, hssd_minimal.py)
log_linear_*_train  forward and backward of one of these by autograd
ssd                 the same layer with one level: Mamba-2
softmax             causal softmax attention, d 64, through matmul
sdpa, sdpa_bf16     torch.nn.functional.scaled_dot_product_attention, causal, d 64
"""

import functools
import importlib
import json
import math
import os
import pathlib
import struct
import sys
import time
import types

import torch

HEADS, CHUNK = 16, 64
ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = pathlib.Path(os.environ.get("LOGLINEAR_PEERS", ROOT / "build/peers"))


# ---- log-linear attention, scalar decay (docs/algorithm.md, section 5) ---------------------------------------------
# q, k (G, T, K), one of G for H / G heads; v (H, T, V); g (H, T); scales (H, T, L). T is a multiple of the chunk.


def bit_width(x):
    """Binary digits of every element of an integer tensor, 0 for 0."""
    return sum((x >> b > 0).long() for b in range(32))


def inside_chunks(q, k, v, g, scales, chunk):
    """What tokens of one chunk do to each other, and per chunk: queries and states decayed to its two ends."""
    G, T, K = q.shape
    H, _, V = v.shape
    n, per_group = T // chunk, H // G
    decay = g.view(H, n, chunk).cumsum(-1)
    position = torch.arange(chunk)
    level = bit_width(position[:, None] ^ position[None, :]).clamp(max=scales.shape[-1] - 1)
    seen = position[:, None] >= position[None, :]
    weight = torch.exp((decay[..., :, None] - decay[..., None, :]).masked_fill(~seen, -math.inf))
    weight = weight * scales.view(H, n, chunk, -1).gather(-1, level.expand(H, n, chunk, chunk))
    qc, kc, vc = q.view(G, n, chunk, K), k.view(G, n, chunk, K), v.view(H, n, chunk, V)
    scores = (qc @ kc.transpose(-1, -2)).repeat_interleave(per_group, 0)
    out = (weight * scores) @ vc
    to_end = torch.exp(decay[..., -1:] - decay)
    states = kc.transpose(-1, -2).repeat_interleave(per_group, 0) @ (to_end[..., None] * vc)
    return out, states, qc.repeat_interleave(per_group, 0), decay


def log_linear_masks(q, k, v, g, scales, chunk=CHUNK):
    out, states, qc, decay = inside_chunks(q, k, v, g, scales, chunk)
    H, n, K, V = states.shape
    L = scales.shape[-1]
    ends = decay[..., -1].cumsum(-1)
    z = torch.arange(n)
    level = bit_width(z[:, None] ^ z[None, :])
    past = z[:, None] > z[None, :]
    # From the end of chunk y to the beginning of chunk z: the chunks between them.
    between = torch.exp(((ends - decay[..., -1])[..., :, None] - ends[..., None, :]).masked_fill(~past, -math.inf))
    by_level = scales.view(H, n, chunk, L) * torch.exp(decay)[..., None]
    first = int(math.log2(chunk)) + 1
    read = min(first, L - 1)
    for b in range(1, int(level.max()) + 1):
        # Levels beyond the last read the last one; with one level that is a single mask.
        mask = level == b if read < L - 1 else level >= b
        block = ((between * mask) @ states.view(H, n, K * V)).view(H, n, K, V)
        out = out + by_level[..., read, None] * (qc @ block)
        if read == L - 1:
            break
        read += 1
    return out.view(H, n * chunk, V)


def log_linear_tree(q, k, v, g, scales, chunk=CHUNK):
    """T / chunk has to be a power of two."""
    out, block, qc, decay = inside_chunks(q, k, v, g, scales, chunk)
    H, n, K, V = block.shape
    L = scales.shape[-1]
    first = int(math.log2(chunk)) + 1
    since = decay.reshape(H, n * chunk)  # decay since the beginning of the token's block
    whole = decay[..., -1]  # decay over a whole block
    by_token = scales.reshape(H, n * chunk, L)
    for b in range(n.bit_length() - 1):
        pairs, size = n >> (b + 1), chunk << b
        late_q = qc.view(H, pairs, 2, size, K)[:, :, 1]
        late_decay = since.view(H, pairs, 2, size)
        weight = by_token[..., min(first + b, L - 1)].view(H, pairs, 2, size)[:, :, 1] * torch.exp(late_decay[:, :, 1])
        block, whole = block.view(H, pairs, 2, K, V), whole.view(H, pairs, 2)
        late = weight[..., None] * (late_q @ block[:, :, 0])
        out = out.view(H, pairs, 2, size, V)
        out = torch.stack((out[:, :, 0], out[:, :, 1] + late), 2)
        block = torch.exp(whole[..., 1])[..., None, None] * block[:, :, 0] + block[:, :, 1]
        since = torch.stack((late_decay[:, :, 0], late_decay[:, :, 1] + whole[..., 0, None]), 2).view(H, -1)
        whole = whole.sum(-1)
    return out.reshape(H, n * chunk, V)


@functools.lru_cache(maxsize=4)
def levels_matrix(length, **_):
    """What the authors' make_levels_matrix returns; theirs asks for every pair of 16384 tokens in Python, for hours."""
    t = torch.arange(length)
    levels = torch.empty(length, length, dtype=torch.int64)
    for row in range(0, length, 1024):
        part = t[row : row + 1024, None]
        levels[row : row + 1024] = torch.frexp((part ^ t).float())[1].long().masked_fill(t > part, -1)
    return levels


def level_of_chunks(chunk_mask, levels_matrix):
    """The level of the tokens of the chunks in the mask. Theirs collects it from all pairs of tokens, for half a minute."""
    chunk, earlier = chunk_mask.nonzero()[0]
    return int(levels_matrix[chunk, earlier, 0, 0])


@functools.lru_cache(maxsize=1)
def paper():
    """The authors' module; of its package only what it needs, so that nothing asks for a GPU. None: not installed."""
    package = types.ModuleType("hattention")
    package.__path__ = [str(PEERS / "log-linear-attention/hattention")]
    sys.modules["hattention"] = package
    for name in ("fla", "fla.ops", "fla.ops.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["fla.ops.utils"].chunk_local_cumsum = None  # of the delta rule, which is not called
    try:
        module = importlib.import_module("hattention.hssd_minimal")
    except ImportError:
        return None
    module.make_levels_matrix = levels_matrix
    module.get_level_from_chunk_levels = level_of_chunks
    return module


def log_linear_paper(q, k, v, g, scales, chunk=CHUNK):
    """Every head has queries and keys of its own there; batch, tokens, heads is the order."""
    H, (G, T, K) = v.shape[0], q.shape
    q, k = (x[:, None].expand(G, H // G, T, K).reshape(H, T, K) for x in (q, k))
    X, A, B, C, L = (x.transpose(0, 1)[None] for x in (v, g, k, q, scales))
    out = paper().hssd_minimal_discrete(X, A, B, C, L, level_base=2, htype=paper().HType.WEAK, block_len=chunk)
    return out[0].transpose(0, 1)


def log_linear_definition(q, k, v, g, scales):
    """Section 3 as it stands: one matrix of T by T."""
    T, H, L = q.shape[1], v.shape[0], scales.shape[-1]
    t = torch.arange(T)
    level = bit_width(t[:, None] ^ t[None, :]).clamp(max=L - 1)
    seen = t[:, None] >= t[None, :]
    decay = g.cumsum(-1)
    weight = torch.exp((decay[..., :, None] - decay[..., None, :]).masked_fill(~seen, -math.inf))
    weight = weight * scales.gather(-1, level.expand(H, T, T))
    return (weight * (q @ k.transpose(-1, -2)).repeat_interleave(H // q.shape[0], 0)) @ v


# ---- softmax attention ---------------------------------------------------------------------------------------------


def causal_bias(T):
    return torch.full((T, T), -math.inf).triu(1)


def softmax(q, k, v, bias):
    """A few heads at a time, so that their scores stay below 1 GiB."""
    H, T, D = q.shape
    step = max(1, min(H, (1 << 28) // (T * T)))
    out = torch.empty_like(v)
    for h in range(0, H, step):
        heads = slice(h, h + step)
        scores = torch.baddbmm(bias, q[heads], k[heads].transpose(-1, -2), alpha=1 / math.sqrt(D))
        torch.matmul(torch.softmax(scores, -1), v[heads], out=out[heads])
    return out


def softmax_definition(q, k, v):
    T, D = q.shape[-2:]
    scores = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    return torch.softmax(scores, -1) @ v


# ---- cases ---------------------------------------------------------------------------------------------------------


def log_linear_inputs(T, levels, dtype=torch.float32):
    K, V = 128, 64
    L = levels or T.bit_length() + 1
    return (
        torch.rand(1, T, K, dtype=dtype) - 0.5,
        (torch.rand(1, T, K, dtype=dtype) - 0.5) * math.sqrt(12 / K),
        torch.rand(HEADS, T, V, dtype=dtype) - 0.5,
        -0.01 * torch.rand(HEADS, T, dtype=dtype),
        torch.rand(HEADS, T, L, dtype=dtype) if levels != 1 else torch.ones(HEADS, T, 1, dtype=dtype),
    )


def softmax_inputs(T, dtype):
    return tuple((2 * torch.rand(HEADS, T, 64) - 1).to(dtype) for _ in range(3))


def require(name, got, want, bound):
    error = ((got.double() - want.double()).norm() / want.double().norm()).item()
    if not error <= bound:
        sys.exit(f"[torch] {name}: relative error {error:.3g} against the definition")


def golden(name):
    """Tensors of tests/golden/NAME.safetensors in the layout of this file: batch dropped, heads first."""
    path = ROOT / "tests/golden" / (name + ".safetensors")
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for key, entry in json.loads(data[8 : 8 + size]).items():
        if key == "__metadata__":
            continue
        if entry["dtype"] != "F64":
            sys.exit(f"[torch] {path}: {key} is not float64")
        begin, end = (8 + size + x for x in entry["data_offsets"])
        flat = torch.tensor(struct.unpack(f"<{(end - begin) // 8}d", data[begin:end]), dtype=torch.float64)
        tensors[key] = flat.view(entry["shape"])[0].transpose(0, 1).contiguous()
    return tensors


def check_log_linear(form):
    files = {"scalar_decay_T128": 16, "scalar_decay_T64": 8}
    if form is log_linear_masks:
        files["scalar_decay_T200"] = 8
    for name, chunk in files.items():
        x = golden(name)
        inputs = [x[key].requires_grad_() for key in ("q", "k", "v", "g", "level_scales")]
        out = form(*inputs, chunk=chunk)
        require(f"{form.__name__}, {name}", out, x["o"], 1e-12)
        gradients = torch.autograd.grad(out, inputs, x["do"])
        for key, gradient in zip(("dq", "dk", "dv", "dg", "dlevel_scales"), gradients):
            require(f"{form.__name__}, {name}, {key}", gradient, x[key], 1e-11)
    for levels in (None,) if form is log_linear_paper else (None, 1):
        inputs = log_linear_inputs(512, levels)
        wide = [x.double() for x in inputs]
        require(form.__name__, form(*inputs), log_linear_definition(*wide), 1e-5)


def case(name, T):
    """A function without arguments that does what is to be timed, checked before."""
    if name.startswith("log_linear") or name == "ssd":
        forms = {"log_linear_tree": log_linear_tree, "log_linear_paper": log_linear_paper}
        form = forms.get(name.removesuffix("_train"), log_linear_masks)
        check_log_linear(form)
        inputs = log_linear_inputs(T, 1 if name == "ssd" else None)
        if form is log_linear_paper:
            levels_matrix(T)  # made once, as in the authors' module
        if not name.endswith("_train"):
            return lambda: form(*inputs)
        inputs = [x.requires_grad_() for x in inputs]
        dout = torch.rand(HEADS, T, 64) - 0.5
        return lambda: torch.autograd.grad(form(*inputs), inputs, dout)
    dtype = torch.bfloat16 if name.endswith("_bf16") else torch.float32
    small, inputs = softmax_inputs(130, dtype), softmax_inputs(T, dtype)
    want = softmax_definition(*(x.double() for x in small))
    if name == "softmax":
        require(name, softmax(*small, causal_bias(130)), want, 1e-5)
        bias = causal_bias(T)
        return lambda: softmax(*inputs, bias)
    if name in ("sdpa", "sdpa_bf16"):
        attend = torch.nn.functional.scaled_dot_product_attention

        def run(x):  # (batch, heads, tokens, width): with three dimensions torch takes its slow path
            return attend(*(y[None] for y in x), is_causal=True)

        require(name, run(small)[0], want, 1e-5 if dtype is torch.float32 else 1e-2)
        return lambda: run(inputs)
    sys.exit(f"[torch] no such case: {name}")


def version():
    """Of torch and of what multiplies matrices for it."""
    if torch.backends.mkl.is_available():
        return f"{torch.__version__}, MKL"
    loaded = {pathlib.Path(line.split()[-1]).name for line in open("/proc/self/maps") if "blas" in line}
    return f"{torch.__version__}, {' '.join(sorted(loaded)) or 'no BLAS'}"


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name, T, threads):
    run = case(name, T)
    with torch.set_grad_enabled(name.endswith("_train")):
        first = timed(run)
        # A run of seconds needs no warm-up.
        runs = [first] if first > 2 else []
        spent = 0
        while not runs or (first <= 2 and (spent < 0.5 or len(runs) < 5) and spent < 2):
            runs.append(timed(run))
            spent += runs[-1]
    runs.sort()
    ms = 1e3 * runs[len(runs) // 2]
    row = {"peer": f"torch {name}", "T": T, "threads": threads, "runs": len(runs), "ms": ms, "version": version()}
    print(json.dumps(row), flush=True)


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    threads, T = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    for name in sys.argv[3:]:
        if name.startswith("sdpa") and not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
            continue  # before torch 2
        if name.startswith("log_linear_paper") and not paper():
            continue
        measure(name, T, threads)


main()

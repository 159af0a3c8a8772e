"""Train a small GPT on one device within a fixed budget.  This is the file to change; prepare.py stays as it is.

Read it from top to bottom: constants, attention, model, optimisers, training.  What must stay true:

- `main()` gets ready, calls `open_gate()`, trains until the budget is used up, and hands the model to `save()`.
- `build_model(device)` makes the same network again in another process, where the saved weights are loaded into it.
- Calling the model on int64 ids [B, T] gives logits [B, T, vocab]; those at position t depend on the weights and on the
  ids up to t of the same row, on nothing else.
- Nothing happens at import but definitions.
"""

import gc
import itertools
import math
import sys
import time

import torch
import torch.nn.functional as F
from prepare import DEVICE, SEED, SEQUENCE_LENGTH, VOCAB_SIZE, make_dataloader, open_gate, report, save
from torch import nn

STARTED = time.monotonic()

# ---------------------------------------------------------------------------------------------------------------------
# Constants.  Presets and the tuner replace these literals; keep each one on a line of its own.

# Model
DEPTH = 4  # transformer blocks
MODEL_DIM = 96  # width of the residual stream; a multiple of HEAD_DIM
HEAD_DIM = 32  # width of one attention head; even
MLP_RATIO = 4  # width of the hidden layer of an MLP, in model widths
WINDOW_PATTERN = "SSSSL"  # S: short window, L: all; repeated over the layers, the last is always L
SHORT_WINDOW = 256  # tokens that a short-window layer looks back, where the attention in use has windows
ROPE_BASE = 10000.0  # base of the rotary wavelengths; larger turns more slowly
QK_SCALE = 1.1  # sharpness of attention: factor on the normalised queries and on the keys
SOFTCAP = 15.0  # logits are squashed smoothly into plus or minus this
VALUE_EMBEDDING_EVERY = 2  # one layer in so many, back from the last, adds a row of a table to V; 0: none
VALUE_GATE_CHANNELS = 32  # channels of the residual stream that steer how much of that row

# Initial weights
INIT_SCALE = 0.68  # factor on the uniform weights of the matrices that read the residual stream
EMBEDDING_STD = 1.0  # standard deviation of the token embeddings
UNEMBEDDING_STD = 0.001  # standard deviation of the output matrix
X0_INIT = 0.05  # how much of the token embedding every block gets again at first

# Batch
TOTAL_BATCH_SIZE = 1536  # tokens per optimiser step
DEVICE_BATCH_SIZE = 12  # rows per forward pass; gradients are accumulated up to the total

# Learning rates and weight decay
MATRIX_LR = 0.005  # Muon: the matrices of the blocks
EMBEDDING_LR = 0.1  # AdamW: token and value embeddings, at a model width of REFERENCE_DIM
UNEMBEDDING_LR = 0.0003  # AdamW: the output matrix, at a model width of REFERENCE_DIM
REFERENCE_DIM = 768  # the two rates above are scaled by the inverse root of the width relative to this one
RESIDUAL_LR = 0.005  # AdamW: the scalars on the residual stream
X0_LR = 0.02  # AdamW: the scalars on the repeated token embedding
MATRIX_WEIGHT_DECAY = 0.2  # Muon, cautious; fades out linearly
EMBEDDING_WEIGHT_DECAY = 0.001  # AdamW: token embeddings
VALUE_WEIGHT_DECAY = 0.003  # AdamW: value embeddings
UNEMBEDDING_WEIGHT_DECAY = 0.01  # AdamW: the output matrix

# Moments
ADAM_BETAS = (0.8, 0.95)  # AdamW: embeddings, output matrix and residual scalars
X0_BETAS = (0.96, 0.95)  # AdamW: the scalars on the repeated token embedding
ADAM_EPS = 1e-10  # AdamW: added to the denominator
MOMENTUM_START = 0.85  # Muon: momentum of the first step
MOMENTUM = 0.95  # Muon: momentum after its warm-up
MOMENTUM_WARMUP = 0.1  # part of the budget in which the momentum rises
MUON_BETA2 = 0.95  # Muon: decay of each row's mean square

# Schedule of all learning rates, by the part of the budget that is used
WARMUP = 0.0  # part at the start in which the rate rises from nothing
WARMDOWN = 0.5  # part at the end in which the rate falls
FINAL_LR = 0.0  # where it ends, relative to its height

# Running
LOG_EVERY = 10  # steps between two lines of the log
WARM_UP_STEPS = 3  # steps on dummy tokens before the gate, so that all is compiled when the clock starts

# ---------------------------------------------------------------------------------------------------------------------
# Attention.  All take queries, keys and values [B, T, heads, HEAD_DIM] and a window in tokens, or None for the whole
# context, and give the same shape.  A window of w lets a token see itself and the w tokens before it.

ATTENTION_SCALE = QK_SCALE**2 / math.sqrt(HEAD_DIM)


def full_attention(q, k, v, _window):
    """Runs everywhere; has no windows and looks at the whole context instead."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=ATTENTION_SCALE).transpose(1, 2)


def flex_attention(device):
    """Windows by FlexAttention, compiled; the whole context by torch's own kernels."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(_batch, _head, query, key):
        return (query >= key) & (query - key <= SHORT_WINDOW)

    mask = create_block_mask(sees, None, None, SEQUENCE_LENGTH, SEQUENCE_LENGTH, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q, k, v, window):
        if window is None:
            return full_attention(q, k, v, None)
        assert (window, q.shape[1]) == (SHORT_WINDOW, SEQUENCE_LENGTH), "the mask was made for another shape"
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return compiled(q, k, v, block_mask=mask, scale=ATTENTION_SCALE).transpose(1, 2)

    return attend


def flash_attention(implementation):
    """FlashAttention 3 or 4 from an installed package, behind torch's own functions."""
    from torch.nn.attention import activate_flash_attention_impl
    from torch.nn.attention.varlen import varlen_attn

    activate_flash_attention_impl(implementation)

    def attend(q, k, v, window):
        if window is None:
            return full_attention(q, k, v, None)
        rows, length = q.shape[:2]
        ends = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        y = varlen_attn(q, k, v, ends, ends, length, length, scale=ATTENTION_SCALE, window_size=(window, 0))
        return y.unflatten(0, (rows, length))

    return attend


def forget_flash_attention():
    """Give torch's own functions their own kernels back."""
    from torch.nn import attention

    current = getattr(attention, "current_flash_attention_impl", None)
    if current is not None and current() is not None:
        attention.restore_flash_attention_impl()


def flash_attention_2():
    """The flash_attn package."""
    from flash_attn import flash_attn_func

    def attend(q, k, v, window):
        left = -1 if window is None else window
        return flash_attn_func(q, k, v, softmax_scale=ATTENTION_SCALE, causal=True, window_size=(left, 0))

    return attend


def works(attend, device, dtype):
    """Try it forward and backward on the real length.  An import proves nothing: kernels fail at the first launch."""
    with torch.enable_grad():
        for window in (SHORT_WINDOW, None):
            shape = (3, 1, SEQUENCE_LENGTH, MODEL_DIM // HEAD_DIM, HEAD_DIM)
            q, k, v = torch.ones(shape, device=device, dtype=dtype, requires_grad=True)
            attend(q, k, v, window).sum().backward()
    torch.cuda.synchronize(device)


def choose_attention(device, dtype):
    """The fastest attention that this card and the installed packages can run, and whether it has windows."""
    candidates = {}
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability == (9, 0):
            candidates["FlashAttention 3"] = lambda: flash_attention("FA3")
        if capability[0] in (9, 10):
            candidates["FlashAttention 4"] = lambda: flash_attention("FA4")
        if capability >= (8, 0):
            candidates["FlashAttention 2"] = flash_attention_2
            if "S" in WINDOW_PATTERN:
                candidates["FlexAttention"] = lambda: flex_attention(device)
    for name, make in candidates.items():
        try:
            attend = make()
            works(attend, device, dtype)
        except Exception as error:  # noqa: BLE001  a missing package, or a kernel that this card cannot run
            print(f"attention: no {name} ({type(error).__name__})")
            forget_flash_attention()
        else:
            print(f"attention: {name}, {WINDOW_PATTERN} with a short window of {SHORT_WINDOW}")
            return attend, True
    print("attention: torch's own, the whole context in every layer")
    return full_attention, False


# ---------------------------------------------------------------------------------------------------------------------
# Model.  Weights are kept in float32 and cast where they are used; activations have the dtype of the embedding's output.


def norm(x):
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def rotate(x, cos, sin):
    """Rotary position embedding of [B, T, heads, HEAD_DIM]: the halves of each head are turned as pairs."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Linear(nn.Linear):
    """Without bias; computes in the dtype of its input."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention; in some layers a table of the tokens adds to the values."""

    def __init__(self, attend, window, has_value_embedding):
        super().__init__()
        self.attend = attend
        self.window = window
        self.heads = MODEL_DIM // HEAD_DIM
        self.query = Linear(MODEL_DIM, MODEL_DIM)
        self.key = Linear(MODEL_DIM, MODEL_DIM)
        self.value = Linear(MODEL_DIM, MODEL_DIM)
        self.output = Linear(MODEL_DIM, MODEL_DIM)
        self.gate = Linear(VALUE_GATE_CHANNELS, self.heads) if has_value_embedding else None

    def forward(self, x, value_embedding, cos, sin):
        # One product for all three: fewer, larger kernels.
        weights = torch.cat((self.query.weight, self.key.weight, self.value.weight)).to(x.dtype)
        q, k, v = F.linear(x, weights).unflatten(-1, (3, self.heads, HEAD_DIM)).unbind(dim=-3)
        if self.gate is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * value_embedding.unflatten(-1, (self.heads, HEAD_DIM))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        return self.output(self.attend(q, k, v, self.window).flatten(-2))


class MLP(nn.Module):
    """Two matrices with a squared ReLU between them."""

    def __init__(self):
        super().__init__()
        self.hidden = Linear(MODEL_DIM, MLP_RATIO * MODEL_DIM)
        self.output = Linear(MLP_RATIO * MODEL_DIM, MODEL_DIM)

    def forward(self, x):
        return self.output(F.relu(self.hidden(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual stream and added to it."""

    def __init__(self, attend, window, has_value_embedding):
        super().__init__()
        self.attention = Attention(attend, window, has_value_embedding)
        self.mlp = MLP()

    def forward(self, x, value_embedding, cos, sin):
        x = x + self.attention(norm(x), value_embedding, cos, sin)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """Ids in, logits out."""

    def __init__(self, attend, has_windows, dtype):
        super().__init__()
        self.dtype = dtype
        pattern = [WINDOW_PATTERN[i % len(WINDOW_PATTERN)] for i in range(DEPTH - 1)] + ["L"]
        windows = [SHORT_WINDOW if kind == "S" and has_windows else None for kind in pattern]
        every = VALUE_EMBEDDING_EVERY
        has_value_embedding = [every > 0 and (DEPTH - 1 - i) % every == 0 for i in range(DEPTH)]
        self.embedding = nn.Embedding(VOCAB_SIZE, MODEL_DIM)
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(VOCAB_SIZE, MODEL_DIM) for i in range(DEPTH) if has_value_embedding[i]}
        )
        self.blocks = nn.ModuleList(Block(attend, windows[i], has_value_embedding[i]) for i in range(DEPTH))
        self.residual_scales = nn.Parameter(torch.ones(DEPTH))
        self.x0_scales = nn.Parameter(torch.full((DEPTH,), X0_INIT))
        self.unembedding = Linear(MODEL_DIM, VOCAB_SIZE)

        frequencies = ROPE_BASE ** -torch.linspace(0, 1, HEAD_DIM // 2 + 1)[:-1]
        angles = torch.outer(torch.arange(SEQUENCE_LENGTH), frequencies).unsqueeze(1)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    @torch.no_grad()
    def init_weights(self):
        bound = INIT_SCALE * math.sqrt(3 / MODEL_DIM)  # a standard deviation of INIT_SCALE / sqrt(MODEL_DIM)
        self.embedding.weight.normal_(0, EMBEDDING_STD)
        self.unembedding.weight.normal_(0, UNEMBEDDING_STD)
        for table in self.value_embeddings.values():
            table.weight.uniform_(-bound, bound)
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            for matrix in (attention.query, attention.key, attention.value, mlp.hidden):
                matrix.weight.uniform_(-bound, bound)
            # Every block starts as the identity, every gate at one.
            for matrix in (attention.output, mlp.output, attention.gate):
                if matrix is not None:
                    matrix.weight.zero_()

    def forward(self, ids, targets=None):
        """Logits float32 [B, T, vocab] of int64 ids [B, T]; with targets, their mean cross-entropy instead."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = x0 = norm(self.embedding(ids).to(self.dtype))
        for i, block in enumerate(self.blocks):
            x = self.residual_scales[i].to(x.dtype) * x + self.x0_scales[i].to(x.dtype) * x0
            table = self.value_embeddings[str(i)] if block.attention.gate is not None else None
            x = block(x, None if table is None else table(ids).to(x.dtype), cos, sin)
        logits = SOFTCAP * torch.tanh(self.unembedding(norm(x) / SOFTCAP).float())
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def flops_per_token(self):
        """Training operations per token: six per weight of a matrix, twelve per channel and token in each window."""
        matrices = [*self.blocks.parameters(), self.unembedding.weight]
        windows = [block.attention.window or SEQUENCE_LENGTH for block in self.blocks]
        return 6 * sum(p.numel() for p in matrices) + 12 * MODEL_DIM * sum(windows)


def compute_dtype(device):
    """bfloat16 on Ampere and later; float32 on older cards, as float16 would need loss scaling, and on the CPU."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def build_model(device):
    """The network with new weights.  Training starts from it; scoring builds it again and loads what was saved."""
    device = torch.device(device)
    dtype = compute_dtype(device)
    assert MODEL_DIM % HEAD_DIM == 0, f"MODEL_DIM {MODEL_DIM} is no multiple of HEAD_DIM {HEAD_DIM}"
    attend, has_windows = choose_attention(device, dtype)
    with device:
        model = GPT(attend, has_windows, dtype)
    model.init_weights()
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers: Muon for the matrices of the blocks, AdamW for the rest.

# Polar Express: coefficients of the odd polynomials a x + b x^3 + c x^5 that, one after the other, drive all singular
# values towards one.
POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)


def orthogonalise(matrices, dtype):
    """The nearest orthogonal matrix of each in [N, rows, columns], roughly, computed in this dtype."""
    wide = matrices.size(-2) <= matrices.size(-1)
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def muon_update(weights, grads, momenta, squares, rate, momentum, weight_decay, dtype):
    """New weights of a stack of matrices [N, rows, columns]; momenta and squares [N, rows, 1] are updated in place.

    Rate, momentum and decay are 0-D tensors: their values change at every step, and numbers would be compiled in.
    """
    momenta.lerp_(grads, 1 - momentum)
    update = orthogonalise(grads.lerp(momenta, momentum), dtype)
    # Even out the rows by their running mean square, and keep the size of the whole.
    before = update.norm(dim=(-2, -1), keepdim=True)
    squares.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - MUON_BETA2)
    update = update * (squares + 1e-10).rsqrt()
    update = update * (before / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10))
    # Cautious weight decay: only where the update shrinks the weight anyway.
    shrinks = update * weights >= 0
    return weights - rate * (update + weight_decay * weights * shrinks)


class Muon:
    """Momentum whose direction is made orthogonal, for 2-D weights; those of one shape are updated as one stack."""

    def __init__(self, weights):
        stacks = {}
        for weight in weights:
            stacks.setdefault(weight.shape, []).append(weight)
        self.stacks = []
        for (rows, columns), group in stacks.items():
            momenta = group[0].new_zeros(len(group), rows, columns, requires_grad=False)
            squares = group[0].new_zeros(len(group), rows, 1, requires_grad=False)
            self.stacks.append((group, momenta, squares, math.sqrt(max(1, rows / columns))))
        self.dtype = compute_dtype(DEVICE)
        self.update = torch.compile(muon_update, dynamic=False) if DEVICE.type == "cuda" else muon_update

    @torch.no_grad()
    def step(self, rate, momentum, weight_decay):
        for group, momenta, squares, factor in self.stacks:
            grads = torch.stack([weight.grad for weight in group])
            # Filled on the device: a copy from the host would wait for the GPU.
            changing = [
                torch.full((), x, device=grads.device) for x in (rate * factor, momentum, weight_decay)
            ]
            new = self.update(torch.stack(group), grads, momenta, squares, *changing, self.dtype)
            torch._foreach_copy_(group, list(new.unbind()))


def lr_scale(progress):
    """Factor on all learning rates when this part of the budget is used."""
    if progress < WARMUP:
        return progress / WARMUP
    if progress < 1 - WARMDOWN:
        return 1.0
    left = (1 - progress) / WARMDOWN
    return left + (1 - left) * FINAL_LR


class Optimiser:
    """Both optimisers and their schedules."""

    def __init__(self, model):
        by_width = (MODEL_DIM / REFERENCE_DIM) ** -0.5
        embedding_lr, unembedding_lr = EMBEDDING_LR * by_width, UNEMBEDDING_LR * by_width
        groups = [
            ([model.unembedding.weight], unembedding_lr, ADAM_BETAS, UNEMBEDDING_WEIGHT_DECAY),
            ([model.embedding.weight], embedding_lr, ADAM_BETAS, EMBEDDING_WEIGHT_DECAY),
            ([model.residual_scales], RESIDUAL_LR, ADAM_BETAS, 0.0),
            ([model.x0_scales], X0_LR, X0_BETAS, 0.0),
        ]
        if len(model.value_embeddings) > 0:
            tables = [*model.value_embeddings.parameters()]
            groups.append((tables, embedding_lr, ADAM_BETAS, VALUE_WEIGHT_DECAY))
        self.adamw = torch.optim.AdamW(
            [{"params": p, "lr": lr, "betas": betas, "weight_decay": wd} for p, lr, betas, wd in groups],
            eps=ADAM_EPS,
            fused=True,
        )
        self.rates = [group["lr"] for group in self.adamw.param_groups]
        self.muon = Muon(model.blocks.parameters())

    def step(self, progress):
        scale = lr_scale(progress)
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        self.adamw.step()
        warmth = min(progress / MOMENTUM_WARMUP, 1.0) if MOMENTUM_WARMUP > 0 else 1.0
        momentum = MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * warmth
        self.muon.step(MATRIX_LR * scale, momentum, MATRIX_WEIGHT_DECAY * (1 - progress))


# ---------------------------------------------------------------------------------------------------------------------
# Training

# Dense bfloat16 operations per second that the maker states, by the card's name.  An unknown card has an MFU of 0.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def train_step(model, optimiser, batches, progress):
    """One optimiser step on the next TOTAL_BATCH_SIZE tokens; gives its mean loss, 0-D, still on the device."""
    parts = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * SEQUENCE_LENGTH)
    total = torch.zeros((), device=DEVICE)
    for _ in range(parts):
        inputs, targets, _ = next(batches)
        loss = model(inputs, targets) / parts
        loss.backward()
        total += loss.detach()
    optimiser.step(progress)
    model.zero_grad(set_to_none=True)
    return total


def warm_up(model, compiled):
    """Compile and touch everything with dummy tokens, then put weights and random numbers back as they were."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng():
        optimiser = Optimiser(model)  # thrown away with its state
        ids = torch.randint(VOCAB_SIZE, (DEVICE_BATCH_SIZE, SEQUENCE_LENGTH), device=DEVICE)
        # Not the same tensor twice: that would be compiled as a case of its own.
        dummy = itertools.repeat((ids, ids.clone(), 0))
        for _ in range(WARM_UP_STEPS):
            train_step(compiled, optimiser, dummy, progress=0.0)
    model.load_state_dict(weights)


def read_later(loss):
    """Start copying a 0-D tensor to the host; gives a function that waits for that copy only and returns the number."""
    host = loss.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if loss.is_cuda else None
    if copied is not None:
        copied.record()

    def read():
        if copied is not None:
            copied.synchronize()
        return host.item()

    return read


def main(warm=DEVICE.type == "cuda"):
    """Get ready, open the gate, train, save.  On the CPU there is nothing to compile and so nothing to warm up."""
    tokens_per_pass = DEVICE_BATCH_SIZE * SEQUENCE_LENGTH
    assert TOTAL_BATCH_SIZE % tokens_per_pass == 0, (
        f"TOTAL_BATCH_SIZE {TOTAL_BATCH_SIZE} is no multiple of the {tokens_per_pass} tokens of one pass"
    )
    torch.manual_seed(SEED)
    model = build_model(DEVICE)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"model: {parameters:,} parameters, {model.flops_per_token():,} operations a token, {model.dtype}")
    compiled = torch.compile(model, dynamic=False) if DEVICE.type == "cuda" else model
    if warm:
        warm_up(model, compiled)
    optimiser = Optimiser(model)
    gc.collect()
    gc.freeze()  # a collection in the middle of training stalls the GPU
    gc.disable()

    budget = open_gate()
    batches = make_dataloader(DEVICE_BATCH_SIZE)
    step, pending = 0, None

    def look(at, read):
        """Report the loss of a step; end everything if it has gone wrong."""
        loss = read()
        report(at, loss, at * TOTAL_BATCH_SIZE)
        if not math.isfinite(loss) or loss > 100:
            print(f"FAIL: loss {loss} at step {at}")
            sys.exit(1)
        if at % LOG_EVERY == 0 or at == 1:
            rate = at * TOTAL_BATCH_SIZE / budget.elapsed()
            used = 100 * budget.progress()
            print(f"step {at}  {used:.1f} %  loss {loss:.4f}  {rate:,.0f} tokens/s", flush=True)

    while not (step > 0 and budget.done()):
        read = read_later(train_step(compiled, optimiser, batches, budget.progress()))
        budget.step()
        step += 1
        # Read the loss of the step before, so that the GPU always has one step queued and never more.
        if pending is not None:
            look(step - 1, pending)
        pending = read
    look(step, pending)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    training_seconds = budget.elapsed()

    tokens = step * TOTAL_BATCH_SIZE
    on_gpu = DEVICE.type == "cuda"
    peak = PEAK_FLOPS.get(torch.cuda.get_device_name(), 0) if model.dtype == torch.bfloat16 else 0
    summary = {
        "training_seconds": training_seconds,
        "total_seconds": time.monotonic() - STARTED,
        "peak_vram_mb": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0,
        "mfu_percent": 100 * model.flops_per_token() * tokens / training_seconds / peak if peak else 0.0,
        "total_tokens_M": tokens / 1e6,
        "num_steps": step,
        "num_params_M": parameters / 1e6,
        "depth": DEPTH,
    }
    save(model, summary)
    print("---")
    for key, value in summary.items():
        print(f"{key + ':':<18}{value:.2f}" if isinstance(value, float) else f"{key + ':':<18}{value}")


if __name__ == "__main__":
    main()

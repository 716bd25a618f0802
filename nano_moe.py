"""A language model with a mixture of experts (MoE) in every layer, in one file, to be read from top to bottom.

    python nano_moe.py                                    some two minutes on two cores: Python's own help pages
    python nano_moe.py FILE --experts 16 --top-k 2        a text of your own
    python nano_moe.py FILE --experts 1 --top-k 1 --d-ff 128    dense, 1×: as wide as the active part
    python nano_moe.py FILE --device cuda --d-model 512 --d-ff 512 --layers 8 --context 256 --lr 1e-3 --steps 5000

It needs PyTorch 2.4 or newer, and nothing else.

It is a decoder-only transformer in the style of Mixtral (arXiv:2401.04088), and its tokens are bytes. What makes it an
MoE stands in three places: `MoE` (router, top-k, experts, weighted sum), `load_balancing_loss`, and the one line of
`train` that adds the latter to the loss. Everything else is a dense transformer. The same model, taken apart, measured
and explained, is in moe_lessons/nn; a test holds the two equal.

Letters for shapes:  B sequences of T tokens · D d_model · H heads of h numbers · E experts · K of them for each token ·
F d_ff, the width of one expert · V = 256 tokens in the vocabulary. Inside an MoE a token is a row, whatever its
sequence, and T counts them all.
"""

import argparse
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside other work, threads that wait by spinning stop each other

import torch  # it reads that once
from torch import nn
from torch.nn import functional as F

VOCABULARY = 256  # every byte is a token

# --- the model --------------------------------------------------------------------------------------------------------


def rotary(T, head_dim, device):
    """cos and sin (T, 1, h) by which a pair of numbers is turned: position · 10000^(-2i/h) (arXiv:2104.09864)."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_dim, 2, device=device) / head_dim)  # (h/2,)
    angles = torch.arange(T, device=device)[:, None, None] * frequencies  # (T, 1, h/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Attention(nn.Module):
    """Each token reads itself and those before it: softmax(q·kᵀ / √h)·v in each head (arXiv:1706.03762, eq. 1)."""

    def __init__(self, d_model, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv_proj(x).unflatten(2, (3 * self.num_heads, -1)).chunk(3, dim=2)  # (B, T, H, h) each
        q, k = (t * cos + t.roll(t.shape[-1] // 2, dims=-1) * sin for t in (q, k))  # where a token stands
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, T, h)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # no token reads a later one
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)


class MoE(nn.Module):
    """E feed-forward networks of which K work for a token: y = Σ over the chosen e of weight_e · expert_e(x).

    A dense FFN as wide as all experts would have as many parameters, and do E/K times the arithmetic for a token."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ParameterDict()  # all experts in two tensors: expert e is [e]
        self.experts["gate_up_proj"] = uniform(num_experts, 2 * d_ff, d_model)  # (E, 2F, D)
        self.experts["down_proj"] = uniform(num_experts, d_model, d_ff)  # (E, D, F)

    def forward(self, x):
        tokens = x.flatten(0, -2)  # (T, D)
        probs = self.router(tokens).softmax(dim=-1)  # (T, E) the router scores every expert for every token
        weight, chosen = probs.topk(self.top_k, dim=-1)  # (T, K) and only the K best will work
        if self.top_k > 1:  # as Mixtral; with K = 1 it would be 1, without a gradient from the cross-entropy (Switch)
            weight = weight / weight.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(tokens)
        for e, (gate_up, down) in enumerate(zip(self.experts["gate_up_proj"], self.experts["down_proj"])):
            token, choice = (chosen == e).nonzero(as_tuple=True)  # who has chosen expert e, and as which choice
            gate, up = F.linear(tokens[token], gate_up).chunk(2, dim=-1)  # (its tokens, F)
            hidden = F.silu(gate) * up * weight[token, choice, None]  # SwiGLU (arXiv:2002.05202, eq. 5), weighted
            y.index_add_(0, token, F.linear(hidden, down))
        return y.view_as(x), (probs, chosen)


def uniform(*shape):
    """A weight (..., out, in) that starts as `nn.Linear` starts: uniform in ±1/√in."""
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(shape[-1]))


class Layer(nn.Module):
    """x = x + attention(norm(x)); x = x + MoE(norm(x))"""

    def __init__(self, d_model, d_ff, num_heads, num_experts, top_k):
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.attention = Attention(d_model, num_heads)
        self.ffn_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.ffn = MoE(d_model, d_ff, num_experts, top_k)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y, routing = self.ffn(self.ffn_norm(x))
        return x + y, routing


class LanguageModel(nn.Module):
    """ids (B, T) -> logits of the next byte (B, T, V), and for each layer its routing: probs (T, E), chosen (T, K)."""

    def __init__(self, d_model=128, d_ff=64, num_layers=3, num_heads=4, num_experts=8, top_k=2):
        super().__init__()
        self.head_dim = d_model // num_heads
        self.embed = nn.Embedding(VOCABULARY, d_model)
        nn.init.normal_(self.embed.weight, std=d_model**-0.5)
        self.layers = nn.ModuleList(Layer(d_model, d_ff, num_heads, num_experts, top_k) for _ in range(num_layers))
        self.norm = nn.RMSNorm(d_model, eps=1e-5)

    def forward(self, ids):
        x, routings = self.embed(ids), []  # (B, T, D)
        cos, sin = rotary(ids.shape[1], self.head_dim, ids.device)
        for layer in self.layers:
            x, routing = layer(x, cos, sin)
            routings.append(routing)
        return F.linear(self.norm(x), self.embed.weight), routings  # the embedding is the head too (arXiv:1608.05859)


def load(probs, chosen):
    """The share of all assignments that each expert has: (E,), 1/E each where the load is even."""
    return torch.bincount(chosen.flatten(), minlength=probs.shape[1]) / chosen.numel()


def load_balancing_loss(probs, chosen):
    """The auxiliary loss of Switch Transformer (arXiv:2101.03961, eq. 4): E · Σ_e f_e · P_e; 1 at uniform load.

    f_e is the load, P_e the mean probability of expert e. Only P has a gradient: it lowers the scores of experts in
    the measure of their load. Without it some experts win early, learn more, and win more: the others starve."""
    return probs.shape[1] * (load(probs, chosen) * probs.mean(dim=0)).sum()


# --- text in, text out ------------------------------------------------------------------------------------------------


def read_text(path):
    """The bytes of a file, or of Python's help pages, which differ by version: ASCII alone, each paragraph once, so
    that what is held out is new."""
    if path is not None:
        return Path(path).read_bytes()
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys("\n\n".join(topics[name] for name in sorted(topics)).split("\n\n"))
    return "\n\n".join(paragraphs).encode("ascii", "ignore")


def draw_batch(text, batch_size, context, device, generator):
    """Sequences from anywhere in a text, and for each byte the one that follows: two of (B, T)."""
    starts = torch.randint(len(text) - context, (batch_size, 1), generator=generator)
    sequences = text[starts + torch.arange(context + 1)].long().to(device)  # (B, T + 1)
    return sequences[:, :-1], sequences[:, 1:]


def cross_entropy(logits, targets):
    """The loss in nats per byte (bits: divide by ln 2). A uniform guess costs ln 256 = 5.5."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model, text, args):
    """The loss on the same 32 sequences of the part that is never trained on."""
    x, y = draw_batch(text, 32, args.context, args.device, torch.Generator().manual_seed(0))
    return cross_entropy(model(x)[0], y).item()


@torch.no_grad()
def sample(model, prompt, args, temperature=0.7):
    """Continue a prompt: each byte is drawn from softmax(logits / temperature), and read for the next."""
    ids = torch.tensor([list(prompt.encode())]).to(args.device)  # (1, T)
    for _ in range(args.length):
        logits, _ = model(ids[:, -args.context :])  # (1, T, V)
        probs = (logits[0, -1] / temperature).softmax(dim=-1)  # (V,)
        ids = torch.cat([ids, probs.multinomial(1)[None]], dim=1)
    return bytes(ids[0].tolist()).decode(errors="replace")


# --- training ---------------------------------------------------------------------------------------------------------


def train(model, text, held_out, args):
    """AdamW with warm-up and a cosine, on batches drawn at random; weight decay on everything, for brevity."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1, betas=(0.9, 0.95))
    generator, warmup, start, done = torch.Generator().manual_seed(args.seed), 20, time.perf_counter(), 0
    for step in range(1, args.steps + 1):
        x, y = draw_batch(text, args.batch_size, args.context, args.device, generator)
        logits, routings = model(x)
        loss = cross_entropy(logits, y)
        balance = sum(load_balancing_loss(*routing) for routing in routings)  # one for each layer, summed
        optimizer.zero_grad()
        (loss + args.aux_loss * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        decay = 0.1 + 0.45 * (1 + math.cos(math.pi * step / args.steps))  # from the whole rate to a tenth of it
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay * min(1, step / warmup)
        optimizer.step()
        if step == 1 or step % args.every == 0 or step == args.steps:
            now = loss.item()  # this waits for a GPU, so that the clock is right
            if not math.isfinite(now):
                raise SystemExit(f"The loss is {now} after {step} steps: try a lower --lr than {args.lr:g}")
            rate = (step - done) * y.numel() / (time.perf_counter() - start)
            held = held_out_loss(model, held_out, args)
            busiest = [f"{probs.shape[1] * load(probs, chosen).max().item():.1f}" for probs, chosen in routings]
            left = (args.steps - step) * y.numel() / rate
            print(f"{step:5} {now:8.3f} {held:9.3f} {rate:10,.0f} {left:6.0f} s  ", *busiest, flush=True)
            start, done = time.perf_counter(), step


def count(text):
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def parse(argv):
    """The arguments, and the text; ends the program with one sentence where one is bad."""
    parser = argparse.ArgumentParser(description="Train a byte-level language model with MoE layers on a text.")
    parser.add_argument("file", metavar="FILE", nargs="?", help="a text to learn (default: Python's own help pages)")
    for name, kind, default, help in [
        ("experts", count, 8, "E, the experts of a layer"),
        ("top-k", count, 2, "K, how many of them work for a token"),
        ("d-model", count, 128, "D, the width of the model"),
        ("d-ff", count, 64, "F, the width of one expert"),
        ("layers", count, 3, "how many layers"),
        ("heads", count, 4, "H, the heads of the attention"),
        ("context", count, 128, "T, the bytes of a sequence"),
        ("batch-size", count, 16, "B, the sequences of a step"),
        ("steps", count, 1000, "steps of training"),
        ("every", count, 50, "steps from one line to the next"),
        ("length", count, 500, "bytes to write in the end"),
        ("lr", float, 3e-3, "the highest learning rate"),
        ("aux-loss", float, 0.01, "coefficient of the load-balancing loss"),
        ("seed", int, 0, "of the weights, the batches and the writing"),
        ("device", str, "cpu", "cpu, cuda, mps …"),
    ]:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{help} (default: {default})")
    args = parser.parse_args(argv)
    if args.top_k > args.experts:
        parser.error(f"--top-k must be at most --experts ({args.experts}), got {args.top_k}")
    if args.d_model % (2 * args.heads):
        parser.error(f"--d-model must be a multiple of 2 · --heads ({2 * args.heads}), got {args.d_model}")
    if not (0 < args.lr < math.inf and 0 <= args.aux_loss < math.inf):
        parser.error(f"--lr must be above 0 and --aux-loss at least 0, got {args.lr} and {args.aux_loss}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed must be between 0 and 2^32 - 1, got {args.seed}")
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError):  # torch has a different one for each reason
        parser.error(f"--device must be one that this machine and its torch have, got {args.device}")
    try:
        text = read_text(args.file)
    except OSError as error:
        parser.error(f"FILE must be a file that can be read, got {args.file} ({error.strerror})")
    if len(text) // 10 <= args.context:
        parser.error(f"FILE must have {10 * args.context + 10} bytes or more for its --context, got {len(text)}")
    return args, text


def main(argv=None):
    args, text = parse(argv)
    torch.manual_seed(args.seed)
    sizes = args.d_model, args.d_ff, args.layers, args.heads, args.experts, args.top_k
    model = LanguageModel(*sizes).to(args.device)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() for p in model.layers.parameters() if p.ndim == 3) * (1 - args.top_k / args.experts)
    print(f"{total:,} parameters, of which {total - idle:,.0f} work for a token; {len(text):,} bytes of text")
    text = torch.frombuffer(bytearray(text), dtype=torch.uint8)  # (number of bytes,)
    split = len(text) - len(text) // 10  # the last tenth is held out
    print("Loss of a batch and of text held out, in nats per byte. Busiest expert of each layer over the mean of all.")
    print(" step     loss  held out   tokens/s     left   busiest", flush=True)
    train(model, text[:split], text[split:], args)
    print(f"\nWhat the model writes after 'The ':\n{sample(model, 'The ', args)}")


if __name__ == "__main__":
    main()

"""The block, drawn with the numbers of one token: a dense FFN beside a mixture, and the tokens sorted and put back."""

import torch
from torch import Tensor, nn

from moe_lessons.analysis.counting import count_parameters
from moe_lessons.nn import FeedForward, Routing, dense_baseline, dense_name, evaluating, is_moe
from moe_lessons.nn.ffn import GATED
from moe_lessons.plots.marks import Arrows, Axis, Boxes, Panel
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.theme import model_inks
from moe_lessons.support.errors import check_whole, in_words

MOST_EXPERTS = MOST_TOKENS = 16  # that have room for their numbers
WIDTH, HEIGHT = 980, 480  # of the drawing, in units of about a pixel, with the first row on top
FFN, RIGHT = 204, 974  # where the FFN and all end
LABELS, COLUMNS = 240, 318  # where the others begin
STRIP = 128
TOKEN, LOGITS = 56, 106  # the rows of the block
SECOND, THIRD = 140, 174
EXPERTS, SUM = 228, 282
COUNTS = 314
ORDER = 376  # and of the strip
SORTED, BACK = 420, 464
TEXT_ONLY, FRAME, GREY, EXPERT, INK = range(5)  # fills of `Boxes`
UNMASKED = "Weights: softmax over all experts, then top-k. They are not divided by their sum."
MASKED = "Weights: −∞ for the experts not chosen, then softmax. The same as softmax over all experts, then top-k, then "
MASKED += "divided by their sum."


def block_of(moe: nn.Module, x: Tensor, token: int) -> Panel:
    """Make the panel of `widgets.draw_block`."""
    if not is_moe(moe):
        raise ValueError(f"moe must be a mixture of experts such as nn.MoE, got {in_words(moe)}")
    if not isinstance(x, Tensor) or x.ndim != 2 or not 1 <= len(x) <= MOST_TOKENS:
        raise ValueError(f"x must have the shape (T, {moe.d_model}) with T from 1 to {MOST_TOKENS}, got {in_words(x)}")
    check_whole("token", token, 0, len(x) - 1, f"between 0 and {len(x) - 1}")
    with torch.no_grad(), evaluating(moe):
        y, routing = moe(x)
    return block_panel(moe, x, y, routing, token)


def block(view) -> Panel:
    plane, model = view.plane, view.main_run.model
    run = view.runs.get(dense_name(model.block.num_experts / model.block.top_k))
    dense = run and run.model.block
    return block_panel(model.block, plane.hidden, plane.out, plane.routing, view.state.token, dense)


def block_panel(moe, x: Tensor, y: Tensor, routing: Routing, token: int, dense=None) -> Panel:
    """Show x, y (T, D) and the `Routing` of a block, and at most 16 tokens in the strip. dense: the FFN beside it;
    None: its parameter-matched baseline."""
    dense = dense_baseline(moe, "params") if dense is None else dense
    if moe.num_experts > MOST_EXPERTS:
        raise ValueError(f"moe must have at most {MOST_EXPERTS} experts to be drawn, got {moe.num_experts}")
    if getattr(moe, "shared_expert", None) is not None:
        raise ValueError("moe must have no shared expert to be drawn, got one that has")
    is_masked, wanted = order_of(routing)
    x, y = as_array(x[token]), as_array(y[token])  # (D,)
    heads, boxes = [], []
    arrows, strip = [], []
    draw_ffn(heads, boxes, arrows, dense, moe, x)
    draw_mixture(heads, boxes, arrows, moe, routing, wanted[token].tolist(), is_masked, token, x, y)
    draw_strip(heads, boxes, arrows, strip, routing, token)
    axes = Axis(0, WIDTH, ticks=()), Axis(HEIGHT, 0, ticks=())
    parts = heads, boxes, strip
    marks = [Arrows(*zip(*arrows), token), *(Boxes(*zip(*part), token, part is heads) for part in parts)]
    title = f"The block, with the numbers of token {token}"
    size = {"width": 12, "least_width": 760, "height": HEIGHT}  # in less its letters would lie over each other
    return Panel(title, marks, *axes, **size, caption=MASKED if is_masked else UNMASKED)


def order_of(routing: Routing) -> tuple[bool, Tensor]:
    """Say whether the weights are the softmax of the chosen logits alone (else of all), and who is chosen (T, E), full
    or not. ValueError where they are neither, or where those chosen are not the K likeliest of each token."""
    logits, probs = routing.router_logits.double(), routing.router_probs  # (T, E)
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    wanted[routing.token_idx, routing.expert_idx] = True
    wanted[routing.dropped_token_idx, routing.dropped_expert_idx] = True
    top_k, others = wanted.sum(dim=1), probs.masked_fill(wanted, 0).amax(dim=1)
    if bool((top_k == top_k[0]).all() and (probs.masked_fill(~wanted, 1).amin(dim=1) >= others).all()):
        for is_masked, kept in ((True, logits.masked_fill(~wanted, -torch.inf)), (False, logits)):
            weight = kept.softmax(dim=1)[routing.token_idx, routing.expert_idx]
            if torch.allclose(weight, routing.weight.double(), atol=1e-4):
                return is_masked, wanted
    raise ValueError("moe must have a router whose weights are a softmax of its K largest logits, got another to draw")


def box(x, y, w, h, text="", fill=FRAME, expert=-1, token=-1, says="") -> tuple:
    return (x, y, w, h), text, fill, expert, token, says


def words(x, y, text: str) -> tuple:
    return box(x, y, 0, 0, text, TEXT_ONLY)


def draw_ffn(heads: list, boxes: list, arrows: list, dense: FeedForward, moe: nn.Module, x) -> None:
    """Draw on the left the FFN, its token coming in from above, in the ink of its width."""
    count = count_parameters(dense)
    middle = FFN / 2
    D, F = dense.d_model, dense.d_ff
    name = dense_name(count.total / count_parameters(dense_baseline(moe, "flops")).total)
    (ink,) = model_inks([name])
    up = f"gate and up: {D} → {F}" if dense.activation in GATED else f"up: {D} → {F}"
    rows = [(TOKEN, 24, f"x = {vector(x, 2)}", FRAME), (123, 58, up, INK + ink), (181, 28, dense.activation, INK + ink),
            (228, 38, f"down: {F} → {D}", INK + ink), (SUM, 24, f"y: {D} numbers", FRAME)]  # fmt: skip
    boxes += [box(middle, y, FFN - 8, h, text, fill) for y, h, text, fill in rows]
    boxes.append(words(4, 30, f"{name}, F = {F}"))
    for (y, h, *_), (y_to, h_to, *_) in zip(rows, rows[1:]):
        arrows.append(((middle, y + h / 2, middle, y_to - h_to / 2), -1, -1))
    heads += [words(4, 12, "Dense: every weight is used"), words(4, COUNTS, f"parameters: total {count.total:,}")]
    heads.append(words(4, COUNTS + 16, f"active for this token {count.active:,}"))


def draw_mixture(heads, boxes, arrows, moe, routing: Routing, wanted: list, is_masked: bool, token: int, x, y) -> None:
    """Draw on the right the token, its router logits, the mask, the weights, the experts and their sum."""
    E, D = moe.num_experts, moe.d_model
    count = count_parameters(moe)
    pitch, digits = min((RIGHT - COLUMNS) / E, 130), 2 if E <= 10 else 1  # of scores: there is little room
    logits, probs = (values[token].tolist() for values in (routing.router_logits, routing.router_probs))
    mine = routing.token_idx == token
    weights = dict(zip(routing.expert_idx[mine].tolist(), routing.weight[mine].tolist()))
    weight = [as_digits(weights[e]) if e in weights else "full" if wanted[e] else "0" for e in range(E)]
    lit = [EXPERT if e in weights else GREY for e in range(E)]
    masked = [as_digits(logits[e], digits) if wanted[e] else "−∞" for e in range(E)]
    second = ("top-k mask", masked, [EXPERT if w else GREY for w in wanted], "logit after the mask")
    third = ("softmax", weight, lit, "weight")
    if not is_masked:
        second, third = ("softmax", [as_digits(p) for p in probs], [FRAME] * E, "probability"), ("top-k", *third[1:])
    named = [f"E{e}" if e in weights or pitch < 60 else f"E{e} · unused" for e in range(E)]
    rows = {
        LOGITS: ("logits", [as_digits(logit, digits) for logit in logits], [FRAME] * E, "router logit"),
        SECOND: second, THIRD: third, EXPERTS: ("experts", named, lit, ""),
    }  # fmt: skip
    for e in range(E):
        middle = COLUMNS + (e + 0.5) * pitch
        for row, (_, texts, fills, says) in rows.items():
            boxes.append(box(middle, row, pitch - 5, 38 if row == EXPERTS else 24, texts[e], fills[e], e, says=says))
        arrows.append(((middle, TOKEN + 12, middle, LOGITS - 12), -1, -1))
        ends = [(LOGITS + 12, SECOND - 12), (SECOND + 12, THIRD - 12)] if wanted[e] else []
        ends += [(THIRD + 12, EXPERTS - 19), (EXPERTS + 19, SUM - 12)] if e in weights else []
        arrows += [((middle, start, middle, end), e, -1) for start, end in ends]
    terms = " + ".join(f"{as_digits(w)} · E{e}(x)" for e, w in sorted(weights.items())) or "0: every expert was full"
    terms = terms if len(weights) <= 4 else f"Σ weight · expert(x) of {len(weights)} experts"
    whole = (COLUMNS + RIGHT - 5) / 2, RIGHT - COLUMNS - 5  # middle and width
    ends = {TOKEN: f"x = {vector(x, 6)}" + f", {D} numbers" * (D > 6), SUM: f"y = {terms} = {vector(y, 3)}"}
    boxes += [box(whole[0], row, whole[1], 24, text) for row, text in ends.items()]
    labels = {30: f"a router, {D} → {E}, and {E} FFNs", TOKEN: "token", SUM: "sum"}
    boxes += [words(LABELS, row, text) for row, text in (labels | {row: said[0] for row, said in rows.items()}).items()]
    total = f"parameters: total {count.total:,}, active for this token {count.active:,}"
    title = f"Mixture of experts: {sum(wanted)} of {E} for each token"
    heads += [words(LABELS, 12, title), words(LABELS, COUNTS, total)]


def draw_strip(heads: list, boxes: list, arrows: list, strip: list, routing: Routing, selected: int) -> None:
    """Draw below the tokens in their order, sorted to their experts, and back in their order."""
    E = routing.num_experts
    room = RIGHT - STRIP
    first = selected // MOST_TOKENS * MOST_TOKENS
    tokens = range(first, min(first + MOST_TOKENS, routing.num_tokens))
    served = sorted(pair for pair in zip(routing.expert_idx.tolist(), routing.token_idx.tolist()) if pair[1] in tokens)
    pitch, slot = min(room / len(tokens), 54), min((room - 29 * E) / max(len(served), 1), 30)
    middle = {t: STRIP + (i + 0.5) * pitch for i, t in enumerate(tokens)}
    of_token = {t: [e for e, token in served if token == t] for t in tokens}
    names = {t: ", ".join(f"E{e}" for e in of_token[t]) or "no expert: all were full" for t in tokens}
    strip += [box(middle[t], ORDER, pitch - 6, 20, str(t), token=t, says=f"goes to {names[t]}") for t in tokens]
    at = STRIP
    half = (pitch - 6) / 2
    for expert in range(E):
        boxes.append(words(at + 2, SORTED, f"E{expert}"))
        at += 27
        for t in (t for e, t in served if e == expert):
            x = at + slot / 2
            part = half / len(of_token[t])
            text = str(t) if slot > 18 else ""
            back = middle[t] + (of_token[t].index(expert) + 0.5) * part
            says = f"computed by E{expert}"
            strip.append(box(x, SORTED, slot - min(2, slot / 4), 20, text, EXPERT, expert, t, says))
            strip.append(box(back, BACK, part, 20, "", EXPERT, expert, t, f"from E{expert}"))
            arrows.append(((middle[t], ORDER + 10, x, SORTED - 10), expert, t))
            arrows.append(((x, SORTED + 10, back, BACK - 10), expert, t))
            at += slot
        at += 2
    strip += [box(middle[t] - half / 2, BACK, half, 20, str(t), token=t, says=f"sum of {names[t]}") for t in tokens]
    title = "The tokens: sorted to their experts, computed, put back in their order and summed"
    heads.append(words(4, ORDER - 24, title))
    boxes += [words(4, ORDER, "in their order"), words(4, SORTED, "sorted"), words(4, BACK, "put back")]


def as_digits(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits if abs(value) < 9.995 else min(digits, 1) if abs(value) < 99.95 else 0}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−").replace("inf", "∞")


def vector(values, most: int) -> str:
    return f"({', '.join([*map(as_digits, values[:most].tolist()), *['…'] * (len(values) > most)])})"

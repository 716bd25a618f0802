"""The block, drawn with the numbers of one token: a dense FFN, in which every weight works, beside a mixture, in which
K of E experts do; and a strip of the tokens, sorted to their experts and put back."""

import torch
from torch import Tensor, nn

from moe_lessons.analysis.counting import count_parameters
from moe_lessons.nn import EQUAL_TOTAL, FeedForward, Routing, dense_twin, evaluating, is_moe
from moe_lessons.nn.ffn import GATED
from moe_lessons.plots.marks import Arrows, Axis, Boxes, Panel
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.still import figure
from moe_lessons.plots.theme import LessonFigure
from moe_lessons.support.errors import in_words, is_whole

MOST_EXPERTS = MOST_TOKENS = 16  # that have room for their numbers
WIDTH, HEIGHT = 980, 480  # of the drawing, in units of about a pixel, with the first row on top
FFN, RIGHT, LABELS, COLUMNS, STRIP = 204, 974, 240, 318, 128  # where the FFN and all end; where the others begin
TOKEN, LOGITS, SECOND, THIRD, EXPERTS, SUM, COUNTS = 56, 106, 140, 174, 228, 282, 314  # the rows of the block
ORDER, SORTED, BACK = 376, 420, 464  # and of the strip
TEXT, FRAME, GREY, EXPERT, INK = range(5)  # looks of `Boxes`


def draw_block(moe: nn.Module, x: Tensor, token: int = 0, dense: FeedForward | None = None) -> LessonFigure:
    """Draw the block with the numbers of one of the tokens x (T, D), T at most 16, as a figure.

    moe: an `MoE` or a learner's class that works as it does, of at most 16 experts, without a shared one. It is read
    in eval mode. dense: the FFN beside it; None: its equal-total twin. ValueError for a router whose weights are no
    softmax of its logits. Where the K probabilities are divided by their sum, the numbers are those of the softmax of
    the logits with −∞ for the experts not chosen: this is drawn. Where they are not divided, the softmax comes first.

    >>> from moe_lessons.nn import MoE
    >>> draw_block(MoE(d_model=4, d_ff=8, num_experts=4, top_k=2), torch.randn(6, 4), token=3)
    <LessonFigure size 980x520 with 1 Axes>
    """
    if not is_moe(moe):
        raise ValueError(f"moe must be a mixture of experts such as nn.MoE, got {in_words(moe)}")
    if not isinstance(x, Tensor) or x.ndim != 2 or not 1 <= len(x) <= MOST_TOKENS:
        raise ValueError(f"x must have the shape (T, {moe.d_model}) with T from 1 to {MOST_TOKENS}, got {in_words(x)}")
    if not is_whole(token, 0, len(x) - 1):
        raise ValueError(f"token must be between 0 and {len(x) - 1}, got {token!r}")
    with torch.no_grad(), evaluating(moe):
        y, routing = moe(x)
    return figure([block_panel(moe, x, y, routing, token, dense)])


def block(view) -> Panel:
    """Draw the block of the view with the numbers of the selected token."""
    plane, model = view.plane, view.main_run.model
    twin = view.runs[EQUAL_TOTAL].model.block if EQUAL_TOTAL in view.runs else None
    return block_panel(model.block, plane.hidden, plane.out, plane.routing, view.selected, twin)


def block_panel(
    moe: nn.Module, x: Tensor, y: Tensor, routing: Routing, token: int, dense: FeedForward | None = None
) -> Panel:
    """Show x (T, D), y (T, D) and the `Routing` of a block as `draw_block` does; of more than 16 tokens the strip has
    those 16 among which the selected one is."""
    dense = dense_twin(moe, "total") if dense is None else dense
    if not isinstance(dense, FeedForward):
        raise ValueError(f"dense must be a FeedForward or None, got {in_words(dense)}")
    if moe.num_experts > MOST_EXPERTS:
        raise ValueError(f"moe must have at most {MOST_EXPERTS} experts to be drawn, got {moe.num_experts}")
    if getattr(moe, "shared_expert", None) is not None or getattr(moe.experts, "weight_input", False):
        raise ValueError("moe must have no shared expert and no weight_input to be drawn, got one that has")
    is_masked, wanted = order_of(routing)
    x, y = as_array(x[token]), as_array(y[token])  # (D,)
    heads, marks, strip = Drawing(strong=True), Drawing(), Drawing()
    draw_ffn(heads, marks, dense, moe, x)
    draw_mixture(heads, marks, moe, routing, wanted[token].tolist(), is_masked, token, x, y)
    draw_strip(heads, marks, strip, routing, token)
    caption = "Weights: softmax over all experts, then top-k. They are not divided by their sum."
    if is_masked:
        caption = "Weights: −∞ for the experts not chosen, then softmax. The same as softmax over all experts, then "
        caption += "top-k, then divided by their sum."
    axes = Axis(0, WIDTH, ticks=()), Axis(HEIGHT, 0, ticks=())
    arrows = Arrows(*zip(*marks.arrows), token)
    parts = [arrows, *(Boxes(*zip(*own.boxes), token, own.strong) for own in (heads, marks, strip))]
    title = f"The block, with the numbers of token {token}"
    return Panel(title, parts, *axes, width=12, height=HEIGHT, caption=caption)


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


class Drawing:
    """Collects boxes and arrows. strong: bold letters."""

    def __init__(self, strong: bool = False):
        self.boxes, self.arrows, self.strong = [], [], strong

    def box(self, x, y, w, h, text="", look=FRAME, expert=-1, token=-1, says="") -> None:
        """See `Boxes`."""
        self.boxes.append((x, y, w, h, text, look, expert, token, says))

    def text(self, x, y, text) -> None:
        """Begin a text at x."""
        self.box(x, y, 0, 0, text, TEXT)

    def arrow(self, x, y, x_to, y_to, expert=-1, token=-1) -> None:
        """See `Arrows`."""
        self.arrows.append((x, y, x_to, y_to, expert, token))


def draw_ffn(heads: Drawing, drawing: Drawing, dense: FeedForward, moe: nn.Module, x) -> None:
    """Draw on the left the FFN, its token coming in from above, in the ink of what it is to the mixture."""
    count, middle, D, F = count_parameters(dense), FFN / 2, dense.d_model, dense.d_ff
    twins = ("total", "equal-total twin", 2), ("active", "equal-active twin", 1)
    is_twin = ((name, ink) for match, name, ink in twins if count_parameters(dense_twin(moe, match)) == count)
    name, ink = next(is_twin, ("", 3))
    up = f"gate and up: {D} → {F}" if dense.activation in GATED else f"up: {D} → {F}"
    rows = [(TOKEN, 24, f"x = {vector(x, 2)}", FRAME), (123, 58, up, INK + ink), (181, 28, dense.activation, INK + ink),
            (228, 38, f"down: {F} → {D}", INK + ink), (SUM, 24, f"y: {D} numbers", FRAME)]  # fmt: skip
    for y, h, text, look in rows:
        drawing.box(middle, y, FFN - 8, h, text, look)
    for (y, h, *_), (y_to, h_to, *_) in zip(rows, rows[1:]):
        drawing.arrow(middle, y + h / 2, middle, y_to - h_to / 2)
    heads.text(4, 12, "Dense: every weight works")
    drawing.text(4, 30, f"{name}, F = {F}".removeprefix(", "))
    heads.text(4, COUNTS, f"parameters: total {count.total:,}")
    heads.text(4, COUNTS + 16, f"active for this token {count.active:,}")


def draw_mixture(heads, drawing, moe, routing: Routing, wanted: list[bool], is_masked: bool, token: int, x, y) -> None:
    """Draw on the right the token, its router logits, the mask, the weights, the experts and their sum."""
    E, K, D = moe.num_experts, sum(wanted), moe.d_model
    pitch, digits = min((RIGHT - COLUMNS) / E, 130), 2 if E <= 10 else 1  # of scores: there is little room
    columns, whole = [COLUMNS + (e + 0.5) * pitch for e in range(E)], (COLUMNS + RIGHT - 5) / 2
    logits, probs = (values[token].tolist() for values in (routing.router_logits, routing.router_probs))
    mine = routing.token_idx == token
    weights = dict(zip(routing.expert_idx[mine].tolist(), routing.weight[mine].tolist()))
    weight = [number(weights[e]) if e in weights else "full" if wanted[e] else "0" for e in range(E)]
    lit = [EXPERT if e in weights else GREY for e in range(E)]
    masked = [number(logits[e], digits) if wanted[e] else "−∞" for e in range(E)]
    second = ("top-k mask", masked, [EXPERT if w else GREY for w in wanted], "logit after the mask")
    third = ("softmax", weight, lit, "weight")
    if not is_masked:
        second, third = ("softmax", [number(p) for p in probs], [FRAME] * E, "probability"), ("top-k", *third[1:])
    named = [f"E{e}" if e in weights or pitch < 60 else f"E{e} · idle" for e in range(E)]
    rows = {
        LOGITS: ("logits", [number(logit, digits) for logit in logits], [FRAME] * E, "router logit"),
        SECOND: second, THIRD: third, EXPERTS: ("experts", named, lit, ""),
    }  # fmt: skip
    for row, (label, texts, looks, says) in rows.items():
        drawing.text(LABELS, row, label)
        for e in range(E):
            drawing.box(columns[e], row, pitch - 5, 38 if row == EXPERTS else 24, texts[e], looks[e], e, says=says)
    for e in range(E):
        drawing.arrow(columns[e], TOKEN + 12, columns[e], LOGITS - 12)
        for start, end in ((LOGITS + 12, SECOND - 12), (SECOND + 12, THIRD - 12)) if wanted[e] else ():
            drawing.arrow(columns[e], start, columns[e], end, e)
        for start, end in ((THIRD + 12, EXPERTS - 19), (EXPERTS + 19, SUM - 12)) if e in weights else ():
            drawing.arrow(columns[e], start, columns[e], end, e)
    drawing.text(LABELS, TOKEN, "token")
    drawing.box(whole, TOKEN, RIGHT - COLUMNS - 5, 24, f"x = {vector(x, 6)}" + f", {D} numbers" * (D > 6), FRAME)
    terms = " + ".join(f"{number(w)} · E{e}(x)" for e, w in sorted(weights.items())) or "0: every expert was full"
    terms = terms if len(weights) <= 4 else f"Σ weight · expert(x) of {len(weights)} experts"
    drawing.text(LABELS, SUM, "sum")
    drawing.box(whole, SUM, RIGHT - COLUMNS - 5, 24, f"y = {terms} = {vector(y, 3)}", FRAME)
    heads.text(LABELS, 12, f"Mixture of experts: {K} of {E} work for a token")
    count = count_parameters(moe)
    drawing.text(LABELS, 30, f"a router, {D} → {E}, and {E} FFNs")
    heads.text(LABELS, COUNTS, f"parameters: total {count.total:,}, active for this token {count.active:,}")


def draw_strip(heads: Drawing, drawing: Drawing, strip: Drawing, routing: Routing, selected: int) -> None:
    """Draw below the tokens in their order, sorted to their experts, and back in their order."""
    E, room = routing.num_experts, RIGHT - STRIP
    first = selected // MOST_TOKENS * MOST_TOKENS
    tokens = range(first, min(first + MOST_TOKENS, routing.num_tokens))
    served = sorted(pair for pair in zip(routing.expert_idx.tolist(), routing.token_idx.tolist()) if pair[1] in tokens)
    pitch, slot = min(room / len(tokens), 54), min((room - 29 * E) / max(len(served), 1), 30)
    middle = {t: STRIP + (i + 0.5) * pitch for i, t in enumerate(tokens)}
    of_token = {t: [e for e, token in served if token == t] for t in tokens}
    names = {t: ", ".join(f"E{e}" for e in of_token[t]) or "no expert: all were full" for t in tokens}
    for t in tokens:
        strip.box(middle[t], ORDER, pitch - 6, 20, str(t), token=t, says=f"goes to {names[t]}")
    at = STRIP
    for expert in range(E):
        own = [t for e, t in served if e == expert]
        drawing.text(at + 2, SORTED, f"E{expert}")
        at += 27
        for t in own:
            x, k = at + slot / 2, of_token[t].index(expert)
            text, says = str(t) if slot > 18 else "", f"computed by E{expert}"
            strip.box(x, SORTED, slot - min(2, slot / 4), 20, text, EXPERT, expert, t, says)
            part = (pitch - 6) / 2 / len(of_token[t])
            back = middle[t] + (k + 0.5) * part
            strip.box(back, BACK, part, 20, "", EXPERT, expert, t, f"from E{expert}")
            drawing.arrow(middle[t], ORDER + 10, x, SORTED - 10, expert, t)
            drawing.arrow(x, SORTED + 10, back, BACK - 10, expert, t)
            at += slot
        at += 2
    for t in tokens:
        strip.box(middle[t] - (pitch - 6) / 4, BACK, (pitch - 6) / 2, 20, str(t), token=t, says=f"sum of {names[t]}")
    heads.text(4, ORDER - 24, "The tokens: sorted to their experts, computed, put back in their order and summed")
    for row, label in ((ORDER, "in their order"), (SORTED, "sorted"), (BACK, "put back")):
        drawing.text(4, row, label)


def number(value: float, digits: int = 2) -> str:
    """Write with so many decimals, fewer of a large number."""
    text = f"{value:.{digits if abs(value) < 9.995 else min(digits, 1) if abs(value) < 99.95 else 0}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−").replace("inf", "∞")


def vector(values, most: int) -> str:
    """Write the first numbers of many."""
    return f"({', '.join([*map(number, values[:most].tolist()), *['…'] * (len(values) > most)])})"

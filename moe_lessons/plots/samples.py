"""What a language model writes, and how surprised it is by what others wrote."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for, shortened

SIGNS = {"\n": "↵"}  # what stands for a character that cannot be drawn; for all others a ·
FONT = "monospace"


def visible(char: str) -> str:
    """The character itself if it can be drawn, else a sign in its place."""
    return char if char.isprintable() and ord(char) in _drawable() else SIGNS.get(char, "·")


@functools.cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


class WrittenText(Panel):
    """For each name a text in a typewriter's letters, wrapped to `width` characters and `lines` lines."""

    title = "What it writes"

    def __init__(
        self, ax: Axes, theme: Theme = LIGHT, names: Sequence[str] = ("text",), width: int = 41, lines: int = 4
    ):
        super().__init__(ax, theme)
        ax.set_axis_off()
        self.width, self.lines, self.texts = width, lines, []
        write = {"transform": ax.transAxes, "va": "top"}
        for i, name in enumerate(names):
            y = 0.98 - i / len(names)
            name = shortened(name, width)
            ax.text(0, y, name, color=theme.muted, fontsize=8.5, weight="bold", parse_math=False, **write)
            line = 1 / (len(names) * (lines + 1.6))
            look = {"fontsize": 7.5, "family": FONT, "color": theme.foreground, "parse_math": False}
            self.texts.append(ax.text(0, y - 1.2 * line, "", **look, **write))
        self.slow = list(self.texts)

    def update(self, texts: Sequence[str]) -> None:
        """texts: one for each name. A line break is shown as ↵ and what cannot be drawn as ·."""
        for artist, text in zip(self.texts, texts, strict=True):
            seen = "".join(map(visible, text))  # cut by hand: textwrap would drop spaces at the ends of lines
            rows = [seen[i : i + self.width] for i in range(0, len(seen), self.width)]
            artist.set_text("\n".join(rows[: self.lines]))


def written_text(texts: Mapping[str, str], title: str = "", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Show texts under their names, at most two lines of 90 characters each."""
    ax, colors = axes_for(ax, theme, width=8, height=0.4 + 0.56 * len(texts))
    panel = WrittenText(ax, colors, tuple(texts), width=90, lines=2)
    panel.update(list(texts.values()))
    ax.set_title(title or panel.title, loc="left", fontsize=10, color=colors.foreground, pad=6)
    return ax


def byte_losses(text: str, losses: Sequence[float], ax: Axes | None = None, theme: str = "light") -> Axes:
    """The loss of each character of `text`, in nats: a bar over the character. Both have the same length."""
    if len(text) != len(losses):
        raise ValueError(f"losses must have one number for each of the {len(text)} characters, got {len(losses)}")
    ax, colors = axes_for(ax, theme, width=9.5, height=2.2)
    ax.set_facecolor(colors.background)
    places = np.arange(len(text))
    ax.bar(places, losses, width=0.85, color=colors.lines[2])
    ax.set_xticks(places, ["␣" if c == " " else visible(c) for c in text], family=FONT, fontsize=9)
    ax.tick_params(length=0, colors=colors.foreground)
    ax.set_xlim(-0.7, len(text) - 0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(colors.grid)
    ax.set_ylabel("loss (nats)", color=colors.foreground, fontsize=9)
    ax.set_title("How much each byte surprised the model", loc="left", fontsize=10, color=colors.foreground)
    return ax


def attention_heatmap(weights, text: str, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Who looks at whom: `weights` (T, T), a row for each token of `text`, a column for each that it may look at."""
    weights = np.asarray(weights)
    if weights.shape != (len(text), len(text)):
        raise ValueError(f"weights must have the shape {(len(text), len(text))} of the text, got {weights.shape}")
    ax, colors = axes_for(ax, theme, width=4.8, height=4.2)
    ax.set_facecolor(colors.background)
    image = ax.imshow(weights, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    signs = ["␣" if c == " " else visible(c) for c in text]
    ax.set_xticks(range(len(text)), signs, family=FONT)
    ax.set_yticks(range(len(text)), signs, family=FONT)
    ax.tick_params(length=0, colors=colors.foreground, labelsize=9)
    ax.set_xlabel("looks at", color=colors.foreground, fontsize=9)
    ax.set_ylabel("token", color=colors.foreground, fontsize=9)
    ax.set_title("Attention weights of one head", loc="left", fontsize=10, color=colors.foreground)
    bar = ax.figure.colorbar(image, ax=ax, label="share of the attention")
    bar.ax.tick_params(labelsize=8, colors=colors.muted)
    bar.ax.yaxis.label.set(color=colors.muted, fontsize=8.5)
    return ax

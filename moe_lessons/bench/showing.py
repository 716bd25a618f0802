"""The tables and the picture of a benchmark's report."""

from collections.abc import Iterable
from itertools import groupby

from moe_lessons.analysis.timing import Ratio
from moe_lessons.bench.sizes import FORWARD, PASSES, Size
from moe_lessons.nn import DISPATCH
from moe_lessons.plots import LIGHT, LessonFigure, cost_by_experts, time_ratios

WIDE, NARROW = 34, 9  # columns


def as_text(report: dict) -> str:
    """The tables."""
    machine = report["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    on = f"{machine['cpu']}, {threads}" if machine["device"] == "cpu" else machine["device"]
    hf = f"transformers {machine['transformers']}" if machine["transformers"] else "no transformers (5.18 or newer)"
    parts = [
        [f"{on}; torch {machine['torch']}, {hf}, Python {machine['python']}, {machine['system']}"],
        [
            "Time of an MoE layer over that of a dense FFN of equal active size (K·F wide): median over rounds in",
            "which they take turns, and quartiles. HF: the same layer as a block of transformers. The milliseconds",
            "are for orientation only.",
        ],
        *layer_blocks(report["layers"]),
        ["Decoding: few tokens, forward"],
        *layer_blocks(report["decoding"]),
        [
            "Time of each dispatch over that of 'auto', in turns. The one that 'auto' takes comes out near 1; one that",
            "is clearly below 1 would have been the better choice.",
        ],
        *map(line_table, report["lines"]),
        *grid_tables(report["grid"]),
        growth_table(report["growth"]),
        ["Peak extra memory of a forward pass over that of the dense FFN of equal active size"],
        *map(memory_block, report["memory"]),
        [
            "A whole language model: the time of others over that of the MoE, which is the faster where it is above 1.",
            "Beside a dense model of equal active size it need not be: below 1 is what the routing costs.",
        ],
        *map(language_block, report["language"]),
    ]
    steps = ", ".join(f"{name} {ms:.2f} ms" for name, ms in report["playground_ms_per_step"].items())
    parts.append([f"A training step of the playground, one thread: {steps}"])
    return "\n\n".join("\n".join(part) for part in parts)


def layer_blocks(rows: Iterable[dict]) -> Iterable[list[str]]:
    """For each size a table: ways down, passes across."""
    for size, passes in groupby(rows, key=lambda row: row["size"]):
        passes = list(passes)
        lines = [columns(Size(**size), *(row["pass"] for row in passes))]
        lines.append(columns("  dense FFN", *(f"{row['ffn_ms']:.2f} ms" for row in passes)))
        for name in dict.fromkeys(name for row in passes for name in (*row["ratios"], *row["skipped"])):
            lines.append(columns(f"  {name}", *(ratio_or_reason(row, name) for row in passes)))
        lines.append(columns("  auto takes", *(row["auto_takes"] for row in passes)))
        if any(row["hf_over_auto"] for row in passes):
            lines.append(columns("  best HF over auto", *map(best_rival, passes)))
        yield lines


def ratio_or_reason(row: dict, name: str) -> str:
    return str(Ratio(**row["ratios"][name])) if name in row["ratios"] else f"skipped: {row['skipped'].get(name, '')}"


def best_rival(row: dict) -> str:
    """How many times as long as 'auto' the fastest of Hugging Face's implementations takes."""
    ratios = [Ratio(**ratio) for ratio in row["hf_over_auto"].values()]
    return str(min(ratios, key=lambda ratio: ratio.median, default="skipped"))


def line_table(rows: list[dict]) -> list[str]:
    """For each size of a line the medians of all dispatches over 'auto'."""
    lines = [f"{rows[0]['pass']:<{WIDE}}" + "".join(f"{way:>{NARROW}}" for way in DISPATCH) + "   fastest  auto takes"]
    for row in rows:
        medians = {way: ratio["median"] for way, ratio in row["over_auto"].items()}
        cells = [f"{medians[way]:.2f}" if way in medians else "skipped" for way in DISPATCH]
        end = f"   {min(medians, key=medians.get):<9}{row['auto_takes']}"
        lines.append(f"{Size(**row['size'])!s:<{WIDE}}" + "".join(f"{cell:>{NARROW}}" for cell in cells) + end)
    reasons = {way: reason for row in rows for way, reason in row["skipped"].items()}
    return lines + [f"  {way} skipped: {reason}" for way, reason in reasons.items()]


def grid_tables(rows: list[dict]) -> Iterable[list[str]]:
    """The best of Hugging Face over 'auto', T down and E across."""
    if rows:
        size = rows[0]["size"]
        yield [
            f"Time of the best HF implementation over that of 'auto' (K={size['top_k']} D={size['d_model']} "
            f"F={size['d_ff']}): above 1, 'auto' is faster"
        ]
    for which, of_pass in groupby(rows, key=lambda row: row["pass"]):
        cells = {(row["size"]["num_tokens"], row["size"]["num_experts"]): best_rival(row) for row in of_pass}
        tokens, experts = (list(dict.fromkeys(numbers)) for numbers in zip(*cells))
        yield [
            f"{which:<20}" + "".join(f"{f'E={e}':<20}" for e in experts).rstrip(),
            *(f"{f'T={t}':<20}" + "".join(f"{cells[t, e]:<20}" for e in experts).rstrip() for t in tokens),
        ]


def growth_table(rows: list[dict]) -> list[str]:
    """The time of 'auto' at each E over that at the first."""
    sizes = [Size(**size) for size in rows[0]["sizes"]]
    lines = [f"Time of 'auto' with more experts over that with {sizes[0].num_experts}, all else equal", ""]
    lines.append(columns("", *(row["pass"] for row in rows)))
    for i, size in enumerate(sizes):
        lines.append(columns(size, *(Ratio(**row["ratios"][i]) for row in rows)))
    return lines


def memory_block(found: dict) -> list[str]:
    """For one size a table: ways down, without and with gradient across."""
    kinds = found["ratios"]
    lines = [columns(Size(**found["size"]), *kinds)]
    lines.append(columns("  dense FFN", *(f"{found['ffn_bytes'][kind] / 1e6:.1f} MB" for kind in kinds)))
    for name in next(iter(kinds.values())):
        lines.append(columns(f"  {name}", *(f"{kinds[kind][name]:.2f}" for kind in kinds)))
    return lines + [columns(f"  {name}", f"skipped: {reason}") for name, reason in found["skipped"].items()]


def language_block(found: dict) -> list[str]:
    """For one plan a table: rivals down."""
    return [found["plan"], *(columns(f"  {name}", Ratio(**ratio)) for name, ratio in found["over_moe"].items())]


def columns(*cells: object) -> str:
    return "".join(f"{cell!s:<{WIDE}}" for cell in cells).rstrip()


def draw(report: dict) -> LessonFigure:
    """The ratios of all layers in both passes and while decoding, and the cost against E."""
    rows = {which: [row for row in report["layers"] if row["pass"] == which] for which in PASSES}
    panels = {f"{which}: time over that of the dense FFN": rows[which] for which in PASSES}
    panels["decoding, forward: time over that of the dense FFN"] = report["decoding"]
    ways = list(dict.fromkeys(way for of_panel in panels.values() for row in of_panel for way in row["ratios"]))
    figure = LessonFigure(14, 4 + 1.6 * len(rows[FORWARD]), LIGHT)
    for ax, (title, of_panel) in zip(figure.subplots(2, 2).flat, panels.items()):
        ratios = {str(Size(**row["size"])): {way: Ratio(**r) for way, r in row["ratios"].items()} for row in of_panel}
        time_ratios(ratios, ways, title, ax=ax)
    figure.axes[0].get_legend().remove()  # its neighbour has the same
    growth = {row["pass"]: [Ratio(**ratio) for ratio in row["ratios"]] for row in report["growth"]}
    cost_by_experts([size["num_experts"] for size in report["growth"][0]["sizes"]], growth, ax=figure.axes[3])
    return figure

"""What a published model costs: all figures of its configuration, and the same in words."""

from collections import Counter
from typing import Any

from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, machines, on_machine
from moe_lessons.hub.published import PublishedCount
from moe_lessons.plots.theme import short_number

TYPES = ("bfloat16", "fp8", "4-bit")  # of the weights, on the machines


def cost_report(counted: PublishedCount, context: int = 4096) -> dict[str, Any]:
    """All figures, under the keys of --json; bytes are bytes, and a FLOP is a multiply or an add."""
    sizes, notes = counted.sizes, list(counted.notes)
    kinds = Counter()
    for group in sizes.groups:
        kinds[group.num_experts, group.top_k] += group.layers
    num_experts, top_k = kinds.most_common(1)[0][0] if kinds else (None, None)
    if sizes.cached is None:
        notes.append("its KV cache is compressed in a way that is not counted: times and memory are without it")
    if unmet := sum(group.layers * group.top_k * group.expert for group in sizes.groups if not group.is_met):
        notes.append(f"active_params counts experts for other tokens than text too: {unmet:,} parameters")
    if sizes.outside:
        notes.append(f"{sizes.outside:,} parameters are of parts that a token of text does not meet (image, sound)")
    known = sizes.cached is not None
    return {
        "class": counted.class_name,
        "model_type": counted.model_type,
        "total_params": sizes.total,
        "active_params": sizes.active,
        "is_dense": not kinds,
        "num_experts": num_experts,
        "top_k": top_k,
        "moe_blocks": sum(kinds.values()),
        "experts": [{"num_experts": e, "top_k": k, "blocks": count} for (e, k), count in kinds.items()],
        "weight_bytes": {dtype: round(size * sizes.total) for dtype, size in WEIGHT_BYTES.items()},
        "kv_cache_bytes_per_token": {t: round(CACHE_BYTES[t] * sizes.cache(1)) for t in CACHES} if known else None,
        "kv_cache_layers": sum(layer.layers for layer in sizes.cached) if known else None,
        "kv_cache_windows": sorted({c.window for c in sizes.cached or () if c.window}),
        "context_length": context,
        "kv_cache_bytes": {t: round(CACHE_BYTES[t] * sizes.cache(context)) for t in CACHES} if known else None,
        "flops_per_token": sizes.flops(),
        "flops_per_token_with_context": sizes.flops(context),
        "machines": {
            name: {dtype: on_machine(sizes, row, dtype, context) for dtype in TYPES}
            for name, row in machines().iterrows()
        },
        "notes": notes,
    }


CACHES = ("float32", "bfloat16", "fp8")


def as_tables(report: dict[str, Any]) -> str:
    """The same as tables of text."""
    total, active, context = report["total_params"], report["active_params"], report["context_length"]
    kinds = [f"{k['top_k']} of {k['num_experts']} experts in {k['blocks']} blocks" for k in report["experts"]]
    lines = [f"{report['class']}: " + ("; ".join(kinds) or "dense: a token uses every parameter"), ""]
    lines += [f"total parameters    {total:>20,}  {short_number(total)}: what memory must hold"]
    lines += [f"active parameters   {active:>20,}  {short_number(active)}: what a token uses, {active / total:.1%}"]
    flops, longer = report["flops_per_token"], short_number(report["flops_per_token_with_context"])
    lines += [f"FLOPs for a token   {flops:>20,}  {short_number(flops)}; with {context:,} tokens of context {longer}"]
    lines += ["", f"{'gigabytes in':28}" + "".join(f"{dtype:>10}" for dtype in WEIGHT_BYTES)]
    lines += [f"{'weights':28}" + "".join(f"{size / 1e9:10,.4g}" for size in report["weight_bytes"].values())]
    caches = report["kv_cache_bytes"]
    said = "".join(f"{size / 1e9:10,.3g}" for size in caches.values()) if caches else "   unknown"
    lines += [f"{f'KV cache of {context:,} tokens':28}{said}", ""]
    speeds = "".join(f"{dtype:>9}" for dtype in TYPES)
    heads = f"{'memory':>8}  {'fits in':22}{'tokens/s, batch 1, at best':>27}"
    lines += [f"{'on one machine':22}{heads}   arithmetic"]
    lines += [f"{'':22}{'GB':>8}  {', '.join(TYPES):22}{speeds}   rules from batch"]
    memory = machines().memory_bytes
    for name, row in report["machines"].items():
        fits = ", ".join("yes" if row[dtype]["fits"] else "no" for dtype in TYPES)
        speeds = "".join(f"{row[dtype]['tokens_per_second']:9,.0f}" for dtype in TYPES)
        batch = row["bfloat16"]["arithmetic_batch"]
        lines += [f"{name:22}{memory[name] / 1e9:8.0f}  {fits:22}{speeds}   {f'{batch:,}' if batch else 'never'}"]
    lines += ["", "Speeds are those of the roofline: what one machine would do at best, if the model fitted into it."]
    lines += ["The last column is for bfloat16 and short texts: a long KV cache puts it off."]
    return "\n".join([*lines, *(f"Note: {note}." for note in report["notes"])])

"""Write real_routing.csv and real_tokens.csv anew: which experts of two real models served which text.

    git clone https://github.com/allenai/OLMoE && python data/make_real_routing.py OLMoE

The folder scripts/routing_output there has what the authors of OLMoE counted (arXiv:2409.02060; Apache-2.0)."""

import pickle
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from moe_lessons.analysis.traces import mutual_information, shuffled_counts

HERE, LAYERS = Path(__file__).parent, (0, 7, 15)
MODELS = {"mistral": (8, 2), "olmoe": (64, 8)}  # their name in the folder: E, K
OLMOE_DOMAINS = ("arxiv", "book", "c4", "github", "wikipedia")
WITH_TOKENS = ("arxiv", "book", "github", "wikipedia")  # the folder has no tokens of c4 for OLMoE
OFTEN = 50  # a token counts that occurs as often as this
ALLOWED = {"Counter": Counter, "defaultdict": defaultdict, "dtype": np.dtype, "scalar": np._core.multiarray.scalar}


class Counters(pickle.Unpickler):
    """A reader of counters, which refuses everything else that a pickle can bring along."""

    def find_class(self, module: str, name: str):
        if module.split(".")[0] not in ("collections", "numpy") or name not in ALLOWED:
            raise pickle.UnpicklingError(f"a counter was expected, got {module}.{name}")
        return ALLOWED[name]


def read(folder: Path, model: str, kind: str, domain: str) -> list:
    """Give what was counted in each of `LAYERS`."""
    with open(folder / "scripts" / "routing_output" / model / kind / f"{domain}.pkl", "rb") as file:
        return Counters(file).load()


def routing(folder: Path) -> pd.DataFrame:
    """Make a row for each model, layer, domain and expert: how many assignments it has."""
    rows = []
    for model, (experts, _) in MODELS.items():
        counted = {domain: read(folder, model, "expert_counts", domain) for domain in OLMOE_DOMAINS}
        for place, layer in enumerate(LAYERS):
            rows += [(model, layer, d, e, int(own[place][e])) for d, own in counted.items() for e in range(experts)]
    return pd.DataFrame(rows, columns=["model", "layer", "domain", "expert", "assignments"])


def tokens(folder: Path) -> pd.DataFrame:
    """Make a row for each model and layer: what an expert tells of token and domain, in bits, and the controls."""
    rows = []
    for model, (experts, top_k) in MODELS.items():
        counted = [read(folder, model, "eid2token", domain) for domain in WITH_TOKENS]
        for place, layer in enumerate(LAYERS):
            kinds = {int(token): 0 for own in counted for of_expert in own[place].values() for token in of_expert}
            number = {token: i for i, token in enumerate(kinds)}
            table = np.zeros((len(WITH_TOKENS), experts, len(kinds)), dtype=int)
            for domain, own in enumerate(counted):
                for expert, of_expert in own[place].items():
                    for token, times in of_expert.items():
                        table[domain, int(expert), number[int(token)]] += times
            kept = table[:, :, table.sum(axis=(0, 1)) >= OFTEN * top_k]
            row = {"model": model, "layer": layer, "kinds": kept.shape[2], "counted": kept.sum() / table.sum()}
            dealt = [shuffled_counts(of_token) for of_token in np.moveaxis(kept, 2, 0)]
            by_token, by_domain = kept.sum(axis=0).T, kept.sum(axis=2)
            for name, counts, control in (
                ("token", by_token, shuffled_counts(by_token)),
                ("domain", by_domain, shuffled_counts(by_domain)),
                ("domain_given_token", kept, np.stack(dealt, axis=2)),
                ("token_given_domain", kept.T, np.stack([shuffled_counts(own.T) for own in kept], axis=2)),
            ):
                row[name], row[f"{name}_shuffled"] = mutual_information(counts), mutual_information(control)
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    for name, made in (("real_routing", routing), ("real_tokens", tokens)):
        made(Path(sys.argv[1])).to_csv(HERE / f"{name}.csv", index=False, float_format="%.4f", lineterminator="\n")

"""What lesson 08 says under 'What to notice', measured over five seeds, trained together as bands."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis.counting import flops_per_token
from moe_lessons.analysis.load import balance_by_layer, load_statistics
from moe_lessons.analysis.results import last_of, load_plane_sweep
from moe_lessons.nn import LanguageModel, Routing, TopKRouter, TransformerConfig, load_balancing_loss, seeded
from moe_lessons.tasks import TextTask
from moe_lessons.training import (
    BALANCING_METHODS,
    DEAD_SHARE,
    PRESETS,
    PlaneSetting,
    Run,
    SeedBand,
    balancing_setting,
    plane_model,
    train,
)

SEEDS = seeds(5)
COLLAPSE = PRESETS["collapse"]
NARROW = replace(COLLAPSE, task="checker", d_ff=1)  # the experts of one hidden unit
MANY, MOST = seeds(8), seeds(24)  # where they differ much, and very much
FIRM = BALANCING_METHODS["auxiliary loss"]["router_aux_loss_coef"]
NOISE_JITTER_Z_CAPACITY = ("Gaussian noise", "learned noise", "jitter", "z-loss", "capacity")


def on(band: Run, steps: int) -> Run:
    train(band, steps)
    return band


@cache
def trained(setting: PlaneSetting, own: range = SEEDS, steps: int = 300) -> SeedBand:
    """Train a setting from the start."""
    return on(SeedBand(setting, own), steps)


@cache
def cured(setting: PlaneSetting) -> SeedBand:
    """Train the plain collapse for 100 steps, then 100 with a balancing method."""
    return on(collapsed().branch(setting), 100)


@cache
def collapsed() -> SeedBand:
    return on(SeedBand(COLLAPSE, SEEDS), 100)


def trained_by(name: str, steps: int = 300, own: range = SEEDS) -> SeedBand:
    """Train what one of the laboratory's tiles shows."""
    return trained(balancing_setting(name), own, steps=steps)


def dead(band: SeedBand) -> np.ndarray:
    """Count the dead experts of each seed, without noise: (S,)."""
    return (band.clean_loads() * band.setting.top_k < DEAD_SHARE).sum(axis=1)


def recent(band: SeedBand, name: str) -> np.ndarray:
    """Return the mean over the last 20 steps of what the records have for each seed (S,), or for all (a number)."""
    return np.mean([(vars(record) | record.auxiliary)[name] for record in band.records[-20:]], axis=0)


def accuracies(band: SeedBand) -> np.ndarray:
    return band.evaluate(2048)["accuracies"]


def max_over_mean(band: SeedBand) -> np.ndarray:
    """Divide the largest load of each seed by the mean load, without noise: (S,)."""
    loads = band.clean_loads()
    return loads.max(axis=1) / loads.mean(axis=1)


@pytest.mark.claim("pooling-hides-a-collapse")
@pytest.mark.parametrize("seed", seeds(5))
def test_pooling_hides_a_collapse(seed):
    torch.manual_seed(seed)
    x, routings = torch.randn(256, 8), []
    for layer in range(4):
        router = TopKRouter(8, 4, 1, bias=True)
        with torch.no_grad():
            router.bias[layer] = 20.0
        routings.append(router(x))
    meter = balance_by_layer(routings)
    assert (meter.dead == 3).all() and (meter.max_over_mean == 4).all()
    assert (meter.load_balancing_loss > 3.99).all()
    parts = ("router_logits", "router_probs", "topk_indices", "topk_weights")
    pooled = Routing.from_topk(*(torch.cat([getattr(routing, part) for routing in routings]) for part in parts))
    assert load_statistics(pooled).dead == 0 and load_statistics(pooled).max_over_mean == 1
    assert load_balancing_loss(pooled).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.claim("three-methods-keep-every-expert")
@pytest.mark.parametrize("steps", [100, 300])
def test_three_methods_keep_every_expert(steps):
    assert dead(trained_by("auxiliary loss", steps)).mean() < 0.3
    assert dead(trained_by("expert choice", steps)).max() == 0
    assert dead(trained_by("bias update", steps)).mean() < 0.7
    others = set(BALANCING_METHODS) - {"auxiliary loss", "expert choice", "bias update"}
    assert min(dead(trained_by(name, steps)).mean() for name in others) > 1


@pytest.mark.claim("the-others-lose-about-as-many-as-nothing")
@pytest.mark.parametrize("steps", [100, 300])
def test_the_others_lose_about_as_many_as_nothing(steps):
    alone = dead(trained_by("no balancing", steps))
    assert alone.mean() > 2.3  # of eight
    for name in NOISE_JITTER_Z_CAPACITY:
        assert dead(trained_by(name, steps)).mean() > alone.mean() - 0.9, name
    assert dead(trained_by("top-2", steps)).mean() < alone.mean() - 0.5
    assert dead(trained_by("top-2", steps)).mean() > dead(trained_by("auxiliary loss", steps)).mean() + 0.5


@pytest.mark.claim("balance-buys-no-accuracy-on-this-collapse")
@pytest.mark.parametrize("steps", [100, 300])
def test_balance_buys_no_accuracy_on_this_collapse(steps):
    alone = accuracies(trained_by("no balancing", steps))
    for name in ("auxiliary loss", "bias update"):
        assert abs((accuracies(trained_by(name, steps)) - alone).mean()) < 0.03, name
    plain, chosen, capped = (
        accuracies(trained_by(name, steps, MOST)) for name in ("no balancing", "expert choice", "capacity")
    )
    lost = plain - chosen
    assert 0.02 < lost.mean() < 0.06 and lost.mean() > 2 * lost.std(ddof=1) / len(MOST) ** 0.5
    assert (plain - capped).mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.claim("noise-from-the-start-does-not-help")
@pytest.mark.parametrize("std", [1.0, 5.0])
def test_noise_from_the_start_does_not_help(std):
    band = trained(replace(COLLAPSE, noise_std=std))
    assert dead(band).mean() > dead(trained_by("no balancing")).mean() - 0.9


@pytest.mark.claim("noise-alone-does-not-revive")
def test_noise_alone_does_not_revive():
    before = dead(collapsed())
    loud, gentle = cured(replace(COLLAPSE, noise_std=5.0)), cured(replace(COLLAPSE, noise_std=1.0))
    assert recent(loud, "dead").mean() < 0.7  # read with the noise
    assert dead(loud).mean() > before.mean() - 0.9  # and without
    for reading in (recent(gentle, "dead"), dead(gentle)):
        assert reading.mean() > before.mean() - 0.9
    assert accuracies(loud).mean() < accuracies(cured(COLLAPSE)).mean() - 0.01  # its price


@pytest.mark.claim("top-2-loses-fewer-and-doubles-the-flops")
def test_top_2_loses_fewer_and_doubles_the_flops():
    prevented, alone = dead(trained_by("top-2")), dead(trained_by("no balancing"))
    assert prevented.mean() < alone.mean() - 0.5
    assert (prevented >= 1).mean() > 0.5  # some, in most runs
    blocks = {name: plane_model(balancing_setting(name))[0].block for name in ("no balancing", "top-2")}
    flops = {name: flops_per_token(block) - 2 * block.router.weight.numel() for name, block in blocks.items()}
    assert flops["top-2"] == 2 * flops["no balancing"]


@pytest.mark.claim("capacity-charges-for-a-collapse")
def test_capacity_charges_for_a_collapse():
    tight = replace(COLLAPSE, capacity_factor=1.0)
    alone, balanced = trained(tight), trained(replace(tight, router_aux_loss_coef=FIRM))
    collapsed, even = (recent(band, "dropped").mean() for band in (alone, balanced))
    assert collapsed > 0.33 and 0.02 < even < 0.12 and collapsed > 3 * even
    assert (accuracies(balanced) - accuracies(alone)).mean() > 0.1


def narrow(coefficient: float) -> SeedBand:
    return trained(replace(NARROW, router_aux_loss_coef=coefficient), MOST, steps=200)


@pytest.mark.claim("the-load-evens-out-with-the-coefficient")
def test_the_load_evens_out_with_the_coefficient():
    """The largest load over the mean: 2.5 to 2.7 without the loss, then 1.7 to 1.9, 1.5 to 1.6, 1.3, and 1.4 at 10."""
    at = {c: max_over_mean(narrow(c)).mean() for c in (0.0, 0.03, 0.1, 1.0, 10.0)}
    assert at[0.0] > at[0.03] + 0.2 and at[0.03] > at[0.1] + 0.1 and at[0.1] > at[1.0] and at[10.0] > at[1.0]


def stored(name: str, measure: str = "dead") -> pd.DataFrame:
    """Give the means of the seeds: a row for each method and strength (0: none), a column for each step."""
    frame = load_plane_sweep(name).fillna({"strength": 0})
    return frame.pivot_table(index=["method", "strength"], columns="step", values=measure)


@pytest.mark.claim("strength-decides-for-those-that-feed-the-load-back")
@pytest.mark.parametrize("name", ["strengths", "strengths_collapsed"])
def test_strength_decides_for_those_that_feed_the_load_back(name):
    dead = stored(name)
    alone = dead.loc["no balancing", 0]
    for method in ("Gaussian noise", "jitter", "capacity", "z-loss"):  # at no strength, in the end
        assert dead.loc[method][1200].min() > alone[1200] - 0.9, method
    assert dead.loc["z-loss", 1.0][1200] > alone[1200] + 1  # more die
    assert (dead.loc["auxiliary loss", 0.01] > alone - 0.9).all()  # at every step
    assert dead.loc["auxiliary loss"].loc[0.1:][1200].max() < 0.7
    accuracy = stored(name, "accuracy")[1200]
    assert accuracy["auxiliary loss", 10.0] < accuracy["no balancing", 0] - 0.02
    assert dead.loc["bias update", 0.01][100] < 0.7 and dead.loc["bias update", 1.0][1200] > alone[1200] + 1
    assert 0.3 < dead.loc["bias update", 0.1][1200] < 1.7  # about one
    assert dead.loc["bias update", 0.001][300] > 1.2 and dead.loc["bias update", 0.001][1200] < 0.7
    assert dead.loc["top-2", 2][1200] > 1.2 > 0.5 > dead.loc["top-2", 4][1200]


@pytest.mark.claim("at-other-strengths-the-others-still-lose-experts")
def test_at_other_strengths_the_others_still_lose_experts():
    alone = dead(trained_by("no balancing")).mean()
    for name, fields in {
        "auxiliary loss": {"router_aux_loss_coef": 0.01},
        "z-loss": {"router_z_loss_coef": 0.1},
        "jitter": {"jitter_noise": 0.3},
        "capacity": {"capacity_factor": 2.0},
    }.items():
        assert dead(trained(balancing_setting(name, **fields))).mean() > alone - 0.9, name
    assert dead(trained(balancing_setting("auxiliary loss", router_aux_loss_coef=0.1))).mean() < 1
    assert dead(trained(replace(COLLAPSE, top_k=4))).mean() < 0.7


@pytest.mark.claim("accuracy-has-an-inner-maximum")
def test_accuracy_has_an_inner_maximum():
    without = accuracies(narrow(0.0))
    gains = {c: accuracies(narrow(c)) - without for c in (0.03, 0.1, 0.3, 1.0, 10.0)}
    for coefficient in (0.1, 0.3, 1.0):
        assert gains[coefficient].mean() > 0.03, coefficient
    assert max(gains[0.1].mean(), gains[0.3].mean()) > gains[0.03].mean() + 0.02  # so the maximum lies between
    assert gains[0.3].mean() > 2 * gains[0.3].std(ddof=1) / len(MOST) ** 0.5  # beyond the spread of the seeds
    assert gains[10.0].mean() < 0 and (gains[0.3] - gains[10.0]).mean() > 0.04
    drawn = load_plane_sweep("coefficients").drop(columns=["method", "dead"])
    drawn = drawn.pivot(index=["step", "seed"], columns="strength")
    for step in (200, 600):  # what the lesson draws, and later
        more = drawn.accuracy.loc[step].mean() - drawn.accuracy.loc[step][0.0].mean()
        assert more[[0.1, 0.3, 1.0]].min() > 0.03 and more[[0.1, 0.3, 1.0]].max() > more[0.03] + 0.02
        assert more[10.0] < 0 and more[0.3] - more[10.0] > 0.04
        busiest = drawn.max_over_mean.loc[step].mean()
        assert busiest[0.0] > busiest[0.03] + 0.2 and busiest[0.03] > busiest[0.1] + 0.1 and busiest[0.1] > busiest[1.0]
        assert busiest[10.0] > busiest[1.0]
    wide = [accuracies(trained(replace(COLLAPSE, router_aux_loss_coef=c))) for c in (0.0, 0.1, FIRM, 10.0)]
    assert max((wide[1] - wide[0]).mean(), (wide[2] - wide[0]).mean()) < 0.04  # no hump: nothing won
    assert (wide[3] - wide[0]).mean() < 0  # and too much hurts


@pytest.mark.claim("bias-updates-balance-without-a-gradient")
def test_bias_updates_balance_without_a_gradient():
    with_bias = trained_by("bias update")
    alone = trained(replace(with_bias.setting, expert_bias_rate=0.0))
    assert dead(alone).mean() > 2 and dead(with_bias).mean() < 0.7
    assert max_over_mean(with_bias).mean() - 1 < 0.6 * (max_over_mean(alone).mean() - 1)
    router = with_bias.model.block.router
    assert not router.expert_bias.requires_grad and "expert_bias" not in dict(router.named_parameters())
    assert router.expert_bias.abs().max() > 0 and alone.model.block.router.expert_bias.abs().max() == 0


def draw_some(router: TopKRouter, args: tuple, routing: Routing) -> Routing | None:
    """Send one token in a hundred to an expert drawn at random, in training only."""
    if not router.training:
        return None
    indices = routing.topk_indices.clone()  # (T, 1)
    drawn = torch.rand(len(indices)) < 0.01
    indices[drawn] = torch.randint(router.num_experts, (int(drawn.sum()), 1))
    weights = routing.router_probs.gather(1, indices)
    return Routing.from_topk(routing.router_logits, routing.router_probs, indices, weights)


@pytest.mark.claim("a-random-draw-hardly-balances")
def test_a_random_draw_hardly_balances():
    band = SeedBand(COLLAPSE, SEEDS)
    for router in band.model.block.router.routers:
        router.register_forward_hook(draw_some)
    torch.manual_seed(SEEDS[0])
    assert dead(on(band, 300)).mean() > dead(trained_by("no balancing")).mean() - 0.9


@pytest.mark.claim("expert-choice-leaves-tokens-out")
def test_expert_choice_leaves_tokens_out():
    unserved = trained_by("expert choice").evaluate(2048)["unserved"]
    assert 0.08 < unserved.mean() < 0.28


@pytest.mark.claim("the-auxiliary-loss-and-the-bias-cure-the-others-do-not")
def test_the_auxiliary_loss_and_the_bias_cure_the_others_do_not():
    before = dead(collapsed()).mean()
    assert before > 2.3
    for name in ("auxiliary loss", "bias update"):
        assert dead(cured(balancing_setting(name))).mean() < 0.7, name
    for name, fields in (("Gaussian noise", {}), ("Gaussian noise", {"noise_std": 5.0}), ("top-2", {})):
        assert dead(cured(balancing_setting(name, **fields))).mean() > 1.2, name
    for std in (1.0, 5.0):  # and after the noise, too
        rescued = on(cured(replace(COLLAPSE, noise_std=std)).branch(replace(COLLAPSE, router_aux_loss_coef=FIRM)), 100)
        assert dead(rescued).mean() < 0.7, std


def language_run(text: TextTask, router: str, seed: int) -> Run:
    config = TransformerConfig(num_layers=2, d_ff=32, num_experts=16, top_k=1, router=router, router_std=0.02)
    with seeded(seed):
        model = LanguageModel(config)
    return Run(model, text, lr=0.005, batch_size=16, seed=seed, warmup_steps=20)


def dead_on_text(run: Run) -> int:
    with torch.no_grad():
        _, routings = run.model.eval()(run.task.held_out(8)[0])
    return balance_by_layer(routings)["dead"].sum()


@cache
def on_text(seed: int) -> dict[str, Run]:
    """Train 40 steps of collapse with each kind of scores, and 40 more of each with and without a balancing method."""
    text, runs = TextTask(), {}
    for router, knobs in {
        "top-k": {
            "no balancing": {},
            "noise": {"noise_std": 1.0},
            "auxiliary loss": {"router_aux_loss_coef": 0.1},
            "too much": {"router_aux_loss_coef": 1.0},
        },
        "sigmoid": {"sigmoid alone": {}, "bias update": {"expert_bias_rate": 0.01}},
    }.items():
        runs[router] = on(language_run(text, router, seed), 40)
        for name, values in knobs.items():
            runs[name] = language_run(text, router, seed)
            runs[name].load_state_dict(runs[router].state_dict())
            for knob, value in values.items():
                setattr(runs[name].knobs, knob, value)
            on(runs[name], 40)
    return runs


@pytest.mark.claim("a-language-model-collapses-and-is-cured-alike")
@pytest.mark.parametrize("seed", seeds(3))
def test_a_language_model_collapses_and_is_cured_alike(seed):
    """Of 32 experts 14 to 21 are dead, and 0 to 4 after a cure (seeds 0 to 3); after one that is too strong up to 7."""
    runs = on_text(seed)
    dead = {name: dead_on_text(run) for name, run in runs.items()}
    at_start = dead_on_text(language_run(runs["top-k"].task, "top-k", seed))
    assert at_start < 32 / 3 < min(dead["top-k"], dead["sigmoid"])
    assert min(dead["no balancing"], dead["noise"]) > 32 / 3
    for name in ("auxiliary loss", "bias update", "too much"):  # most are back
        assert dead[name] < dead["no balancing"] / 2, name
    assert dead["bias update"] < dead["sigmoid alone"] / 2 and dead["sigmoid alone"] > 32 / 4
    losses = {name: run.evaluate(48)["loss"] for name, run in runs.items()}  # on held-out text
    assert -0.05 < losses["auxiliary loss"] - losses["no balancing"] < 0.35  # seeds 0 to 2: .08, .14, .22
    assert losses["too much"] > losses["auxiliary loss"] + 0.03
    assert 0.05 < losses["bias update"] - losses["sigmoid alone"] < 0.3  # seeds 0 to 2: .13, .11, .24
    ends = last_of("source_dead")  # of top-2, after 1,000 steps
    gains = ends["top-2"] - ends["top-2, auxiliary loss"]
    assert gains.round(3).min() == 0.003 and gains.round(3).max() == 0.021

"""`hub.Lens`: what it tells and counts, that it leaves nothing behind, what it says where it cannot; `hub.RunModel`."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from moe_lessons.analysis import trace_text
from moe_lessons.hub import Lens, LensCallback, RunModel, export_model
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, load_balancing_loss, seeded
from moe_lessons.plots.panels.shares import layers
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run
from moe_lessons.widgets import LiveRun

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402

IDS = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0))
SIZES = TransformerConfig(d_model=32, d_ff=32, num_layers=2)


@pytest.fixture(scope="module")
def mixtral():
    return small("mixtral").eval()


@pytest.fixture(scope="module")
def ours():
    with seeded(0):
        return LanguageModel(SIZES)


def seen(model, *args, lens: dict | None = None, **inputs) -> Lens:
    with torch.no_grad(), Lens(model, **(lens or {})) as made:
        model(*args, **inputs)
    return made


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def same(a, b) -> bool:
    fields = ("router_logits", "router_probs", "token_idx", "expert_idx", "weight")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


@pytest.mark.parametrize("kind", ["top-k", "sigmoid", "expert choice", "hash"])
def test_of_our_models_it_tells_what_they_return(kind):
    model = LanguageModel(TransformerConfig(d_model=32, d_ff=32, num_layers=3, moe_layers=(0, 2), router=kind))
    with Lens(model) as lens:
        _, routings = model(IDS)
    assert lens.layers == ("layers.0.ffn", "layers.2.ffn")
    assert all(same(a, b) for a, b in zip(lens.routings.values(), routings, strict=True))
    assert not any(routing.router_probs.requires_grad for routing in lens.routings.values())


def test_of_one_model_in_two_forms_it_tells_the_same(ours, device):
    theirs = seen(export_model(ours).to(device), IDS.to(device))
    for a, b in zip(theirs.routings.values(), seen(ours, IDS).routings.values(), strict=True):
        assert torch.equal(a.topk_indices.cpu(), b.topk_indices)
        torch.testing.assert_close(a.router_probs.cpu(), b.router_probs)
        torch.testing.assert_close(a.topk_weights.cpu(), b.topk_weights)
    tables = [trace_text(model, "alpha beta") for model in (ours, RunModel(export_model(ours)))]
    assert tables[0].drop(columns=["weight0", "weight1"]).equals(tables[1].drop(columns=["weight0", "weight1"]))


def sigmoid_share(logits, dim):
    return logits.sigmoid() / logits.sigmoid().sum(dim, keepdim=True)


SCORES = {
    **dict.fromkeys(("mixtral", "gpt_oss", "phimoe", "gemma4"), torch.softmax),  # Gemma's has probabilities for logits
    **dict.fromkeys(("deepseek_v3", "llama4", "minimax_m2"), sigmoid_share),
    "deepseek_v4": lambda z, dim: nn.functional.normalize(nn.functional.softplus(z).sqrt(), p=1, dim=dim),
}


@pytest.mark.parametrize("family", SCORES)
def test_probabilities_are_the_routers_own(family):
    model, inputs = hf_families.runnable(family)
    lens = seen(model, **inputs)
    for name, routing in lens.routings.items():
        torch.testing.assert_close(routing.router_probs, SCORES[family](routing.router_logits, dim=-1), msg=name)


def test_tokens_that_skip_the_experts_of_zaya_have_none():
    model, inputs = hf_families.runnable("zaya")
    for module in model.modules():
        if hasattr(module, "balancing_biases"):  # the last class, which stands for no expert, wins now and then
            module.balancing_biases.fill_(0)
    lens = seen(model, **inputs)
    for routing in lens.routings.values():
        assert routing.num_experts == 8 and routing.dropped == 0
    assert sum(len(routing.expert_idx) for routing in lens.routings.values()) < 16 * len(lens.layers)


def test_what_is_full_in_switch_is_dropped_and_each_side_has_its_own_mask():
    model, inputs = hf_families.runnable("switch_transformers")
    wanted = seen(model, **inputs).routings
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 1  # of each sequence and expert
    lens = seen(model, **inputs)
    routing, whole = (routings[lens.layers[0]] for routings in (lens.routings, wanted))
    assert torch.equal(routing.demand_per_expert, whole.tokens_per_expert) and whole.dropped == 0 < routing.dropped
    choices = [(token // 8, expert) for token, expert in enumerate(whole.topk_indices.flatten().tolist())]
    assert routing.token_idx.tolist() == [token for token in range(16) if choices.index(choices[token]) == token]
    model, inputs = hf_families.runnable("switch_transformers")
    masks = {"attention_mask": torch.ones(2, 8), "decoder_attention_mask": torch.ones(2, 5)}
    masks["attention_mask"][0, 6:] = 0
    masks["decoder_attention_mask"][1, 2:] = 0
    lens = seen(model, **inputs, **masks)
    assert [routing.num_tokens for routing in lens.routings.values()] == [14, 7]


class Adapter(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora = base_layer, nn.Linear(2, 2)

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs)


@pytest.mark.parametrize("family", ["mixtral", "llama4", "jetmoe"])
def test_experts_and_routers_with_adapters_are_read_as_without(family):
    model, inputs = hf_families.runnable(family)
    plain = seen(model, **inputs)
    for block in map(model.get_submodule, plain.layers):
        for name in ("experts", "gate", "router"):
            if hasattr(block, name):
                setattr(block, name, Adapter(Adapter(getattr(block, name))))
    for (name, a), (other, b) in zip(plain.routings.items(), seen(model, **inputs).routings.items(), strict=True):
        assert name == other and same(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(mixtral, side):
    mask = torch.ones_like(IDS)
    mask[0, :3] = mask[1, :1] = 0
    mask = mask if side == "left" else mask.flip(1)
    padded = seen(mixtral, IDS, attention_mask=mask)
    by_place = seen(mixtral, IDS, mask)
    alone = [seen(mixtral, row[keep != 0][None]) for row, keep in zip(IDS, mask)]
    for name, routing in padded.routings.items():
        assert routing.num_tokens == 12 and same(routing, by_place.routings[name])
        wanted = torch.cat([lens.routings[name].topk_indices for lens in alone])
        assert torch.equal(routing.topk_indices, wanted)
    assert seen(mixtral, IDS, attention_mask=mask, lens={"count_padding": True}).routings[name].num_tokens == 16


def test_generation_makes_a_call_for_each_token_and_its_mask_is_longer_by_the_cache(mixtral):
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with Lens(mixtral) as lens:
        out = mixtral.generate(IDS, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert [call["model.layers.0.mlp"].num_tokens for call in lens.calls] == [13, 2, 2, 2]
    text = out[1:, :-1]  # the last one is drawn, and not read
    once = seen(mixtral, text).routings["model.layers.1.mlp"].topk_indices
    steps = [call["model.layers.1.mlp"].topk_indices for call in lens.calls]
    assert torch.equal(torch.cat([steps[0][5:], *(step[1:] for step in steps[1:])]), once)
    assert lens.routings["model.layers.1.mlp"].topk_indices.shape == (19, 2)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_accumulated_batches_are_calls_and_recomputation_is_none(mixtral, checkpointing):
    model = mixtral.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    with Lens(model) as lens:
        for ids in IDS.split(1):
            model(ids, labels=ids).loss.backward()
    model.gradient_checkpointing_disable()
    model.eval().zero_grad()
    assert [[routing.num_tokens for routing in call.values()] for call in lens.calls] == [[8, 8], [8, 8]]
    for name, routing in seen(model, IDS).routings.items():
        assert torch.equal(routing.topk_indices, lens.routings[name].topk_indices)


def test_hooks_are_gone_after_an_exception_and_a_failed_call_is_none(mixtral):
    before, lens = hooks(mixtral), Lens(mixtral)
    assert hooks(mixtral) == before
    with pytest.raises(ZeroDivisionError), torch.no_grad(), lens:
        assert hooks(mixtral) > before
        with pytest.raises(ValueError, match="lens must be left before it is entered again"), lens:
            pass
        mixtral(IDS)
        with pytest.raises(IndexError):
            mixtral(IDS + 1000)
        mixtral(IDS[:, :4])
        raise ZeroDivisionError
    assert hooks(mixtral) == before
    assert [call[lens.layers[0]].num_tokens for call in lens.calls] == [16, 8]
    mixtral(IDS)
    assert len(lens.calls) == 2
    with torch.no_grad(), lens:  # starts anew
        mixtral(IDS)
    assert len(lens.calls) == 1


@pytest.mark.parametrize("padded", [False, True])
def test_balance_is_by_layer_and_the_pooled_loss_is_hugging_faces_over_k(mixtral, padded):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    inputs = {"attention_mask": mask} if padded else {}
    lens = seen(mixtral, IDS, **inputs)
    with torch.no_grad():
        theirs = mixtral(IDS, output_router_logits=True, **inputs).aux_loss
    assert 2 * lens.pooled_loss() == pytest.approx(theirs.item(), rel=1e-5)
    losses = {name: load_balancing_loss(routing).item() for name, routing in lens.routings.items()}
    assert lens.balance()["load_balancing_loss"].to_dict() == losses


class Parts(nn.Sequential):
    def __init__(self, **parts):
        super().__init__(OrderedDict(parts))

    def forward(self, x, attention_mask=None):
        for part in self:
            x = part(x)[0]
        return x


class Called(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Linear(4, 4), "model must have experts .*, got Linear, which has none: it is dense"),
        (lambda: Parts(experts=nn.Linear(4, 4)), r"got Parts, whose Linear are not: load it without quantisation"),
        (lambda: nn.Sequential(Parts(choice=nn.Linear(4, 4), experts=Called())), "router of 0 must .*got choice, expe"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Lens(make())


def test_a_mask_that_does_not_tell_padding_is_refused(mixtral):
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    said = re.escape("attention_mask must be (B, T), with 0 for padding, got torch.bool of shape (2, 1, 8, 8)")
    with pytest.raises(ValueError, match=f"{said}.*count_padding=True"):
        seen(mixtral, IDS, attention_mask=mask)
    assert len(seen(mixtral, IDS, attention_mask=mask, lens={"count_padding": True}).routings) == 2
    lens = seen(Parts(moe=MoE(4, 4, 4)), torch.randn(2, 8, 4), attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match=re.escape("for the 16 tokens of moe, got (2, 3): count all tokens")):
        _ = lens.routings


def test_who_goes_past_the_hooks_is_told(mixtral):
    with pytest.warns(UserWarning, match="the lens has seen no router at work"), Lens(mixtral) as lens:
        mixtral.forward(IDS)  # as a compiled model does
    assert lens.calls == [] and lens.layers == ("model.layers.0.mlp", "model.layers.1.mlp")
    with pytest.raises(ValueError, match="call the model itself within it"):
        lens.balance()


def test_layers_of_different_sizes_are_not_pooled():
    lens = seen(Parts(one=MoE(4, 4, 4), two=MoE(4, 4, 8)), torch.randn(2, 4))
    assert len(lens.balance()) == 2
    with pytest.raises(ValueError, match=re.escape("one number of experts to be joined, got [4, 8]")):
        lens.pooled_loss()


NAMES = {"mixtral": "MixtralForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM", "llama4": "Llama4ForCausalLM"}
TASK = TextTask(["code", "json"], context=16)
TEXT = TASK.held_out(2)[0]


def small(family: str):
    """2 layers, the first of DeepSeek's dense; 2 of 8 experts."""
    config, kind = hf_families.small(family, NAMES[family])
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 2, 256, None
    with seeded(0):
        return kind(config)


@pytest.mark.parametrize("family", NAMES)
def test_logits_gradients_and_routings_are_those_of_the_model(family):
    ours, theirs = RunModel(small(family)), small(family)
    logits, routings = ours(TEXT)
    expected = theirs(TEXT, output_router_logits=True)
    assert torch.equal(logits, expected.logits) and len(routings) == (1 if family == "deepseek_v3" else 2)
    assert all(routing.topk_indices.shape == (TEXT.numel(), 2) for routing in routings)
    loss, other = logits.square().mean(), expected.logits.square().mean()
    if family == "mixtral":  # whose own loss, of one layer, is K times ours
        loss = loss + 2 * sum(load_balancing_loss(routing) for routing in routings)
        other = other + sum(load_balancing_loss_func((scores,), 8, 2) for scores in expected.router_logits)
    loss.backward()
    other.backward()
    assert [id(p) for p in ours.parameters()] == [id(p) for p in ours.hf_model.parameters()]
    for weight, same in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, same.grad, rtol=1e-4, atol=1e-7)


def test_a_run_trains_it_its_knobs_act_and_its_panels_draw_it():
    runs = []
    for aux in (0.0, 1.0):
        run = Run(RunModel(small("mixtral")), TASK, lr=0.01, batch_size=4)
        run.knobs.router_aux_loss_coef = aux
        losses = [run.step().loss for _ in range(8)]
        runs.append(run)
        assert losses[-1] < losses[0] and run.num_experts == [8, 8] and len(run.records[0].load) == 2
    balance = [run.records[-1].auxiliary["load_balancing_loss"] for run in runs]
    assert balance[1] < balance[0] and "load L1 E7" in runs[0].history
    assert len(layers(LiveRun(run, ("layers",))).marks[0].z) == 2
    with pytest.raises(ValueError, match="the bias needs a sigmoid router"):
        runs[0].knobs.expert_bias_rate = 0.01


def test_the_bias_update_moves_the_bias_of_the_real_router():
    run = Run(RunModel(small("deepseek_v3")), TASK, lr=0.01, batch_size=4)
    run.step()
    bias = run.model.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
    assert not bias.any()
    run.knobs.expert_bias_rate = 0.01
    load = run.step().load[0]
    assert torch.equal(bias.sign(), (1 / 8 - torch.tensor(load)).sign())


TEXTS = torch.randint(3, 100, (8, 16), generator=torch.Generator().manual_seed(0))
MASKS = (torch.arange(16) < torch.tensor([16, 9, 12, 16, 5, 16, 10, 16])[:, None]).long()
ROWS = [{"input_ids": ids, "labels": ids, "attention_mask": mask} for ids, mask in zip(TEXTS, MASKS)]


class Watching(transformers.Trainer):
    """Keeps what reaches its loggers. With `fails`, the second step fails after its forward pass."""

    fails = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.fails and self.state.global_step == 1:
            raise ZeroDivisionError
        return loss


def trainer(folder, *callbacks, model=None, **options) -> Watching:
    """One for 4 steps, of 2 batches of 2 rows each: 2 epochs."""
    given = {"max_steps": 4, "logging_steps": 2, "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1}
    given |= {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    given |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = transformers.TrainingArguments(str(folder), **given | options)
    model = model or small("mixtral")
    return Watching(model, args, train_dataset=ROWS, eval_dataset=ROWS[:2], callbacks=list(callbacks))


def test_it_logs_the_balance_of_all_tokens_of_training_and_no_others(tmp_path):
    """The model stands still here (no learning rate), and two steps are an epoch: what is logged is of all rows,
    however they are cut into batches, computed again and evaluated between."""
    model, callback = small("mixtral"), LensCallback(every=2)
    made = trainer(tmp_path, callback, model=model)
    made.train()
    assert not callback.tallies  # each line begins anew
    lens = seen(model.eval(), TEXTS, MASKS)
    wanted = {
        f"moe/{layer}/{column}": value
        for layer, values in lens.balance().iterrows()
        for column, value in values.items()
        if column in ("max_over_mean", "entropy", "dead", "load_balancing_loss")
    } | {"moe/pooled_load_balancing_loss": lens.pooled_loss()}
    lines = [{key: line[key] for key in line if key.startswith("moe/")} for line in made.state.log_history]
    assert [pytest.approx(wanted, rel=1e-5)] * 2 == [line for line in lines if line]
    assert [line["step"] for line in made.state.log_history if "moe/pooled_load_balancing_loss" in line] == [2, 4]
    assert [line["step"] for line in made.state.log_history if "loss" in line] == [2, 4]  # the trainer's own


def test_the_model_is_trained_as_without_and_a_starving_expert_is_named_once(tmp_path):
    weights, model = [], small("mixtral")
    loads = {name: r.tokens_per_expert.double() for name, r in seen(model.eval(), TEXTS, MASKS).routings.items()}
    shares = sorted((s, e, name) for name, load in loads.items() for e, s in enumerate((load / load.mean()).tolist()))
    (least, expert, layer), (next_one, *_) = shares[:2]
    with pytest.warns(UserWarning, match="experts starve") as said:
        trainer(tmp_path, LensCallback(every=2, warn_below=(least + next_one) / 2), model=model).train()
    said = [str(warning.message) for warning in said if "starve" in str(warning.message)]
    assert len(said) == 1 and said[0].endswith(f"in the 2 steps up to 2: E{expert} of {layer} ({least:.2g})")
    for callbacks in ([], [LensCallback(every=1, warn_below=0)]):
        made = trainer(tmp_path, *callbacks, learning_rate=1e-2, eval_strategy="no")
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    assert torch.equal(*weights)


def test_nothing_is_on_the_model_after_a_failure_and_it_can_be_trained_again(tmp_path):
    model = small("mixtral")
    made, before = trainer(tmp_path, LensCallback(every=1), model=model, eval_strategy="no"), hooks(model)
    made.fails = True
    with pytest.raises(ZeroDivisionError):
        made.train()
    assert hooks(model) <= before + 1  # the Trainer adds one of its own for checkpointing
    made.fails = False
    made.train()
    assert "training_step" not in vars(made) and len(made.state.log_history) > 3


def test_a_call_from_no_trainer_is_refused():
    with pytest.raises(ValueError, match="must be called by a transformers.Trainer, got a call from elsewhere"):
        LensCallback().on_train_begin(None, None, None, model=small("mixtral"))

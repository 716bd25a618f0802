"""`hub.LensCallback` in a real Trainer: what it logs, what it counts, and that nothing stays behind."""

import pytest
import torch

from moe_lessons.hub import Lens, LensCallback
from moe_lessons.nn import seeded

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
pytest.importorskip("accelerate", reason="a Trainer needs it")
hf_families = pytest.importorskip("hf_families")
LENGTHS = (16, 9, 12, 16, 5, 16, 10, 16)


def rows() -> list[dict]:
    ids = torch.randint(3, 100, (len(LENGTHS), 16), generator=torch.Generator().manual_seed(0))
    masks = torch.arange(16) < torch.tensor(LENGTHS)[:, None]
    return [{"input_ids": i, "labels": i, "attention_mask": m.long()} for i, m in zip(ids, masks)]


def small():
    config, kind = hf_families.small("mixtral", "MixtralForCausalLM")
    config.num_hidden_layers = 2
    with seeded(0):
        return kind(config)


def seen(model) -> Lens:
    """What a lens sees of all rows."""
    with torch.no_grad(), Lens(model.eval()) as lens:
        for row in rows():
            model(row["input_ids"][None], attention_mask=row["attention_mask"][None])
    return lens


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
    return Watching(model or small(), args, train_dataset=rows(), eval_dataset=rows()[:2], callbacks=list(callbacks))


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_it_logs_the_balance_of_all_tokens_of_training_and_no_others(tmp_path):
    """The model stands still here (no learning rate), and two steps are an epoch: what is logged is of all rows,
    however they are cut into batches, computed again and evaluated between."""
    model, callback = small(), LensCallback(every=2)
    made = trainer(tmp_path, callback, model=model)
    made.train()
    assert not callback.tallies  # each line begins anew
    lens = seen(model)
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
    weights, model = [], small()
    loads = {name: routing.tokens_per_expert.double() for name, routing in seen(model).routings.items()}
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
    model = small()
    made, before = trainer(tmp_path, LensCallback(every=1), model=model, eval_strategy="no"), hooks(model)
    made.fails = True
    with pytest.raises(ZeroDivisionError):
        made.train()
    assert hooks(model) <= before + 1  # the Trainer adds one of its own for checkpointing
    made.fails = False
    made.train()
    assert "training_step" not in vars(made) and len(made.state.log_history) > 3


def test_what_is_refused(tmp_path):
    for arguments, message in (
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"warn_below": -1}, "warn_below must be a finite number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            LensCallback(**arguments)
    dense = transformers.LlamaForCausalLM(hf_families.small("llama", "LlamaForCausalLM")[0])
    with pytest.raises(ValueError, match="model must have .*, got LlamaForCausalLM, which has none: it is dense"):
        trainer(tmp_path, LensCallback(), model=dense).train()
    with pytest.raises(ValueError, match="must be called by a transformers.Trainer, got a call from elsewhere"):
        LensCallback().on_train_begin(None, None, None, model=small())

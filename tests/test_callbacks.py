"""The Lightning callbacks in trainings of plain LightningModules."""

import functools
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffstride import DiffStride, stride_layers
from diffstride.callbacks import BudgetCallback, StrideMonitor, StridePhase
from diffstride.strides import project_strides, stride_scalars

STEPS = 6


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    if request.param == "pytorch_lightning":
        pytest.importorskip(request.param)
    return importlib.import_module(request.param)


def build_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        DiffStride((2.0, 1.2), upper_limit_stride=2.3),
        nn.Conv2d(2, 2, 3),
        DiffStride(1.5, shared_stride=False, lower_limit_stride=1.4, upper_limit_stride=1.6),
    )


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 1, 16, 12, generator=generator) for _ in range(STEPS)]


def loss_of(network, batch):
    # Pulls the strides of the two axes to opposite limits.
    strides = [layer.strides for layer in stride_layers(network).values()]
    return network(batch).square().mean() + sum(s[0] - s[1] for s in strides)


def train(pl, network, loggers, log_every_n_steps=2, seen=None, validate=None, **options):
    class Training(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = network

        def training_step(self, batch, _):
            return loss_of(self.body, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.2)

        def on_train_batch_end(self, *args):
            if seen is not None:
                seen.append(stride_scalars(self.body))

    if validate is not None:
        Training.validation_step = lambda *args: validate()
    images = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer = pl.Trainer(
        **{"max_epochs": 1, "callbacks": [StrideMonitor()], **options},
        accelerator="cpu",
        logger=loggers,
        log_every_n_steps=log_every_n_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Training(), images, images if validate is not None else None)


def recorder(pl):
    class Recorder(pl.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.rows = {}

        def log_metrics(self, metrics, step=None):
            self.rows.setdefault(step, {}).update(metrics)

    return Recorder()


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning uses a name that newer releases of torch have changed.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def test_a_single_leaf_module_is_one_name():
    callback = BudgetCallback(torch.zeros(1, 1, 8, 8), leaf_modules="head")
    assert callback.leaf_modules == ("head",)


def test_phase_needs_a_known_end(pl):
    if not issubclass(StridePhase, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    with pytest.raises(ValueError, match="give the trainer max_epochs or max_steps"):
        train(pl, build_network(), False, callbacks=[StridePhase(0.1)], max_epochs=-1)


def test_phase_refuses_several_optimizers(pl):
    if not issubclass(StridePhase, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    trainer = SimpleNamespace(estimated_stepping_batches=10, optimizers=[1, 2])
    with pytest.raises(ValueError, match=r"needs one optimiser, but the training has 2"):
        StridePhase(0.1).on_train_start(trainer, build_network())


def test_several_networks_have_budgets_of_their_own(pl):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    budgets = [BudgetCallback(torch.zeros(1, 1, 8, 8), network=name) for name in ("a", "b")]
    assert len({budget.state_key for budget in budgets}) == 2
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(callbacks=budgets, **options)
    with pytest.raises(ValueError, match=r"log their cost as 'multiply_adds': .* another log="):
        budgets[0].setup(trainer, pl.LightningModule(), "fit")
    budgets[1].log_name = "multiply_adds/b"
    budgets[0].setup(trainer, pl.LightningModule(), "fit")


def budgeted(pl):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    task, logged = pl.LightningModule(), {}
    task.network = nn.Sequential(
        DiffStride((2.0,), edge="stopband"),
        nn.Conv1d(1, 64, 9, padding=4),
        DiffStride((2.0,), edge="stopband"),
        nn.Conv1d(64, 64, 9, padding=4),
    )
    task.log = logged.__setitem__
    callback = BudgetCallback(torch.zeros(1, 1, 1000), network="network", log="cost")
    callback.on_train_start(None, task)
    return task, callback, logged


def test_a_budget_projects_gradients_before_each_step(pl):
    task, callback, _ = budgeted(pl)
    first, second = task.network[0].strides, task.network[2].strides
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    callback.on_before_optimizer_step(None, task, None)
    assert first.grad.item() * second.grad.item() < 0


def test_a_budget_logs_the_cost_under_its_name(pl):
    task, callback, logged = budgeted(pl)
    callback.on_train_epoch_end(None, task)
    assert logged == {"cost": callback.budget.cost.value()}


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_strides_are_read_again_before_each_stage(pl, stage):
    if not issubclass(StrideMonitor, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    task = pl.LightningModule()
    task.network = nn.Sequential(DiffStride(2.0, upper_limit_stride=3.0))
    task.network[0].strides.data = torch.tensor([9.0, 9.0])
    getattr(StrideMonitor("network"), f"on_{stage}_batch_start")(None, task, None, 0)
    assert task.network[0].strides.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shares", [(-0.1, 1), (0.1, 1.1), (0.6, 0.5)])
def test_phase_refuses_shares_out_of_range(shares):
    with pytest.raises(ValueError, match=f"stop <= 1, but got {shares[0]} and {shares[1]}"):
        StridePhase(*shares)


def test_training_equals_the_two_lines_of_a_plain_loop(pl):
    plain = build_network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    expected = []
    for batch in batches():
        optimizer.zero_grad()
        loss_of(plain, batch).backward()
        optimizer.step()
        project_strides(plain)
        expected.append(stride_scalars(plain))

    network, seen = build_network(), []
    train(pl, network, loggers=False, seen=seen)
    assert seen == expected
    raw = [value for layer in stride_layers(network).values() for value in layer.strides.tolist()]
    # At the limits the parameter itself was moved, not just the stride in use.
    assert raw == pytest.approx([1.0, 2.3, 1.4, 1.6])


def test_every_logger_gets_the_strides_of_each_logged_step(pl):
    loggers, seen = [recorder(pl), recorder(pl)], []
    train(pl, build_network(), loggers, seen=seen)
    assert loggers[0].rows == loggers[1].rows
    rows = loggers[0].rows
    assert list(rows) == [0, 2, 4, 6]
    assert rows[0] == {
        "stride/body.1/height": 2.0,
        "stride/body.1/width": pytest.approx(1.2),
        "stride/body.3/height": 1.5,
        "stride/body.3/width": 1.5,
    }
    for step in (2, 4, 6):
        assert rows[step] == {
            name.replace("stride/", "stride/body."): value for name, value in seen[step - 1].items()
        }


def test_steps_of_several_batches_are_logged_once(pl):
    class Counter(type(recorder(pl))):
        def log_metrics(self, metrics, step=None):
            assert step not in self.rows
            super().log_metrics(metrics, step)

    logger = Counter()
    train(pl, build_network(), [logger], log_every_n_steps=1, accumulate_grad_batches=3)
    assert list(logger.rows) == [0, 1, 2]


def test_weights_swapped_for_validation_are_read_again(pl, monkeypatch):
    """Swapped through ``.data`` on an accelerator, as Lightning averages weights."""

    monkeypatch.setattr(DiffStride, "_is_on_cpu", lambda self: False)
    network, used = build_network(), []

    class Swap(pl.Callback):
        def on_validation_epoch_start(self, *args):
            self.kept, network[1].strides.data = network[1].strides.data, torch.tensor([1.5, 1.5])

        def on_validation_epoch_end(self, *args):
            network[1].strides.data = self.kept

        def on_train_batch_start(self, *args):
            used.append(network[1].stride_values() == tuple(network[1].strides.tolist()))

    if not issubclass(StrideMonitor, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    seen = []
    train(
        pl,
        network,
        False,
        callbacks=[StrideMonitor(), Swap()],
        validate=lambda: seen.append(network[1].stride_values()),
        max_epochs=2,
    )
    assert set(seen) == {(1.5, 1.5)}
    assert all(used)


def test_a_budget_fraction_is_applied_once_over_several_fits(pl):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    network = build_network()
    callback = BudgetCallback(torch.zeros(1, 1, 64, 48), 0.9, "body")
    spent = []
    for _ in range(2):
        train(pl, network, False, callbacks=[callback])
        spent.append(callback.budget.multiply_adds)
    assert spent[0] == spent[1]
    resumed = BudgetCallback(torch.zeros(1, 1, 64, 48), 0.9, "body")
    resumed.load_state_dict(callback.state_dict())
    train(pl, network, False, callbacks=[resumed])
    assert resumed.budget.multiply_adds == spent[0]
    train(pl, build_network(), False, callbacks=[callback])  # another network, at its full cost
    assert callback.budget.multiply_adds == spent[0]


def measured_budget():
    def loss(module, batch):
        return loss_of(module.body, batch)

    return BudgetCallback(torch.zeros(1, 1, 16, 12), 0.9, "body", loss=loss, moving=1.0)


def test_a_longer_training_continues_with_the_steps_of_its_start(pl, tmp_path):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    network, callback = build_network(), measured_budget()
    train(pl, network, False, callbacks=[callback])
    made = callback.measured.state_dict()
    assert made["done"] == STEPS
    strides = [layer.stride_values() for layer in stride_layers(network).values()]
    longer = measured_budget()
    longer.load_state_dict(callback.state_dict())
    for again in (longer, callback):  # from a checkpoint, and by another fit
        train(pl, network, False, callbacks=[again], max_epochs=4)
        assert again.measured.state_dict()["schedule"] == made["schedule"]
        assert [layer.stride_values() for layer in stride_layers(network).values()] == strides


def test_a_loss_that_is_no_function_is_refused_before_the_training():
    with pytest.raises(TypeError, match=r"loss must be a function .* but got 'ce'"):
        BudgetCallback(torch.zeros(1, 1, 16, 12), loss="ce")
    with pytest.raises(TypeError, match=r"called with .* but takes \(batch\): pass a function"):
        BudgetCallback(torch.zeros(1, 1, 16, 12), loss=lambda batch: batch)


def test_the_loss_may_be_a_function_that_wraps_another():
    def loss(config, module, batch):
        return config

    wrapped = functools.wraps(loss)(lambda module, batch: loss(0, module, batch))
    assert BudgetCallback(torch.zeros(1, 1, 16, 12), loss=wrapped).loss is wrapped


def test_a_phase_for_gradients_is_refused_beside_measured_losses(pl):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    for other in (StridePhase(0.2, 0.8, name) for name in ("body", "", "other")):
        both = [other, measured_budget()]
        if other.network != "other":
            with pytest.raises(
                ValueError, match=r"StridePhase is for .* by measured losses: leave"
            ):
                train(pl, build_network(), False, callbacks=both)
        else:
            both[1].setup(pl.Trainer(callbacks=both, logger=False), None)


def test_a_network_without_strides_is_left_alone(pl):
    logger = recorder(pl)
    network = build_network()
    network[1], network[3] = nn.Identity(), nn.Identity()
    train(pl, network, [logger])
    assert logger.rows == {}


CALLBACKS = {
    "StrideMonitor": StrideMonitor,
    "StridePhase": lambda network: StridePhase(0.0, 1.0, network),
    "BudgetCallback": lambda network: BudgetCallback(batches()[0][:1], 1.0, network),
}


@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize(
    ("network", "place", "modules"),
    [
        ("bdoy", "Training has no module 'bdoy'", "'body'"),
        ("body.first", "Training.body has no module 'first'", "'0', '1', '2', '3'"),
        ("body.3.pool", "Training.body.3 has no module 'pool'", "none"),
    ],
)
def test_a_wrong_name_is_refused_before_the_training(pl, kind, network, place, modules):
    seen = []
    message = rf"^{kind}\(network='{network}'\): {place}, its modules are {modules}: pass the name"
    with pytest.raises(ValueError, match=message):
        train(pl, build_network(), False, seen=seen, callbacks=[CALLBACKS[kind](network)])
    assert not seen


@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_network_may_be_built_when_the_training_starts(pl, kind, hook):
    class Training(pl.LightningModule):
        def training_step(self, batch, _):
            return loss_of(self.body, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def build(self, stage=None):
        self.body = build_network()

    setattr(Training, hook, build)
    module = Training()
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[CALLBACKS[kind]("body")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert trainer.global_step == 1


def test_a_state_that_was_loaded_is_saved_again_before_training(pl):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    callback = BudgetCallback(torch.zeros(1, 1, 64, 48), 0.9, "body")
    train(pl, build_network(), False, callbacks=[callback])
    resumed = BudgetCallback(torch.zeros(1, 1, 64, 48), 0.9, "body")
    assert resumed.state_dict() == {}
    resumed.load_state_dict(callback.state_dict())
    assert resumed.state_dict() == callback.state_dict()


@pytest.mark.parametrize("learning", ["by gradients", "by losses"])
def test_the_text_of_a_budget_callback_has_strides_and_cost(pl, learning):
    if not issubclass(BudgetCallback, pl.Callback):
        pytest.skip("the callbacks subclass those of the other package")
    image = torch.zeros(1, 1, 16, 12)
    callback = measured_budget() if learning == "by losses" else BudgetCallback(image, 0.9, "body")
    assert "BudgetCallback object" in repr(callback)
    train(pl, build_network(), False, callbacks=[callback])
    held = callback.budget if learning == "by gradients" else callback.measured
    assert repr(callback) == f"BudgetCallback({held!r})"

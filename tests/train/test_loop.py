"""Training does what the recipe says, and the same each time."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow_net import NarrowNet
from PIL import Image
from small_net import SmallNet
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.transforms.functional import to_tensor

from edgecifar.runtime import machine
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import RunError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.metrics import evaluate
from edgecifar.train import data, loop
from edgecifar.train.calibration import fit_temperature
from edgecifar.train.following import follow
from edgecifar.train.inference import classify_with, logits_with
from edgecifar.train.listeners import Silent
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.net import Net
from edgecifar.train.nets import NETS
from edgecifar.train.recipes import REFERENCE, Recipe
from edgecifar.train.run import Run
from edgecifar.train.speed import ByteDropout
from edgecifar.train.step import AUGMENTATION, DROPOUT, ORDER, derive_seed, epoch_plan

STEPS = 4  # of an epoch: 30 of the 40 images are trained on, 8 a step
FINISHED = {"run.json", "weights.safetensors", "metrics.jsonl", "curves.png", "confusion.png"}


def digest(folder: Path) -> str:
    return sha256(folder / "weights.safetensors")


def lines(folder: Path) -> list[dict]:
    return Run(folder).metrics


@pytest.fixture
def steps():
    """Every step of every optimizer: (learning rate, weight decay, dimensions of the parameters) of each group."""
    seen = []

    def look(optimizer, _args, _kwargs):
        groups = optimizer.param_groups
        seen.append([(group["lr"], group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups])

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


@pytest.fixture
def shown(monkeypatch):
    """Every batch that the net "recording" is shown in training, float32 [N, 3, 32, 32]."""
    batches = []

    class Recording(SmallNet):
        def forward(self, x):
            if self.training:
                batches.append(x.detach().clone())
            return super().forward(x)

    monkeypatch.setitem(NETS, "recording", Recording)
    return batches


def numbered(dataset: data.Dataset) -> data.Dataset:
    """The data set with each training image's first pixel its number."""
    images = dataset.train_images.copy()
    images[:, 0, 0, 0] = np.arange(len(images))
    return replace(dataset, train_images=images)


def numbers(batches: list[torch.Tensor]) -> list[int]:
    """Which images of a numbered data set were shown, unless they were moved."""
    return [round(255 * (value / 2 + 0.5)) for batch in batches for value in batch[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("disturbance", [lambda: None, lambda: torch.manual_seed(12345)])
def test_same_seed_same_weights_bit_for_bit(whole, recipe, tiny, tmp_path, no_plots, disturbance):
    disturbance()
    loop.train(recipe, tiny, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(whole)
    timed = ("seconds", "images_per_second")
    first, second = (
        [{k: v for k, v in line.items() if k not in timed} for line in lines(f)] for f in (whole, tmp_path / "again")
    )
    assert first == second


def test_steps_before_the_clock_runs_change_nothing(whole, recipe, tiny, tmp_path, no_plots):
    loop.train(recipe, tiny, tmp_path / "warm", TrainingOptions(warm_up_steps=2))
    assert digest(tmp_path / "warm") == digest(whole)


def test_the_augmentation_is_warmed_up_too(recipe, tiny, tmp_path, no_plots, monkeypatch):
    seen, shown = [], loop.Material.shown
    monkeypatch.setattr(loop.Material, "shown", lambda *given: seen.append(given[1]) or shown(*given))
    loop.train(replace(recipe, epochs=1), tiny, tmp_path / "cold", TrainingOptions())
    cold = list(seen)
    seen.clear()
    loop.train(replace(recipe, epochs=1), tiny, tmp_path / "warm", TrainingOptions(warm_up_steps=1))
    assert seen == [0, *cold]


def test_another_seed_other_weights(whole, recipe, tiny, tmp_path, no_plots):
    loop.train(recipe, tiny, tmp_path / "other", TrainingOptions(seed=1))
    assert digest(tmp_path / "other") != digest(whole)


def test_net_itself_is_trained_and_loads_strictly(tmp_path, no_plots):
    loop.train(replace(REFERENCE, epochs=1, batch_size=8), data.synthetic(8, 10), tmp_path / "run")
    trained = Run(tmp_path / "run").net()
    torch.manual_seed(0)
    fresh = Net(10)  # as the training began
    assert not torch.equal(fresh.conv1.weight, trained.conv1.weight)
    fresh.load_state_dict(trained.state_dict(), strict=True)


def test_random_streams_are_pinned_and_apart():
    """The same numbers on every machine and version, or old runs could not be repeated."""
    pinned = {
        (0, 0, 0): 1317536309490288386,
        (0, 0, 1): 7449029282396566744,
        (0, 1, 0): 5769891174451087230,
        (2**63 - 1, 9, 2): 1622001822621356661,
    }
    assert {key: derive_seed(*key) for key in pinned} == pinned
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**63 - 1]
    every = [derive_seed(seed, epoch, purpose) for seed in seeds for epoch in range(100) for purpose in range(3)]
    assert len(set(every)) == len(every)
    assert all(0 <= value < 2**63 for value in every)


def test_the_plan_of_an_epoch():
    """Sides alternate, so that the first is the run's alone; all else is the epoch's, each from a stream of its own."""
    first, second, other = (
        epoch_plan(seed, epoch, 64, 16, torch.device("cpu")) for seed, epoch in ((3, 0), (3, 1), (4, 0))
    )
    assert torch.equal(first.flipped_first, second.flipped_first)
    assert not torch.equal(first.flipped_first, other.flipped_first)
    assert 16 < first.flipped_first.sum() < 48
    assert [plan.generator.initial_seed() for plan in (first, second)] == [
        derive_seed(3, n, AUGMENTATION) for n in (0, 1)
    ]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(derive_seed(3, 1, ORDER)))
    assert torch.equal(torch.cat(second.batches), order)


def test_a_taken_folder_is_left_alone(whole, recipe, tiny):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(RunError, match="not empty") as caught:
        loop.train(recipe, tiny, whole)
    assert caught.value.option == "resume"
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_metrics_hold_a_line_an_epoch(whole, recipe):
    assert [list(line) for line in lines(whole)] == [
        ["epoch", "loss", "loss_per_2000", "held_out_accuracy", "learning_rate", "seconds", "images_per_second"]
    ] * 3
    assert [line["epoch"] for line in lines(whole)] == [1, 2, 3]
    for line in lines(whole):
        assert line["learning_rate"] == recipe.lr * recipe.lr_factor(line["epoch"] * STEPS - 1, 3 * STEPS)
        assert line["loss_per_2000"] == []
        assert line["held_out_accuracy"] * 10 == pytest.approx(round(line["held_out_accuracy"] * 10))
        assert line["images_per_second"] == pytest.approx(30 / line["seconds"])


@pytest.mark.parametrize("window", [1, 3, 5])
def test_windows_hold_the_mean_loss_of_so_many_batches(tmp_path, recipe, tiny, no_plots, monkeypatch, window):
    means = []

    class Ears(Silent):
        def progress(self, progress):
            means.append(progress.loss)

    monkeypatch.setattr(loop, "PROGRESS_SECONDS", -1)
    monkeypatch.setattr(loop, "WINDOW", window)
    loop.train(replace(recipe, epochs=1), tiny, tmp_path / "run", TrainingOptions(listener=Ears()))
    sums = np.array([0, *means]) * np.arange(STEPS + 1)
    losses, (line,) = np.diff(sums), lines(tmp_path / "run")
    wanted = [losses[start : start + window].mean() for start in range(0, STEPS - window + 1, window)]
    assert line[f"loss_per_{window}"] == pytest.approx(wanted, rel=1e-5)
    assert line["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_progress_ends_each_epoch_with_its_loss(tmp_path, recipe, tiny, no_plots):
    told = []

    class Ears(Silent):
        def progress(self, progress):
            told.append(progress)

        def epoch(self, metrics):
            told.append(metrics)

    loop.train(recipe, tiny, tmp_path / "run", TrainingOptions(listener=Ears()))
    assert [entry["epoch"] for entry in told if isinstance(entry, dict)] == [1, 2, 3]
    for progress, metrics in itertools.pairwise(told):
        if isinstance(metrics, dict):
            assert (progress.epoch, progress.step, progress.steps) == (metrics["epoch"], STEPS, STEPS)
            assert progress.loss == pytest.approx(metrics["loss"])


def test_the_rate_follows_the_schedule_also_where_it_goes_on(tmp_path, recipe, tiny, no_plots, steps, stopper):
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, tmp_path / "run", TrainingOptions(listener=stopper("epoch", 2)))
    loop.resume(Run(tmp_path / "run"), tiny)
    wanted = [recipe.lr * recipe.lr_factor(step, 3 * STEPS) for step in range(3 * STEPS)]
    assert len(set(wanted)) > 6
    assert [[rate for rate, _, _ in groups] for groups in steps] == [[rate] * 2 for rate in wanted]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_alone_decay(tmp_path, recipe, tiny, no_plots, steps, optimizer):
    loop.train(replace(recipe, epochs=1, optimizer=optimizer, weight_decay=0.25), tiny, tmp_path / "run")
    decays = [{ndim: decay for _, decay, ndims in groups for ndim in ndims} for groups in steps]
    assert decays == [{4: 0.25, 2: 0.25, 1: 0.0}] * STEPS


def test_momentum_0_turns_nesterov_off(tmp_path, recipe, tiny, no_plots):
    loop.train(replace(recipe, epochs=1, momentum=0.0), tiny, tmp_path / "run")
    assert Run(tmp_path / "run").record.is_finished


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"optimizer": "lion"}, "lion"), ({"net": "tower"}, "tower"), ({"translate": 32}, "moved by 32")],
)
def test_what_there_is_not_is_named_and_leaves_no_weights(tmp_path, recipe, tiny, changes, word):
    with pytest.raises(RunError, match=word):
        loop.train(replace(recipe, **changes), tiny, tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_pictures_of_another_size_are_refused_before_a_folder_is_made(tmp_path, recipe):
    large = data.synthetic(20, 10, contract=Contract(("one", "two"), 64))
    for net in ("net", "small"):
        with pytest.raises(RunError, match="32x32 pixels, and these have 64x64"):
            loop.train(replace(recipe, net=net), large, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_labels_make_another_net_and_travel_into_the_record(tmp_path, recipe, no_plots):
    contract = Contract(("Äpfel", "梨", "plum tree"), 32)
    drawn = data.synthetic(30, 12, contract=contract)
    result = loop.train(replace(recipe, epochs=1, held_out=0.2), drawn, tmp_path / "run")
    record = Run(tmp_path / "run").record
    assert record.contract == contract
    assert list(record.test["per_class"]) == list(contract.labels) == list(result.class_names)
    assert np.array(record.test["confusion"]).shape == (3, 3)
    assert record.dataset.trained_on == 24
    logits = logits_with(Run(tmp_path / "run").net())(drawn.test_images)
    assert logits.shape == (12, 3)


def test_each_epoch_shows_every_image_once_in_another_order(tmp_path, tiny, no_plots, shown):
    recipe = replace(REFERENCE, net="recording", epochs=3, batch_size=16)
    loop.train(recipe, numbered(tiny), tmp_path / "run")
    seen = numbers(shown)
    epochs = [seen[:40], seen[40:80], seen[80:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_held_out_images_are_never_trained_on(tmp_path, recipe, tiny, no_plots, shown):
    plain = replace(recipe, net="recording", epochs=2, flip=False, translate=0, cutout=0, corrupted=0.0)
    loop.train(plain, numbered(tiny), tmp_path / "run")
    trained_on, _ = tiny.hold_out(0.25)
    assert set(numbers(shown)) == set(trained_on.tolist())


def test_a_full_data_run_repeats_its_selection_run_on_all_images_and_is_tested_once(
    whole, tmp_path, tiny, no_plots, monkeypatch
):
    evaluated_on = []

    def counted(classify, images, labels, names):
        evaluated_on.append("test" if images is tiny.test_images else "other")
        return evaluate(classify, images, labels, names)

    monkeypatch.setattr(loop, "evaluate", counted)
    selection, folder = Run(whole).record, tmp_path / "final"
    recipe, taken = follow(Run(whole))
    result = loop.train(recipe, tiny, folder, TrainingOptions(selection_run=taken))
    record = Run(folder).record
    assert record.recipe == replace(selection.recipe, held_out=0.0)
    assert record.dataset.trained_on == 40  # of which the selection run held out 10
    assert record.seed == record.selection_run.seed == selection.seed
    assert record.temperature == record.selection_run.temperature == selection.temperature != 1
    assert record.selection_run.weights_sha256 == digest(whole)
    assert evaluated_on == [*["other"] * 3, "test"]
    assert [name for line in lines(folder) for name in line if name.endswith("accuracy")] == []
    assert record.test == result.as_json()
    assert {path.name for path in folder.iterdir()} == FINISHED


def test_a_full_data_run_resumes_to_the_same_weights_and_temperature(whole, tmp_path, tiny, no_plots, stopper):
    recipe, taken = follow(Run(whole))
    loop.train(recipe, tiny, tmp_path / "once", TrainingOptions(selection_run=taken))
    options = TrainingOptions(listener=stopper("epoch", 2), selection_run=taken)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, tmp_path / "cut", options)
    loop.resume(Run(tmp_path / "cut"), tiny)
    assert digest(tmp_path / "cut") == digest(tmp_path / "once")
    assert Run(tmp_path / "cut").record.test["nll"] == Run(tmp_path / "once").record.test["nll"]


def test_a_full_data_run_follows_a_finished_one_that_held_images_out_of_the_same_data(
    whole, tmp_path, recipe, tiny, no_plots, stopper
):
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, tmp_path / "cut", TrainingOptions(listener=stopper("epoch", 1)))
    with pytest.raises(RunError, match="cut is not finished"):
        follow(Run(tmp_path / "cut"))
    for name, share in (("all", 0.0), ("none", 0.01)):
        loop.train(replace(recipe, epochs=1, held_out=share), tiny, tmp_path / name)
        with pytest.raises(RunError, match="held no images out"):
            follow(Run(tmp_path / name))
    full, taken = follow(Run(whole))
    other = data.synthetic(40, 20, seed=1)
    with pytest.raises(RunError, match="other data") as caught:
        loop.train(full, other, tmp_path / "other", TrainingOptions(selection_run=taken))
    assert caught.value.option == "data"
    assert not (tmp_path / "other").exists()


def test_too_small_a_share_holds_out_nothing(tmp_path, recipe, tiny, no_plots):
    loop.train(replace(recipe, epochs=1, held_out=0.01), tiny, tmp_path / "run")
    assert "test_accuracy" in lines(tmp_path / "run")[0]
    assert Run(tmp_path / "run").record.temperature == 1.0


def test_run_json_says_everything(whole, recipe, tiny):
    record = json.loads((whole / "run.json").read_text())
    assert record["recipe"] == asdict(recipe)
    assert record["contract"] == tiny.contract.as_json()
    assert (record["seed"], record["device"], record["status"], record["epochs_done"]) == (0, "cpu", "finished", 3)
    assert record["hardware"] == record["machine"]["cpu"] == machine.cpu_info()[0]
    for package in ("edgecifar", "numpy", "torch", "torchvision"):
        assert record["machine"]["versions"][package] == metadata.version(package)
    assert record["dataset"] == {"name": "synthetic", "sha256": tiny.digest, "trained_on": 30}
    assert record["weights_sha256"] == digest(whole)
    assert record["started"] <= record["finished"]
    assert record["training_seconds"] == pytest.approx(sum(line["seconds"] for line in lines(whole)), rel=0.5)


def test_the_result_is_that_of_the_stored_net(whole, tiny):
    record, net = Run(whole).record, Run(whole).net()
    logits = logits_with(net)
    images, labels = (array[tiny.hold_out(0.25)[1]] for array in (tiny.train_images, tiny.train_labels))
    assert record.temperature == pytest.approx(fit_temperature(logits(images), labels), rel=1e-4)
    assert record.temperature != 1
    probabilities = classify_with(net, record.temperature)(tiny.test_images)
    exact = torch.softmax(torch.from_numpy(logits(tiny.test_images)).double() / record.temperature, 1).numpy()
    assert np.abs(probabilities - exact).max() < 1e-6
    assert record.test["correct"] == (exact.argmax(1) == tiny.test_labels).sum()
    assert record.test["nll"] == pytest.approx(-np.log(exact[np.arange(20), tiny.test_labels]).mean(), rel=1e-4)
    last = lines(whole)[-1]["held_out_accuracy"]
    assert last == pytest.approx((logits(images).argmax(1) == labels).mean())


def test_pictures_are_pngs(tmp_path, recipe, tiny):
    loop.train(replace(recipe, epochs=2), tiny, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FINISHED
    for name, size in (("curves.png", (990, 396)), ("confusion.png", (704, 616))):
        with Image.open(tmp_path / "run" / name) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", size)
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn


@pytest.mark.parametrize("last_step_only", [False, True])
def test_loss_that_is_not_finite(whole, tmp_path, recipe, tiny, no_plots, monkeypatch, last_step_only):
    factor, run = Recipe.lr_factor, Run(tmp_path / "run")
    broken = 2 * STEPS - 1 if last_step_only else STEPS  # a step of the second epoch

    def explode(self, step, steps):
        return 1e38 if step == broken else factor(self, step, steps)

    with monkeypatch.context() as context:
        context.setattr(Recipe, "lr_factor", explode)
        with pytest.raises(RunError, match="not finite any more") as caught:
            loop.train(recipe, tiny, run.folder)
    assert caught.value.option == "lr"
    assert ("after epoch 2" if last_step_only else "at step 4 of epoch 2") in str(caught.value)
    assert f"epoch 1 is kept in {run.folder}" in str(caught.value)
    assert [line["epoch"] for line in lines(run.folder)] == [1]
    assert all(tensor.isfinite().all() for tensor in run.net().state_dict().values())
    loop.resume(run, tiny)
    assert digest(run.folder) == digest(whole)


def test_loss_that_is_not_finite_in_the_first_epoch(tmp_path, recipe, tiny):
    with pytest.raises(RunError, match="of epoch 1: train again with a smaller learning rate than 1e\\+38"):
        loop.train(replace(recipe, lr=1e38, schedule="constant"), tiny, tmp_path / "run")


class Hungry(SmallNet):
    """A net that fails in its first step."""

    failure: Exception | None = None

    def forward(self, x):
        if self.failure:
            raise self.failure
        return torch.empty(10**15)


@pytest.mark.parametrize(
    "failure",
    [
        None,  # what the CPU's allocator itself says
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_memory_that_runs_out(tmp_path, recipe, tiny, monkeypatch, failure):
    monkeypatch.setitem(NETS, "hungry", Hungry)
    monkeypatch.setattr(Hungry, "failure", failure)
    with pytest.raises(RunError, match="smaller than 8") as caught:
        loop.train(replace(recipe, net="hungry"), tiny, tmp_path / "run")
    assert caught.value.option == "batch_size"


def test_an_unknown_failure_is_not_called_memory(tmp_path, recipe, tiny, monkeypatch):
    monkeypatch.setitem(NETS, "hungry", Hungry)
    monkeypatch.setattr(Hungry, "failure", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        loop.train(replace(recipe, net="hungry"), tiny, tmp_path / "run")


def test_reference_learns_as_a_plain_loop_does(tmp_path, no_plots, monkeypatch):
    """Ten steps of the recipe equal those of a loop as torch's documentation has it; dropout's masks are given."""
    drawn, seed, losses = data.synthetic(80, 10), 3, []
    monkeypatch.setattr(loop, "WINDOW", 1)
    loop.train(replace(REFERENCE, epochs=2, net="narrow"), drawn, tmp_path / "run", TrainingOptions(seed=seed))

    torch.manual_seed(seed)
    net = NarrowNet(10)
    net.dropout = ByteDropout(0.5)
    net.to(memory_format=torch.channels_last)  # masks follow the order in memory
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    pictures = [to_tensor(image) * 2 - 1 for image in drawn.train_images]
    for epoch in range(2):
        torch.manual_seed(derive_seed(seed, epoch, DROPOUT))
        for batch in epoch_plan(seed, epoch, 80, 16, torch.device("cpu")).batches:
            optimizer.zero_grad()
            shown = torch.stack([pictures[index] for index in batch])
            loss = nn.CrossEntropyLoss()(net(shown), torch.from_numpy(drawn.train_labels)[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    found = [loss for line in lines(tmp_path / "run") for loss in line["loss_per_1"]]
    assert len(found) == 10
    assert found == pytest.approx(losses, rel=1e-5)
    for name, tensor in Run(tmp_path / "run").net().state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-4, atol=1e-6)

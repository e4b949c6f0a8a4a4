"""Two processes of torchrun train to what one trains to, go on with each other's runs, and fail together."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import double_net  # noqa: F401  the net "double"
import pytest
import torch
from torch import nn

from edgecifar.runtime.errors import RunError
from edgecifar.train import distributed, loop
from edgecifar.train.distributed import Group
from edgecifar.train.listeners import Silent
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.recipes import Recipe
from edgecifar.train.run import Run

CPU = torch.device("cpu")
SGD = Recipe(
    "sgd",
    epochs=2,
    batch_size=7,  # of 30 images: parts of 3 and 4, at last of 1 and 1
    lr=0.05,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    warm_up=0.3,
    label_smoothing=0.1,
    dropout=0.0,
    flip=True,
    translate=2,
    cutout=4,
    corrupted=0.5,
    held_out=0.25,
    net="small",
)
RECIPES = {
    "sgd": SGD,
    "muon": replace(SGD, optimizer="muon"),
    "empty": replace(SGD, batch_size=29),  # the last batch is one image: one of the processes has none
    "many layers": replace(SGD, epochs=1, batch_size=11, lr=0.01, net="double"),
}


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    script = Path(__file__).with_name("train_together.py")
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,  # a hang is a failure
        check=False,
    )


def same_but_for_rounding(run: Run, other: Run) -> None:
    """Compare what two runs ended with, tensor by tensor, and the loss of each epoch."""
    state, wanted = run.net().state_dict(), other.net().state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.linalg.vector_norm((state[name] - tensor).double()) <= 1e-5 * torch.linalg.vector_norm(
            tensor.double()
        ), name
    losses, wanted_losses = (
        [json.loads(line)["loss"] for line in (it.folder / "metrics.jsonl").read_text().splitlines()]
        for it in (run, other)
    )
    assert losses == pytest.approx(wanted_losses, rel=1e-5)


class Interrupt(Silent):
    def epoch(self, metrics):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_two_processes_train_to_what_one_trains_to(tmp_path, tiny, no_plots):
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    (together / "recipes.json").write_text(json.dumps({name: asdict(recipe) for name, recipe in RECIPES.items()}))
    for name, recipe in RECIPES.items():
        loop.train(recipe, tiny, alone / name)
    with pytest.raises(KeyboardInterrupt):
        loop.train(SGD, tiny, together / "one", TrainingOptions(listener=Interrupt()))
    result = torchrun("library", together, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["process 0 of 2", "process 1 of 2"]
    assert "Warning" not in result.stderr
    for name in RECIPES:
        assert Run(together / name).record.conditions.processes == 2
        same_but_for_rounding(Run(together / name), Run(alone / name))
    same_but_for_rounding(Run(together / "one"), Run(alone / "sgd"))
    loop.resume(Run(together / "two"), tiny)
    same_but_for_rounding(Run(together / "two"), Run(alone / "sgd"))
    assert {path.name for path in together.iterdir()} == {*RECIPES, "one", "two", "recipes.json"}


@pytest.mark.slow
def test_a_failure_ends_all_processes_with_one_sentence(tmp_path, tiny, no_plots):
    """The loss is not finite any more in the second epoch, in every process at once."""
    options = ("--data", "synthetic", "--device", "cpu", "--recipe", "reference", "--epochs", 2, "--batch-size", 8)
    result = torchrun("train", *map(str, options), cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert result.returncode == 1
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if line.startswith(("edgecifar", "epoch", "Recipe"))]
    assert [line.partition(":")[0].partition("  loss")[0] for line in said] == [
        "Recipe reference",
        "epoch   1/2",
        "edgecifar",
    ]
    assert ", 2 processes. " in said[0]
    assert re.search(rf"not finite any more at step [2-5] of epoch 2; .* kept in runs/{folder.name}: .*--lr", said[2])
    assert "train_together.py FAILED" in result.stderr  # torchrun's own report follows
    assert Run(folder).record.epochs_done == 1
    loop.resume(Run(folder), tiny)
    assert Run(folder).record.is_finished


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_the_parts_are_the_batch(size, count):
    batch = list(range(count))
    parts = [batch[Group(None, rank, size).shard(count)] for rank in range(size)]
    assert [*itertools.chain(*parts)] == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", [1, 7])
def test_the_mean_of_the_weighed_losses_is_the_batch_s(count):
    """With what DistributedDataParallel does to the gradients done by hand; one of the two parts of one is empty."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 3, generator=generator, requires_grad=True)
    images, labels = torch.randn(count, 3, generator=generator), torch.randint(10, (count,), generator=generator)
    losses = []
    for group in (Group(None, rank, 2) for rank in range(2)):
        mine = group.shard(count)
        loss = nn.functional.cross_entropy(images[mine] @ weight.T, labels[mine])
        losses.append(group.scale_loss(loss, len(labels[mine]), count))
    wanted = nn.functional.cross_entropy(images @ weight.T, labels)
    torch.testing.assert_close(sum(losses) / 2, wanted)
    mean, *_ = torch.autograd.grad(sum(losses) / 2, weight)
    torch.testing.assert_close(mean, torch.autograd.grad(wanted, weight)[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_is_torch_s(monkeypatch, layout):
    """Of one process; that two agree with one is tested above."""
    monkeypatch.setattr(distributed, "_total", torch.clone)
    norms = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    norms[0].__class__ = distributed._WholeBatchNorm
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(6, 5, 4, 3, generator=generator) * 3 + 100).to(memory_format=layout)
    pull = torch.randn(6, 5, 4, 3, generator=generator)
    for _ in range(2):
        torch.testing.assert_close(norms[0](x), norms[1](x), rtol=1e-4, atol=1e-4)
    gradients = []
    for norm in (norms[0], norms[1].double()):
        norm.zero_grad()
        inputs = x.detach().to(norm.weight.dtype, copy=True).requires_grad_()
        result = norm(inputs)
        assert result.is_contiguous(memory_format=layout)
        result.backward(pull.to(result.dtype))
        gradients.append([tensor.double() for tensor in (inputs.grad, norm.weight.grad, norm.bias.grad)])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    for name, buffer in norms[1].named_buffers():
        torch.testing.assert_close(norms[0].get_buffer(name).double(), buffer.double(), rtol=1e-5, atol=1e-5)
    norms[0].eval()
    assert torch.equal(norms[0](x).double(), nn.BatchNorm2d.forward(norms[0], x).double())


def test_devices_of_several_processes(monkeypatch):
    for name, value in (("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    group = Group(object(), 1, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="4 processes on a machine with 2 GPUs: use --nproc-per-node 2"):
        group.connect(torch.device("cuda"))
    with pytest.raises(RunError, match="not mps"):
        group.connect(torch.device("mps"))
    connected = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", connected.append)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *args, **_: connected.extend(args))
    assert group.connect(torch.device("cuda")) == torch.device("cuda:1")
    assert connected == [torch.device("cuda:1"), "nccl"]


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as other software sets it
    with distributed.joined() as group:
        assert (group.rank, group.size, group.is_main) == (0, 1, True)
        assert group.connect(CPU) == CPU
        assert group.broadcast("name") == "name"
        with group.main_process_first():
            pass
        net, loss = nn.BatchNorm2d(3), torch.tensor(2.0)
        assert group.wrap(net) is net
        assert type(net) is nn.BatchNorm2d
        assert group.scale_loss(loss, 7, 7) is loss
        assert group.shard(7) == slice(0, 7)
    assert not torch.distributed.is_initialized()


class Store:
    """A store in which so many processes have failed already."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def add(self, _key: str, count: int) -> int:
        self.failures += count
        return self.failures


@pytest.fixture
def failing(monkeypatch):
    """Fail inside `joined` with `error` after so many other processes; return what comes out."""

    def call(error: BaseException, failures: int) -> BaseException:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", "2")
        module = sys.modules["torch.distributed.rendezvous"]  # torch.distributed has a function of that name
        monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(Store(failures), 1, 2)]))
        monkeypatch.setattr(distributed.time, "sleep", lambda seconds: None)
        with pytest.raises(BaseException) as caught, distributed.joined():  # noqa: PT011
            raise error
        return caught.value

    return call


@pytest.mark.parametrize(
    "error", [RunError("The disk is full."), RuntimeError("a bug"), KeyboardInterrupt(), OSError("odd")]
)
def test_only_the_first_failure_is_said(failing, error):
    assert failing(error, 0) is error
    silent = failing(error, 1)
    assert isinstance(silent, SystemExit)
    assert silent.code == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:24567"),
        torch.distributed.DistBackendError("NCCL error"),
        torch.distributed.DistNetworkError("The client socket has timed out"),
    ],
)
def test_a_process_that_is_gone(failing, error):
    failure = failing(error, 0)
    assert isinstance(failure, RunError)
    assert "Another process" in str(failure)
    assert failure.option == "resume"
    assert isinstance(failing(error, 1), SystemExit)

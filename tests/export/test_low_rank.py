"""Low rank: the best of its rank, exact at full rank, and only where it is worth it."""

from __future__ import annotations

import pytest
import torch

from edgecifar.export.compress import low_rank
from edgecifar.export.graph import layer_of
from edgecifar.train.net import FEATURES


@pytest.fixture(scope="module")
def principals(deployed, small):
    return low_rank.principal_outputs(deployed, small.train_images)


@pytest.fixture(scope="module")
def seen(deployed, small) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What each layer reads and gives for the training images: inputs, float32; outputs as rows, float64."""
    found = {}

    def remember(name):
        def hook(_layer, inputs, outputs):
            read = inputs[0].unflatten(1, (6, 6, -1)).permute(0, 3, 1, 2) if name == "fc1" else inputs[0]
            found[name] = read, rows(outputs)

        return hook

    hooks = [layer_of(deployed, name).register_forward_hook(remember(name)) for name in low_rank.FACTORED]
    with torch.inference_mode():
        deployed(torch.from_numpy(small.train_images))
    for hook in hooks:
        hook.remove()
    return found


def rows(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs.permute(0, 2, 3, 1).reshape(-1, outputs.shape[1]) if outputs.ndim == 4 else outputs).double()


@pytest.mark.parametrize("name", low_rank.FACTORED)
class TestPrincipalOutputs:
    def test_mean(self, principals, seen, name):
        torch.testing.assert_close(principals[name].mean, seen[name][1].mean(0), atol=1e-5, rtol=1e-5)

    def test_directions_are_orthonormal(self, principals, name):
        directions = principals[name].directions
        torch.testing.assert_close(directions.T @ directions, torch.eye(len(directions), dtype=torch.float64))

    def test_variances_are_those_along_the_directions_the_largest_first(self, principals, seen, name):
        principal, outputs = principals[name], seen[name][1]
        along = ((outputs - principal.mean) @ principal.directions).pow(2).mean(0)
        largest = principal.variances[0].item()
        torch.testing.assert_close(along, principal.variances, atol=1e-6 * largest, rtol=1e-4)
        assert (principal.variances.diff() <= 0).all()


class TestRank:
    @pytest.mark.parametrize(
        ("lost", "rank"), [(0.5, 8), (0.31, 8), (0.29, 16), (0.012, 16), (0.008, 32), (0.001, 64), (0.0, 64)]
    )
    def test_smallest_multiple_of_8_that_keeps_enough(self, lost, rank):
        # The first 8 of 64 directions hold 70 %, the next 8 29 %, the other 48 1 %.
        variances = torch.cat([torch.full((8,), 0.7 / 8), torch.full((8,), 0.29 / 8), torch.full((48,), 0.01 / 48)])
        principal = low_rank.Principal(torch.zeros(64), torch.eye(64), variances.double())
        assert principal.rank(lost) == rank


@pytest.mark.parametrize("name", low_rank.FACTORED)
class TestLowRank:
    def test_exact_at_full_rank(self, deployed, principals, seen, name):
        layer, (inputs, outputs) = layer_of(deployed, name), seen[name]
        whole = low_rank.low_rank(layer, principals[name], len(layer.weight))
        torch.testing.assert_close(rows(whole(inputs)), outputs, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("rank", [1, 8, 40])
    def test_the_error_is_the_least_that_the_rank_allows(self, deployed, principals, seen, name, rank):
        layer, (inputs, exact) = layer_of(deployed, name), seen[name]
        error = (rows(low_rank.low_rank(layer, principals[name], rank)(inputs)) - exact).pow(2).sum()
        left = torch.linalg.svdvals(exact - exact.mean(0))[rank:].pow(2).sum()  # Eckart, Young, Mirsky
        assert left > 0
        assert error.item() == pytest.approx(left.item(), rel=1e-2)

    def test_what_passes_between_the_two_has_unit_variance(self, deployed, principals, seen, name):
        down, *_ = low_rank.low_rank(layer_of(deployed, name), principals[name], 8)
        between = rows(down(seen[name][0]))
        torch.testing.assert_close(between.mean(0), torch.zeros(8).double(), atol=1e-2, rtol=0)
        torch.testing.assert_close(between.var(0, correction=0), torch.ones(8).double(), atol=0, rtol=1e-2)

    def test_shapes_and_source(self, deployed, principals, name):
        layer = layer_of(deployed, name)
        before = layer.weight.clone()
        down, *_, up = low_rank.low_rank(layer, principals[name], 16)
        outputs, *inputs = layer.weight.shape
        if name == "fc1":
            assert list(down.weight.shape) == [16, deployed.conv6.out_channels, *FEATURES[1:]]
            assert list(up.weight.shape) == [outputs, 16]
        else:
            assert list(down.weight.shape) == [16, *inputs]
            assert list(up.weight.shape) == [outputs, 16, 1, 1]
        assert not any(parameter.requires_grad for parameter in (*down.parameters(), *up.parameters()))
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", low_rank.FACTORED)
class TestSplit:
    def test_one_layer_of_a_copy(self, deployed, principals, name):
        reduced, rank = low_rank.split(deployed, name, principals[name], 0.1)
        assert rank == principals[name].rank(0.1)
        assert len(reduced.get_submodule(name)[0].weight) == rank
        assert layer_of(deployed, name) is not layer_of(reduced, name)
        assert layer_of(deployed, name).weight.shape[1] != rank
        assert reduced.conv1 is deployed.conv1
        images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        assert not torch.equal(reduced(images)[1], deployed(images)[1])

    def test_a_layer_that_would_not_shrink_stays_whole(self, deployed, principals, name):
        principal = principals[name]
        flat = low_rank.Principal(principal.mean, principal.directions, torch.ones_like(principal.variances))
        assert low_rank.split(deployed, name, flat, 0.001) == (deployed, 0)

import numpy as np
import pytest
import torch

from lm.data.sampler import Order, Slice, TrainBatches, ValidWindows, get_batch

TOKENS = np.arange(1000, dtype=np.uint16)


def rows(loader: TrainBatches, index: int) -> list[list[int]]:
    return loader.batch(index)[0].tolist()


def loader(
    rank: int = 0, world_size: int = 1, accumulate: int = 1, seed: int = 0, order: Order = "random"
) -> TrainBatches:
    return TrainBatches(TOKENS, 12, 8, seed, Slice.of(12, rank, world_size, accumulate), order=order)


def test_get_batch_draws_every_start_evenly_and_shifts_targets() -> None:
    torch.manual_seed(0)
    tokens = np.arange(20)
    inputs, targets = get_batch(tokens, 4000, 7, "cpu")
    assert inputs.shape == targets.shape == (4000, 7)
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, :1] + torch.arange(7), inputs)
    counts = torch.bincount(inputs[:, 0], minlength=13)
    assert len(counts) == 13  # starts 0..12: the last window's target is the last token
    assert counts.min() > 4000 / 13 * 0.7


def test_get_batch_refuses_short_data() -> None:
    assert get_batch(np.arange(8), 2, 7, "cpu")[0].tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    with pytest.raises(ValueError, match="holds 7 tokens.*at least 8"):
        get_batch(np.arange(7), 2, 7, "cpu")


@pytest.mark.parametrize("order", ["random", "shuffled"])
def test_batches_depend_on_seed_and_step_alone(order: Order) -> None:
    used = loader(order=order)
    for step in (40, 5, 9):  # of several epochs, in any sequence
        assert rows(used, step) == rows(loader(order=order), step)
    assert rows(loader(order=order), 5) != rows(loader(order=order), 6)
    assert rows(loader(order=order), 5) != rows(loader(seed=1, order=order), 5)


def test_neighbouring_seeds_do_not_share_batches() -> None:
    assert rows(loader(), 1) != rows(loader(seed=1), 0)


def test_every_window_is_drawn() -> None:
    batches = TrainBatches(TOKENS[:12], 400, 8, 0, Slice.of(400, 0, 1, 1))
    assert set(batches.batch(0)[0][:, 0].tolist()) == {0, 1, 2, 3}


def test_shuffled_epochs_read_every_token_once_at_offsets_of_their_own() -> None:
    batches = loader(order="shuffled")
    windows = (1000 - 8) // 8
    drawn = [row for step in range(5 * windows // 12 + 1) for row in rows(batches, step)]
    epochs = [drawn[epoch * windows : (epoch + 1) * windows] for epoch in range(5)]
    offsets = []
    for epoch in epochs:
        tokens = sorted(token for row in epoch for token in row)
        assert tokens == list(range(tokens[0], tokens[0] + 8 * windows))
        assert tokens[0] < 8
        assert epoch != sorted(epoch)
        offsets.append(tokens[0])
    assert len(set(offsets)) > 1


@pytest.mark.parametrize("count", [9, 12, 16, 17])
def test_shuffled_epochs_of_a_short_text(count: int) -> None:
    batches = TrainBatches(TOKENS[:count], 400, 8, 0, Slice.of(400, 0, 1, 1), order="shuffled")
    assert set(batches.batch(0)[0][:, 0].tolist()) == set(range(min(8, count - 8)))


@pytest.mark.parametrize("order", ["random", "shuffled"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 3), (2, 3), (4, 1)])
def test_global_batch_is_the_same_on_any_number_of_devices(world_size: int, accumulate: int, order: Order) -> None:
    for step in (0, 7, 10):  # the tenth, from 0, spans two epochs
        parts = [
            row
            for micro in range(accumulate)
            for rank in range(world_size)
            for row in rows(loader(rank, world_size, accumulate, order=order), step * accumulate + micro)
        ]
        assert parts == rows(loader(order=order), step)


def test_uneven_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size 12 does not divide over 5 devices"):
        Slice.of(12, 0, 5, 1)


def test_position_survives_a_restart() -> None:
    first = loader(accumulate=2)
    stream = iter(first)
    for _ in range(5):
        next(stream)
    state = first.state_dict()
    expected = next(stream)
    second = loader(accumulate=2)
    second.load_state_dict(state)
    assert torch.equal(next(iter(second))[0], expected[0])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_every_window_once(batch_size: int, world_size: int) -> None:
    seen = []
    lengths = set()
    for rank in range(world_size):
        windows = ValidWindows(TOKENS[:83], batch_size, 8, rank, world_size)
        batches = list(windows)
        lengths.add(len(windows))
        assert len(batches) == len(windows)
        for inputs, targets in batches:
            assert torch.equal(inputs + 1, targets)
            seen += inputs[:, 0].tolist()
    assert len(lengths) == 1  # collectives need as many batches on every rank
    assert sorted(seen) == list(range(0, 80, 8))


def test_validation_keeps_the_order() -> None:
    firsts = [b[0][:, 0].tolist() for b in ValidWindows(TOKENS[:41], 2, 8, 0, 1)]
    assert firsts == [[0, 8], [16, 24], [32]]

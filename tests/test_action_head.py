"""The action head: padding, time, shapes, settings, and what only the time can tell."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.action_head import build_action_head, published_time_encoding, time_encoding
from models.head_types import HEAD_TYPES
from tests.fill import fill_state_dict
from utils.misc import InputError

SMALL = {"in_d": 24, "frame_d": 20, "time_d": 8, "nhead": 4, "dim_feedforward": 32, "dropout": 0.0}


def small_head(head_type, n_classes=3, seed=0, **changes):
    torch.manual_seed(seed)
    return build_action_head(head_type, n_classes, **SMALL | changes)


def tubes(lengths, seed=0):
    """Random inputs (queries, times with gaps, padding, frame features), garbage where padded."""
    draw = torch.Generator().manual_seed(seed)
    n, longest = len(lengths), max(lengths)
    times = torch.randint(1, 4, (n, longest), generator=draw).cumsum(1)
    padding = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    queries = torch.randn(n, longest, SMALL["in_d"], generator=draw)
    frames = torch.randn(n, longest, SMALL["frame_d"], generator=draw)
    garbage = padding[..., None] * 100.0
    return queries + garbage, times - times[:, :1] + padding * 5000, padding, frames + garbage


def run(head, queries, times, padding=None, frames=None):
    return head(queries, times, padding, frames if head.needs_frames else None)


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_a_padded_batch_gives_what_its_tubes_give_alone(head_type, mode):
    head = small_head(head_type).train(mode == "train")
    lengths = [1, 2, 60, 17, 33, 59]
    queries, times, padding, frames = tubes(lengths)
    with torch.set_grad_enabled(mode != "no_grad"):
        together = run(head, queries, times, padding, frames)
        assert together.shape == (6, 60, 4) and together.isfinite().all()
        for i, n in enumerate(lengths):
            alone = run(head, queries[i : i + 1, :n], times[i : i + 1, :n], None, frames[i : i + 1, :n])
            torch.testing.assert_close(together[i, :n], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_gradients_come_from_unpadded_places_alone(head_type):
    head = small_head(head_type)
    lengths = [3, 40, 11]
    inputs = tubes(lengths)
    kept = ~inputs[2]
    run(head, *inputs)[kept].square().sum().backward()
    together = {name: p.grad.clone() for name, p in head.named_parameters()}
    head.zero_grad()
    for i, n in enumerate(lengths):
        queries, times, _, frames = (x[i : i + 1, :n] for x in inputs)
        run(head, queries, times, None, frames).square().sum().backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize("training", [True, False])
def test_a_row_of_padding_alone_harms_nobody(head_type, training):
    head = small_head(head_type).train(training)
    queries, times, padding, frames = tubes([5, 9])
    alone = run(head, queries, times, padding, frames)
    padding = torch.cat([padding, torch.ones(1, 9, dtype=torch.bool)])
    queries, times, frames = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (queries, times, frames))
    logits = run(head, queries, times, padding, frames)
    torch.testing.assert_close(logits[:2], alone, atol=1e-5, rtol=0)
    logits[:2].sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_gradient_reaches_every_parameter(head_type):
    head = small_head(head_type, dropout=0.1)
    queries, times, padding, frames = tubes([7, 12])
    logits = run(head, queries, times, padding, frames)[~padding]
    F.cross_entropy(logits, torch.arange(len(logits)) % 4).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_published_sizes_run_without_a_warning(head_type):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = build_action_head(head_type, 24, time_cycle=800, frame_d=2048)
        inputs = (torch.randn(2, 6, 256), torch.arange(6).expand(2, 6), torch.arange(6) >= torch.tensor([[6], [4]]))
        for training in (True, False):
            head.train(training)
            logits = run(head, *inputs, torch.randn(2, 6, 2048))
            assert logits.shape == (2, 6, 25) and logits.dtype == torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert run(head, *inputs, torch.randn(2, 6, 2048)).isfinite().all()


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_a_checkpoint_rebuilds_its_head(tmp_path, head_type):
    head = small_head(head_type, time_cycle=37).eval()
    torch.save({"model": head.state_dict(), "config": head.config, "epoch": 1}, tmp_path / "epoch_1.pth")
    held = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    again = build_action_head(**held["config"]).eval()
    again.load_state_dict(held["model"])
    inputs = tubes([4, 8])
    assert torch.equal(run(head, *inputs), run(again, *inputs))
    assert again.config == head.config and again.needs_frames == (head_type if head_type in ("x3d", "res") else None)


def test_layers_start_from_weights_of_their_own():
    first, second = small_head("vanilla").transformer.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize(("cycle", "d"), [(100, 32), (800, 32), (100, 256), (800, 256), (7, 2), (1, 4), (12345, 32)])
def test_time_goes_round_once_in_a_cycle(cycle, d):
    times = torch.arange(min(cycle, 1000))
    vectors = time_encoding(times, d, cycle)
    assert vectors.shape == (len(times), d) and vectors.dtype == torch.float32
    assert torch.equal(vectors, time_encoding(times + cycle, d, cycle))
    assert torch.equal(vectors, time_encoding(times + 10**6 * cycle, d, cycle))
    assert len(vectors.unique(dim=0)) == len(times)


def test_the_time_encoding_is_the_documented_formula():
    vector = time_encoding(torch.tensor([[3, 130]]), 6, 100)[0]
    for t, row in zip((3, 130), vector, strict=True):  # H = 16, so the harmonics are 1, 4 and 16
        angles = 2 * torch.pi * t / 100 * torch.tensor([1.0, 4.0, 16.0])
        torch.testing.assert_close(row, torch.cat([angles.sin(), angles.cos()]), atol=1e-5, rtol=0)
    slowest = time_encoding(torch.arange(100), 32, 100)[:, 0]
    assert slowest.argmax() == 25 and slowest.argmin() == 75  # a quarter and three quarters of the period
    steps = time_encoding(torch.arange(100), 32, 100).diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(99), atol=1e-4, rtol=0)  # time flows evenly


@pytest.mark.parametrize("base", [100, 800])
@pytest.mark.parametrize("d", [32, 256])
def test_the_published_time_encoding_is_the_published_codes(fixtures, d, base):
    expected = np.load(fixtures / "published_time_encoding.npz")
    times = torch.from_numpy(expected[f"times_{d}"])
    vectors, expected = published_time_encoding(times, d, base), torch.from_numpy(expected[f"pe_{d}_{base}"])
    below = times < 1000
    torch.testing.assert_close(vectors[below], expected[below], atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("base", "d"), [(100, 32), (100, 256), (800, 32), (800, 256)])
def test_the_published_time_encoding_tells_all_frames_of_a_long_tube_apart(base, d):
    """Two frames 16 to 4,000 apart are never as alike as neighbours; the periodic encoding repeats."""
    vectors = nn.functional.normalize(published_time_encoding(torch.arange(4000), d, base), dim=1)
    distance = (vectors - vectors[0]).norm(dim=1)  # sines and cosines: that of any two frames as far apart
    torch.testing.assert_close((vectors[1000:] - vectors[1000]).norm(dim=1), distance[:3000], atol=1e-3, rtol=0)
    assert distance[16:].min() > 0.94 > 2.5 * distance[1]
    periodic = time_encoding(torch.arange(4000), d, base)
    assert torch.equal(periodic[0], periodic[base])


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize(("base", "n_classes"), [(100, 21), (800, 24)])
def test_heads_with_published_times_answer_as_the_published_ones(shared, head_type, base, n_classes):
    arrays = np.load(shared / "oracles" / "published" / "published_heads.npz")
    head = build_action_head(head_type, n_classes, time_cycle=base, frame_d=2048, time_encoding="published").eval()
    fill_state_dict(head)
    for i in range(len(arrays["lengths"])):
        frames, queries = (torch.from_numpy(arrays[f"tube{i}/{name}"])[None] for name in ("frames", "queries"))
        frame_features = torch.from_numpy(arrays[f"tube{i}/frame_features"]).float()[None]
        with torch.inference_mode():
            logits = run(head, queries, frames - frames[:, :1], None, frame_features)
        expected = torch.from_numpy(arrays[f"{head_type}/base{base}/tube{i}"])
        torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=0)


def test_added_published_times_count_from_the_track_s_first_detection():
    queries, _, _, _ = tubes([9])
    head = small_head("time_ecd:add", time_encoding="published").eval()
    time = published_time_encoding(torch.arange(29), SMALL["in_d"], 100)
    shifted = queries + time[20:] - time[:9]
    times = torch.arange(9)[None]
    torch.testing.assert_close(head(queries, times, start=20), head(shifted, times))


def test_added_published_times_know_no_gaps():
    queries, _, _, _ = tubes([6])
    even, gap = torch.arange(6)[None], torch.tensor([[0, 1, 2, 13, 14, 15]])
    head = small_head("time_ecd:add", time_encoding="published").eval()
    assert torch.equal(head(queries, even), head(queries, gap))
    head = small_head("time_ecd:cat", time_encoding="published").eval()
    assert not torch.equal(head(queries, even), head(queries, gap))


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_gaps_change_the_answer_where_time_counts(head_type):
    head = small_head(head_type).eval()
    queries, _, _, frames = tubes([6])
    even, gap = torch.arange(6)[None], torch.tensor([[0, 1, 2, 13, 14, 15]])
    at_even, with_gap, a_cycle_on = (run(head, queries, t, None, frames) for t in (even, gap, even + 100))
    assert torch.equal(at_even, a_cycle_on)
    assert torch.equal(at_even, with_gap) == (head_type == "vanilla")


def test_frames_ask_and_queries_answer():
    head = small_head("x3d").eval()
    queries, times, _, frames = tubes([5])
    answer = head(queries, times, None, frames)
    assert not torch.allclose(answer, head(queries, times, None, frames.roll(1, 1)))
    assert not torch.allclose(answer, head(queries * 2, times, None, frames))
    with pytest.raises(ValueError, match="needs frame_features"):
        head(queries, times)


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_a_label_that_depends_on_time_alone_needs_the_time(head_type):
    head = small_head(head_type, n_classes=1, time_cycle=40)
    draw = torch.Generator().manual_seed(1)
    times = torch.stack([torch.randperm(40, generator=draw)[:20].sort().values for _ in range(16)])
    labels = times // 10 % 2
    queries = torch.ones(16, 20, SMALL["in_d"])
    frames = torch.ones(16, 20, SMALL["frame_d"])
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(80):
        loss = F.cross_entropy(run(head, queries, times, None, frames).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (run(head, queries, times, None, frames).argmax(-1) == labels).float().mean().item()
    if head_type == "vanilla":
        assert right < 0.65  # it can do no better than the commoner label
    else:
        assert right > 0.98


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_type": "lstm"}, "--head_type lstm: choose from vanilla, time_ecd:add, time_ecd:cat, x3d, res"),
        ({"time_encoding": "sines"}, "--time_encoding sines: choose from periodic, published"),
        ({"nhead": 5}, "nhead=5: must divide the width of vanilla, 24"),
        ({"head_type": "time_ecd:cat", "nhead": 6}, "nhead=6: must divide the width of time_ecd:cat, 32"),
        ({"head_type": "time_ecd:cat", "time_d": 9, "nhead": 3}, "time is 9 wide, which must be even"),
        ({"head_type": "time_ecd:add", "in_d": 25, "nhead": 5}, "time is 25 wide, which must be even"),
        ({"head_type": "x3d", "frame_d": 0}, "frame_d=0: must be an integer of at least 1"),
        ({"n_classes": 0}, "n_classes=0"),
        ({"time_cycle": 0}, "time_cycle=0"),
        ({"n_layers": 1.5}, "n_layers=1.5"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changes, said):
    with pytest.raises(InputError) as caught:
        build_action_head(**{"head_type": "vanilla", "n_classes": 3} | SMALL | changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)

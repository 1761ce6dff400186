"""Batches: right crops, one order for any number of workers, each image once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.config import Data
from ram_tune.data.batches import Source, evaluation_batches, steps_per_epoch, training_batches, whole_images

PIXELS = Data(image_size=64, crop_margin=32)
MAP = Data(image_size=64, crop_margin=32, crop="map")


def pixels(n=10, data=PIXELS) -> Source:
    array = np.random.default_rng(0).integers(0, 255, (n, 64, 64, 3), dtype=np.uint8)
    return Source(array, np.random.default_rng(1).integers(0, 2, (n, 5)).astype(bool), data)


def maps(n=10) -> Source:
    """A map of stride 16 whose cells hold the mean of the pixels under them, exactly representable."""
    images = pixels(n).array.astype(np.float32)

    def encode(batch):
        return torch.nn.functional.max_pool2d(torch.from_numpy(batch).permute(0, 3, 1, 2), 16)

    both = torch.stack([encode(images), encode(images[:, :, ::-1].copy())], dim=1).bfloat16()
    return Source(both.contiguous().view(torch.uint16).numpy(), pixels(n).targets, MAP)


def test_training_crops_are_cut_and_mirrored_as_they_say():
    source = pixels()
    seen_mirrored = set()
    for batch in training_batches(source, 4, seed=0, epoch=1):
        for piece, index, (left, top, side, mirrored) in zip(
            batch.inputs, batch.indices, batch.crops.tolist(), strict=True
        ):
            expected = source.array[index, top : top + side, left : left + side]
            np.testing.assert_array_equal(piece, expected[:, ::-1] if mirrored else expected)
            seen_mirrored.add(mirrored)
        np.testing.assert_array_equal(batch.targets, source.targets[batch.indices])
    assert seen_mirrored == {0, 1}


def test_map_crops_are_the_map_of_the_pixel_crop():
    source, images = maps(), pixels().array
    for batch in [*training_batches(source, 4, seed=0, epoch=1), *evaluation_batches(source, 4)]:
        for piece, index, (left, top, side, mirrored) in zip(
            batch.inputs, batch.indices, batch.crops.tolist(), strict=True
        ):
            assert left % 16 == top % 16 == 0
            crop = images[index, top : top + side, left : left + side].astype(np.float32)
            crop = torch.from_numpy(crop[:, ::-1].copy() if mirrored else crop).permute(2, 0, 1)
            torch.testing.assert_close(piece, torch.nn.functional.max_pool2d(crop, 16).bfloat16())


def test_mirroring_can_be_switched_off():
    source = pixels(data=Data(image_size=64, crop_margin=32, mirror=False))
    assert not any(batch.crops[:, 3].any() for batch in training_batches(source, 4, seed=0, epoch=1))


def test_evaluation_crops_the_centre_of_every_image_once():
    source = pixels()
    batches = list(evaluation_batches(source, 4))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
    assert all((batch.crops == torch.tensor([16, 16, 32, 0])).all() for batch in batches)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world=st.integers(1, 4), epoch=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_workers_share_the_same_global_batches(n, batch_size, world, epoch):
    source = pixels(n)
    alone = list(training_batches(source, batch_size, 7, epoch))
    shares = [list(training_batches(source, batch_size, 7, epoch, rank, world)) for rank in range(world)]
    assert len(alone) == steps_per_epoch(n, batch_size)
    assert sorted(torch.cat([batch.indices for batch in alone]).tolist()) == list(range(n))
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        sizes = [len(part.indices) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        together = [int(i) for part in parts[: len(whole.indices)] for i in part.indices]
        assert sorted(together) == sorted(whole.indices.tolist())  # each once
        assert all(part.indices.tolist() == whole.indices[:1].tolist() for part in parts[len(whole.indices) :])
        crops = {int(i): c for i, c in zip(whole.indices, whole.crops.tolist(), strict=True)}
        for part in parts:
            assert [crops[int(i)] for i in part.indices] == part.crops.tolist()
    once = [
        int(i) for rank in range(world) for b in evaluation_batches(source, batch_size, rank, world) for i in b.indices
    ]
    assert sorted(once) == list(range(n))


@given(world=st.integers(1, 3), pieces=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_boxes_go_with_their_image_to_any_worker_and_piece(world, pieces):
    boxes = np.random.default_rng(2).random((10, 3, 4), np.float32)
    source = replace(pixels(), boxes=boxes)
    for rank in range(world):
        share = [
            *training_batches(source, 4, 0, 1, rank, world),
            *evaluation_batches(source, 4, rank, world),
        ]
        for piece in (piece for batch in share for piece in batch.to(torch.device("cpu")).chunk(pieces)):
            np.testing.assert_array_equal(piece.boxes, boxes[piece.indices.numpy()])
            np.testing.assert_array_equal(piece.targets, source.targets[piece.indices.numpy()])
    whole = list(whole_images(source, 4))
    np.testing.assert_array_equal(torch.cat([there for _, there in whole]), boxes)
    assert all(there is None for _, there in whole_images(maps(), 4))


def test_pieces_are_the_batch():
    (batch,) = evaluation_batches(pixels(), 10)
    assert [len(piece.inputs) for piece in batch.chunk(4)] == [3, 3, 2, 2]
    assert len(list(batch.chunk(11))) == 10
    assert torch.equal(torch.cat([piece.crops for piece in batch.chunk(3)]), batch.crops)
    assert all(piece.boxes is None for piece in batch.chunk(3))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (0, 2)])
def test_another_seed_or_epoch_is_another_order(seed, epoch):
    source = pixels()
    first = torch.cat([b.indices for b in training_batches(source, 4, 0, 1)])
    assert not torch.equal(first, torch.cat([b.indices for b in training_batches(source, 4, seed, epoch)]))

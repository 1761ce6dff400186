"""The query decoder against attention written out in float64, and which label may see which."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ram_tune.config import Model
from ram_tune.config import QueryDecoder as Fields
from ram_tune.errors import BadInput
from ram_tune.models.query_decoder import QueryDecoder, positions
from ram_tune.presets import from_fields

LABELS, CHANNELS, WIDTH, HEADS = 5, 6, 8, 2


def model(**fields) -> QueryDecoder:
    """In evaluation mode, every parameter random: zero biases would hide an error."""
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "heads": HEADS, "feed_forward": 7, "layers": 1, **fields}
    made = QueryDecoder(Model(query_decoder=Fields(**sizes)), CHANNELS, LABELS).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def sine(height: int, width: int, size: int) -> np.ndarray:
    """Carion et al. 2020, a number at a time."""
    encoding = np.zeros((height * width, size))
    for row in range(height):
        for column in range(width):
            for half, share in enumerate(((row + 1) / height, (column + 1) / width)):
                for i in range(size // 2):
                    angle = 2 * math.pi * share / 10_000 ** (2 * (i // 2) / (size // 2))
                    encoding[row * width + column, half * size // 2 + i] = (math.cos if i % 2 else math.sin)(angle)
    return encoding


def by_hand(weights, f: np.ndarray, self_attention: bool) -> np.ndarray:
    """Scores of one image, one label and head at a time."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def attend(name: str, q: np.ndarray, keys, values) -> np.ndarray:
        q, found, share = linear(f"{name}.query", q), [], WIDTH // HEADS
        keys, values = [linear(f"{name}.key", k) for k in keys], [linear(f"{name}.value", v) for v in values]
        for part in (slice(start, start + share) for start in range(0, WIDTH, share)):
            raw = [math.exp(q[part] @ k[part] / math.sqrt(share)) for k in keys]
            found.append(sum(one / sum(raw) * v[part] for one, v in zip(raw, values, strict=True)))
        return linear(f"{name}.mix", np.concatenate(found))

    def norm(number: int, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return weights[f"layers.0.norms.{number}.weight"] * x + weights[f"layers.0.norms.{number}.bias"]

    cells = [linear("project", f[:, row, column]) for row in range(f.shape[1]) for column in range(f.shape[2])]
    keys = cells + sine(f.shape[1], f.shape[2], WIDTH)
    queries, first = list(weights["queries"]), int(self_attention)
    if self_attention:
        queries = [norm(0, q + attend("layers.0.among", q, queries, queries)) for q in queries]
    scores = []
    for i, q in enumerate(queries):
        q = norm(first, q + attend("layers.0.across", q, keys, cells))
        q = norm(first + 1, q + linear("layers.0.down", np.maximum(linear("layers.0.up", q), 0)))
        scores.append(weights["classifier.weight"][i] @ q + weights["classifier.bias"][i])
    return np.array(scores)


@pytest.mark.parametrize("self_attention", [True, False])
def test_one_layer_is_attention_written_out(self_attention):
    head, f = model(self_attention=self_attention), torch.randn(2, CHANNELS, 3, 4)
    weights = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    wanted = [by_hand(weights, image, self_attention) for image in f.double().numpy()]
    np.testing.assert_allclose(head(f).scores.detach().numpy(), wanted, atol=1e-4)


def test_attention_is_pytorchs():
    across = model().layers[0].across
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    parts = across.query, across.key, across.value
    theirs.in_proj_weight.data = torch.cat([part.weight for part in parts])
    theirs.in_proj_bias.data = torch.cat([part.bias for part in parts])
    theirs.out_proj.load_state_dict(across.mix.state_dict())
    q, k, v = torch.randn(2, LABELS, WIDTH), torch.randn(2, 12, WIDTH), torch.randn(2, 12, WIDTH)
    torch.testing.assert_close(across(q, k, v), theirs(q, k, v)[0])


@pytest.mark.parametrize(("height", "width", "size"), [(3, 4, 8), (8, 8, 64), (1, 5, 4)])
def test_the_position_encoding_is_the_formula(height, width, size):
    ours = positions(height, width, size, torch.device("cpu"))
    np.testing.assert_allclose(ours.numpy(), sine(height, width, size), atol=1e-6)


def test_where_a_cell_is_counts():
    head, f = model(), torch.randn(1, CHANNELS, 3, 4)
    assert not torch.allclose(head(f).scores, head(f.flip(3)).scores, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"self_attention": False, "layers": 3}, {"layers": 2}])
def test_labels_in_another_order_have_the_same_scores(fields):
    head, f, order = model(**fields), torch.randn(2, CHANNELS, 3, 4), [3, 0, 4, 1, 2]
    before = head(f).scores
    for parameter in (head.queries, head.classifier.weight, head.classifier.bias):
        parameter.data = parameter[order]
    torch.testing.assert_close(head(f).scores, before[:, order])


@pytest.mark.parametrize("self_attention", [True, False])
def test_labels_see_one_another_only_through_self_attention(self_attention):
    head, f = model(self_attention=self_attention, layers=2), torch.randn(2, CHANNELS, 3, 4)
    before = head(f).scores
    head.queries.data[2] += 1
    moved = (head(f).scores - before).abs().amax(dim=0) > 1e-5
    assert moved.tolist() == [self_attention or label == 2 for label in range(LABELS)]
    assert any(".among." in name for name, _ in head.named_parameters()) == self_attention


def test_gradients_reach_every_parameter_and_the_map():
    head, f = model(layers=2, dropout=0.0), torch.randn(2, CHANNELS, 3, 4, requires_grad=True)
    head(f).scores.square().sum().backward()
    silent = [name for name, parameter in head.named_parameters() if not parameter.grad.abs().max() > 1e-7]
    # A constant added to all keys leaves the softmax as it is.
    assert silent == [name for name, _ in head.named_parameters() if name.endswith(".key.bias")]
    assert (f.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_dropout_is_for_training_alone():
    head, f = model(dropout=0.5), torch.randn(1, CHANNELS, 3, 4)
    torch.testing.assert_close(head(f).scores, head(f).scores, rtol=0, atol=0)
    head.train()
    assert not torch.allclose(head(f).scores, head(f).scores)


def test_it_starts_xavier_each_label_by_itself():
    head = QueryDecoder(Model(), 16, 20)
    for layer in (head.project, head.layers[0].across.key, head.layers[1].up):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    bound = math.sqrt(6 / (512 + 1))
    assert (head.classifier.weight.abs().amax(dim=1) > 0.9 * bound).all()
    assert head.classifier.weight.abs().max() <= bound


def test_scores_stay_in_single_precision_under_autocast():
    head, f = model(), torch.randn(40, CHANNELS, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = head(f)
    assert prediction.scores.dtype == torch.float32
    assert len(prediction.scores.unique()) > 190  # of 200: bfloat16 has some hundred values in this range
    torch.testing.assert_close(prediction.scores, head(f).scores, atol=0.2, rtol=0.1)


def test_the_representation_is_the_largest_of_all_queries():
    head, f = model(), torch.randn(2, CHANNELS, 3, 4)
    head.classifier.weight.data = torch.eye(WIDTH)[:LABELS]  # row i reads number i of query i
    head.classifier.bias.data.zero_()
    prediction = head(f)
    assert prediction.features.shape == (2, 1, WIDTH)
    assert (prediction.features[:, 0, :LABELS] >= prediction.scores).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": 3}, r"width: found 512; expected a multiple of 12.*heads=3.*Try 504 or 516"),
        ({"width": 6, "heads": 2}, r"width: found 6; expected a multiple of 4, .*Try 4 or 8\."),
        ({"width": 4, "heads": 8}, r"expected a multiple of 8, .*Try 8\."),
        ({"dropout": 1.0}, r"query_decoder\.dropout.*less than 1"),
    ],
)
def test_sizes_that_do_not_go_together_name_field_and_remedy(fields, words):
    with pytest.raises(BadInput, match=words):
        from_fields({f"model.query_decoder.{name}": value for name, value in fields.items()})

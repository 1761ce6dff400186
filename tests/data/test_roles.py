"""Three roles that never mix, drawn fairly and always the same way."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.config import Data
from ram_tune.data import scenes, voc
from ram_tune.data.roles import Dataset, load, stratified
from ram_tune.errors import BadInput

OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"""


def write_coco(root: Path, split: str, labels: list[list[str]], categories: str = "abc") -> None:
    """`labels` of each image; the images themselves hold a byte each."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    for index in range(len(labels)):
        (root / split / f"{index}.jpg").write_bytes(b"x")
    pairs = [(image, categories.index(name)) for image, names in enumerate(labels) for name in names]
    document = {
        "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(len(labels))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(categories)],
        "annotations": [{"id": n, "image_id": i, "category_id": c} for n, (i, c) in enumerate(pairs)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def write_csv(folder: Path, lines: list[str], header: str = "path,labels,split") -> Data:
    file = folder / "own.csv"
    file.write_text("\n".join([header, *lines]))
    return Data(format="table", file=str(file), root=str(folder), train_split="train", test_split="test")


def write_voc(home: Path, split: str, images: dict[str, list[tuple[str, int]]]) -> None:
    """`images`: name → (category, difficult) of its objects."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
    for name, objects in images.items():
        text = "".join(OBJECT.format(*one) for one in objects)
        (home / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
        (home / "JPEGImages" / f"{name}.jpg").write_bytes(b"x")


def disjoint(dataset: Dataset) -> bool:
    files = [path for images in dataset.roles.values() for path in images.files()]
    return len(files) == len(set(files))


def refusal(data: Data, cache_dir: Path = Path("unused")) -> str:
    with pytest.raises(BadInput) as caught:
        load(data, cache_dir)
    return str(caught.value)


def coco_data(root: Path, **fields) -> Data:
    return Data(format="coco", root=str(root), **{"train_split": "one", "test_split": "two", **fields})


# ── Which images go where ──


def test_selection_is_drawn_from_train(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"], ["b"], ["a", "b"], ["c"]] * 10 + [[]] * 3)
    write_coco(tmp_path, "two", [["a"], [], ["b", "c"]])
    dataset = load(coco_data(tmp_path), tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [36, 4, 2]
    assert [images.dropped for images in dataset.roles.values()] == [3, 0, 1]
    assert dataset.name == "coco" and dataset.categories == ("a", "b", "c") and disjoint(dataset)
    assert list(map(int, dataset.selection.ids)) == sorted(map(int, dataset.selection.ids))  # the dataset's order
    assert all(images.targets.any(1).all() for images in dataset.roles.values())


def test_a_named_selection_is_taken_as_it_is(tmp_path: Path):
    for split, size in (("one", 5), ("two", 4), ("three", 3)):
        write_coco(tmp_path, split, [["a"]] * size)
    dataset = load(coco_data(tmp_path, selection_split="three"), tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [5, 3, 4]


def test_difficult_only_images_are_only_measured_on(tmp_path: Path):
    objects = {"clear": [("cat", 0)], "hard": [("cat", 1)], "both": [("cat", 1), ("dog", 0)], "none": []}
    for split, letter in (("train", "t"), ("val", "v"), ("test", "e")):
        write_voc(tmp_path, split, {letter + name: found for name, found in objects.items()})
    data = Data(format="voc", root=str(tmp_path), train_split="train", selection_split="val", test_split="test")
    dataset = load(data, tmp_path)
    assert dataset.train.ids == ("tclear", "tboth") and dataset.selection.ids == ("vclear", "vboth")
    assert dataset.test.ids == ("eclear", "ehard", "eboth")
    assert [images.dropped for images in dataset.roles.values()] == [2, 2, 1]


def test_the_limit_counts_labelled_images_before_selection_is_drawn(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"], []] * 50)
    write_coco(tmp_path, "two", [["a"]] * 30)
    dataset = load(coco_data(tmp_path, limit=20), tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [18, 2, 20]
    ids = [int(name) for name in dataset.test.ids]
    assert ids == sorted(ids) and ids != list(range(20))  # a draw, in the dataset's order
    assert dataset.test.ids == load(coco_data(tmp_path, limit=20), tmp_path).test.ids
    assert dataset.test.ids != load(coco_data(tmp_path, limit=20, split_seed=1), tmp_path).test.ids
    assert load(coco_data(tmp_path, limit=30), tmp_path).test.ids == load(coco_data(tmp_path), tmp_path).test.ids


def test_a_table_with_splits(tmp_path: Path):
    lines = [f"{i}.jpg,a,train" for i in range(10)] + ["x.jpg,b;a,test", "y.jpg,a,val", "z.jpg,a,other", "w.jpg,,val"]
    data = write_csv(tmp_path, lines)
    dataset = load(data, tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [9, 1, 1] and dataset.test.ids == ("x.jpg",)
    assert dataset.name == "own" and dataset.categories == ("a", "b")
    dataset = load(data.model_copy(update={"selection_split": "val"}), tmp_path)
    assert len(dataset.train) == 10 and dataset.selection.ids == ("y.jpg",) and dataset.selection.dropped == 1


def test_a_file_without_splits(tmp_path: Path):
    lines = [f"{i}.jpg,{label}" for i, label in enumerate("abababababababababab")] + ["x.jpg,"]
    data = write_csv(tmp_path, lines, "path,labels")
    dataset = load(data, tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [14, 2, 4] and disjoint(dataset)
    assert dataset.test.targets.sum(0).tolist() == [2, 2] and dataset.selection.targets.sum(0).tolist() == [1, 1]
    assert [images.dropped for images in dataset.roles.values()] == [1, 0, 0]
    assert "names no splits" in refusal(data.model_copy(update={"selection_split": "val"}))


def test_a_json_of_ones_own(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"], ["b"]] * 10)
    file = tmp_path / "annotations" / "instances_one.json"
    dataset = load(Data(format="coco", file=str(file), root=str(tmp_path / "one")), tmp_path)
    assert [len(images) for images in dataset.roles.values()] == [14, 2, 4] and disjoint(dataset)
    assert dataset.fingerprint  # all files are found below the root


def test_scenes_are_rendered_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def ensure(folder: Path) -> Path:
        asked.append(folder)
        return tmp_path

    for split, size in (("train", 4), ("selection", 3), ("test", 2)):
        write_coco(tmp_path, split, [["a"]] * size)
    monkeypatch.setattr(scenes, "ensure", ensure)
    data = Data(format="scenes", train_split="train", selection_split="selection", test_split="test")
    dataset = load(data, Path("cache"))
    assert [len(images) for images in dataset.roles.values()] == [4, 3, 2] and dataset.name == "scenes"
    load(data.model_copy(update={"root": "elsewhere"}), Path("cache"))
    assert asked == [Path("cache"), Path("elsewhere")]


def test_the_fingerprint_follows_labels_files_and_roles(tmp_path: Path):
    def fingerprint(**fields) -> str:
        return load(coco_data(tmp_path, **fields), tmp_path).fingerprint

    labels = [["a"], ["b"]] * 10
    write_coco(tmp_path, "one", labels)
    write_coco(tmp_path, "two", labels)
    first = fingerprint()
    assert first == fingerprint() and len(first) == 16
    assert first != fingerprint(split_seed=3)
    write_coco(tmp_path, "two", [*labels[:-1], ["c"]])
    assert first != fingerprint()
    write_coco(tmp_path, "two", labels)
    assert first == fingerprint()
    (tmp_path / "two" / "4.jpg").write_bytes(b"xx")
    assert first != fingerprint()
    (tmp_path / "two" / "4.jpg").unlink()
    with pytest.raises(BadInput, match=r"4\.jpg: found no such image"):
        fingerprint()


@pytest.mark.real
def test_voc_with_a_limit_is_shared_out_by_label(real_data: Path):
    data = Data(format="voc", root=str(real_data), train_split="train", test_split="val", limit=600)
    dataset = load(data, Path("unused"))
    assert [len(images) for images in dataset.roles.values()] == [540, 60, 600] and disjoint(dataset)
    there = dataset.train.targets.sum(0) + dataset.selection.targets.sum(0)
    assert (np.abs(dataset.selection.targets.sum(0) - 0.1 * there) <= 5).all()
    assert load(data, Path("unused")).fingerprint == dataset.fingerprint


# ── What is refused ──


@pytest.mark.real
def test_voc_lists_that_overlap_are_refused(real_data: Path):
    data = Data(format="voc", root=str(real_data), train_split="trainval", test_split="val")
    message = refusal(data)
    assert "data.train_split=trainval and data.test_split=val: found 2510 images in both" in message
    assert "no image in common" in message


def test_shared_images_are_refused(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"]] * 4)
    write_coco(tmp_path, "two", [["a"]] * 4)  # the same ids in another folder are other images
    assert len(load(coco_data(tmp_path), tmp_path).test) == 4
    assert "data.selection_split=two and data.test_split=two" in refusal(coco_data(tmp_path, selection_split="two"))


def test_different_categories_are_refused(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"]] * 4)
    write_coco(tmp_path, "two", [["a"]] * 4, "abd")
    assert "data.train_split=one and data.test_split=two: found different categories (c, d)" in refusal(
        coco_data(tmp_path)
    )
    write_coco(tmp_path, "two", [["a"]] * 4, "cab")
    assert "in another order" in refusal(coco_data(tmp_path))


def test_an_empty_role_is_refused(tmp_path: Path):
    write_coco(tmp_path, "one", [["a"]] * 4)
    write_coco(tmp_path, "two", [[], []])
    assert "data.test_split=two: found no labelled image (2 without labels)" in refusal(coco_data(tmp_path))
    assert "data.selection_split=two" in refusal(coco_data(tmp_path, test_split="one", selection_split="two"))


@pytest.mark.parametrize("size", [1, 0])
def test_too_few_images_to_draw_from(tmp_path: Path, size: int):
    write_coco(tmp_path, "one", [["a"]] * 3)
    write_coco(tmp_path, "two", [["a"]])
    message = refusal(coco_data(tmp_path, limit=1))
    assert "data.selection_split" in message and "found 1 labelled image" in message and "data.limit" in message
    data = write_csv(tmp_path, [*["a.jpg,a"][:size], "b.jpg,"], "path,labels")
    assert "own.csv" in refusal(data)


def test_places_that_are_not_there(tmp_path: Path):
    assert "--data-root: found nothing" in refusal(Data(format="voc"))
    assert "--data-root: found no folder" in refusal(Data(format="coco", root=str(tmp_path / "nowhere")))
    assert "data.file: found nothing" in refusal(Data(format="table", root=str(tmp_path)))
    message = refusal(Data(format="voc", root=str(tmp_path), file="own.json"))
    assert "data.file: found own.json with data.format=voc" in message


def test_a_split_the_table_does_not_name(tmp_path: Path):
    data = write_csv(tmp_path, ["a.jpg,a,training", "b.jpg,a,test"])
    message = refusal(data)
    assert "data.train_split=train: found no image of that split in" in message and "own.csv" in message
    assert "one of test, training" in message and "Did you mean training?" in message


# ── The draw ──


@pytest.mark.real
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_each_label_keeps_its_share(real_data: Path, fraction: float):
    targets = voc.read(real_data, "trainval").without_unlabelled(difficult_counts=False).targets
    expected = targets.sum(0) * fraction
    random = np.random.default_rng(0)
    for seed in range(3):
        off = np.abs(targets[stratified(targets, fraction, seed)].sum(0) - expected)
        plain = np.abs(targets[random.permutation(len(targets)) < round(len(targets) * fraction)].sum(0) - expected)
        assert off.max() <= 10 and off.mean() < 1 < plain.mean()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(1, 12)),
    density=st.floats(0, 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_draw_has_its_size_and_is_repeatable(shape: tuple[int, int], density: float, fraction: float, seed: int):
    targets = np.random.default_rng(seed).random(shape) < density
    draw = stratified(targets, fraction, seed)
    n = len(targets)
    assert draw.dtype == bool and draw.shape == (n,)
    assert draw.sum() == min(max(round(n * fraction), 1), n - 1)
    np.testing.assert_array_equal(draw, stratified(targets, fraction, seed))


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_with_one_label_each_the_shares_are_exact_to_the_rounding(counts: list[int], seed: int):
    targets = np.repeat(np.eye(len(counts), dtype=bool), counts, axis=0)
    if len(targets) < 2:
        return
    draw = stratified(targets, 0.25, seed)
    off = np.abs(targets[draw].sum(0) - np.array(counts) * draw.mean())
    # All are rounded but the commonest, dealt out last: it makes the size exact.
    assert np.sort(off)[:-1].max(initial=0) <= 0.5 + 1e-9 and off.max() <= 0.5 * len(counts)


def test_seeds_differ_and_everyone_may_be_drawn():
    targets = np.random.default_rng(0).random((50, 3)) < 0.4
    draws = np.array([stratified(targets, 0.2, seed) for seed in range(200)])
    assert len({draw.tobytes() for draw in draws}) > 190
    assert draws.any(0).all() and (~draws).any(0).all()


@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_a_dataset_of_coco_size(fraction: float):
    rng = np.random.default_rng(0)
    targets = rng.random((82_081, 80)) < np.geomspace(0.002, 0.54, 80)  # the last label is the commonest
    draw = stratified(targets, fraction, 0)
    off = np.abs(targets[draw].sum(0) - targets.sum(0) * fraction)
    assert draw.sum() == round(82_081 * fraction)
    assert off.mean() < 3 and off[-1] < 10

"""The package's door: splits (balanced, disjoint, seeded, in file order), options, and the hash of the data."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from dreamlib._engine.seeding import generator
from dreamlib.data import DATASETS, Dataset, create, data_hash, info, load_split
from dreamlib.data.base import check_split
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.errors import UnknownNameError

SIZES = (12, 5, 9)


@dataclass(frozen=True)
class Toy(Dataset):
    """Pixels hold the row number, so that every image tells where in the file it came from."""

    name: ClassVar[str] = "toy"
    order: int = 0

    @property
    def info(self):
        return DatasetInfo("toy", ("a", "b", "c"), 1, 2, mean=(0.5,), std=(0.5,))

    def load(self, split, data_dir):
        check_split(split)
        labels = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
        labels = labels[torch.randperm(len(labels), generator=generator(self.order, split))]
        rows = torch.arange(len(labels)) / len(labels)
        return LabeledImages(rows.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels, 3)

    def fetch(self, data_dir):
        return []

    def paths(self, data_dir):
        return []


@pytest.fixture(autouse=True)
def toy():
    DATASETS.register("toy")(Toy)
    yield
    DATASETS.pop("toy")


def rows(data):
    return (data.images[:, 0, 0, 0] * sum(SIZES)).round().int().tolist()


def test_validation_is_balanced_and_with_train_makes_up_the_whole_in_file_order():
    whole = Toy().load("train", "")
    train, held_out = (load_split("toy", split, "", 3, seed=0) for split in ("train", "validation"))
    assert held_out.labels.bincount().tolist() == [3, 3, 3]
    assert train.labels.bincount().tolist() == [9, 2, 6]
    assert sorted(rows(train) + rows(held_out)) == list(range(len(whole)))
    for part in (train, held_out):
        assert rows(part) == sorted(rows(part))
        assert torch.equal(part.labels, whole.labels[rows(part)])


def test_the_seed_and_nothing_else_decides():
    torch.manual_seed(1)
    first = rows(load_split("toy", "validation", "", 3, seed=5))
    torch.manual_seed(2)
    assert rows(load_split("toy", "validation", "", 3, seed=5)) == first
    assert any(rows(load_split("toy", "validation", "", 3, seed=seed)) != first for seed in range(3))


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    load_split("toy", "validation", "", 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_without_validation_train_is_everything_and_test_is_untouched():
    assert rows(load_split("toy", "train", "", 0, seed=0)) == list(range(26))
    assert rows(load_split("toy", "test", "", 3, seed=0)) == list(range(26))
    assert torch.equal(load_split("toy", "test", "", 3, seed=0).labels, Toy().load("test", "").labels)


def test_options_reach_the_data_set():
    labels = load_split("toy", "train", "", 0, seed=0, options={"order": 1}).labels
    assert torch.equal(labels, Toy(order=1).load("train", "").labels)
    assert info("toy", {"order": 1}).name == "toy"


@pytest.mark.parametrize(
    ("split", "per_class", "message"),
    [
        ("validation", 0, "validation_per_class is 0: at least 1 is needed"),
        ("train", -1, "validation_per_class is -1: at least 0 is needed"),
        ("train", 5, "validation_per_class is 5, but class 'b' has only 5 .* at most 4"),
        ("validation", 50, "class 'b' has only 5"),
    ],
)
def test_impossible_sizes_are_refused_with_value_limit_and_remedy(split, per_class, message):
    with pytest.raises(ValueError, match=message):
        load_split("toy", split, "", per_class, seed=0)


def test_a_mistyped_split_or_option_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'validation'"):
        load_split("toy", "valdation", "", 1, seed=0)
    with pytest.raises(UnknownNameError, match="did you mean 'order'"):
        load_split("toy", "train", "", 1, seed=0, options={"ordre": 1})


def test_data_hash_depends_on_content_only(tmp_path):
    dataset = create("digits")
    dataset.fetch(tmp_path)
    first = data_hash("digits", tmp_path)
    (tmp_path / "digits").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "digits")
    assert data_hash("digits", tmp_path / "elsewhere") == first
    line = f"digits.csv.gz {dataset.files()[0].md5}\n"
    assert first == hashlib.sha256(line.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fashion_minst", None, "did you mean 'fashion_mnist'"),
        ("folder", {"chanels": 1}, "did you mean 'channels'"),
        ("mnist", {"size": 28}, r"option 'size' of data set 'mnist'.*takes none"),
    ],
)
def test_unknown_names_and_options_name_the_nearest(name, options, message):
    with pytest.raises(UnknownNameError, match=message):
        create(name, options)

"""Soft labels: a teacher's, against the network itself; learned ones, from start to file."""

import pytest
import torch

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.matching import label_sources
from dreamlib.matching.label_sources import LabelState, label, train_teacher
from dreamlib.matching.soft_labels import labels_of, starting_logits
from dreamlib.settings import DistillParams
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import accuracy, predict

NETWORK = ("convnet", {"width": 8})


def label_state(data, info, seed=0, **settings):
    return LabelState(data, info, DistillParams(**settings), NETWORK, Compute(), seed)


@pytest.fixture
def toy_set(toy_data):
    data = toy_data()
    return fill(data, random_rows(data, 8, 0), 2, 2, "single")


def test_assigned_labels_are_the_teachers_answers(toy_set, toy_data, toy_info, tiny, tmp_path, monkeypatch):
    info, teacher = toy_info(), tiny()
    monkeypatch.setattr(label_sources, "train_teacher", lambda _: (teacher, CompiledNetwork(teacher, Compute())))
    given = label(toy_set, label_state(toy_data(), info, labels="assigned"))
    images, hard = toy_set.decode()
    odds = teacher((images - 0.4) / 0.25).detach().exp()
    torch.testing.assert_close(given.soft_labels, odds / odds.sum(1, keepdim=True))
    assert toy_set.soft_labels is None
    assert given.stored_floats == toy_set.stored_floats + 24 * 3
    given.save(tmp_path / "set.safetensors")
    opened = SyntheticSet.open(tmp_path / "set.safetensors")
    assert torch.equal(opened.soft_labels, given.soft_labels)
    assert torch.equal(labels_of(opened, hard), given.soft_labels)
    # Learning goes on from them where it is asked to.
    torch.testing.assert_close(starting_logits(given).softmax(1), given.soft_labels)


def test_hard_labels_leave_a_set_as_it_is(toy_set, toy_data, toy_info):
    assert label(toy_set, label_state(toy_data(), toy_info(), labels="hard")) is toy_set


def test_a_teacher_learns_and_depends_on_its_seed_alone(toy_data, toy_info, global_generators_untouched):
    data, info = toy_data(per_class=128), toy_info()
    settings = {"labels": "assigned", "teacher_epochs": 30, "network_augmentation": "none", "cutmix": 0.0}
    teachers = [train_teacher(label_state(data, info, seed, **settings)) for seed in (0, 0, 1)]
    logits = [predict(teacher, data.images, info, kernels) for teacher, kernels in teachers]
    assert accuracy(logits[0], data.labels) > 0.8
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])

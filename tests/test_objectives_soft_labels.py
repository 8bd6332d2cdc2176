"""Soft labels: a teacher's, against the network asked directly; learned ones, from start to file."""

import pytest
import torch

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.matching.soft_labels import assign_soft_labels, labels_of, starting_logits, train_teacher
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import accuracy, predict
from dreamlib.training.trainer import TrainSettings


@pytest.fixture
def toy_set(toy_data):
    data = toy_data()
    return fill(data, random_rows(data, 8, 0), 2, 2, "single")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_assigned_labels_are_the_teachers_own_answers(temperature, toy_set, toy_info, tiny, tmp_path):
    info, teacher = toy_info(), tiny()
    given = assign_soft_labels(toy_set, teacher, info, CompiledNetwork(teacher, Compute()), temperature)
    images, hard = toy_set.decode()
    logits = teacher((images - 0.4) / 0.25).detach() / temperature
    odds = logits.exp()
    torch.testing.assert_close(given.soft_labels, odds / odds.sum(1, keepdim=True))
    assert toy_set.soft_labels is None
    assert given.stored_floats == toy_set.stored_floats + 24 * 3
    given.save(tmp_path / "set.safetensors")
    opened = SyntheticSet.open(tmp_path / "set.safetensors")
    assert torch.equal(opened.soft_labels, given.soft_labels)
    assert torch.equal(labels_of(opened, hard), given.soft_labels)
    # Learning goes on from them where it is asked to.
    torch.testing.assert_close(starting_logits(given, 0.9).softmax(1), given.soft_labels)


def test_a_teacher_learns_and_depends_on_its_seed_alone(toy_data, toy_info, global_generators_untouched):
    data, info = toy_data(), toy_info()
    how = TrainSettings(batch=12, lr=0.05)
    teachers = [
        train_teacher(data, info, ("convnet", {"width": 8}), how, Compute(), epochs=8, seed=seed) for seed in (0, 0, 1)
    ]
    logits = [predict(teacher, data.images, info, kernels) for teacher, kernels in teachers]
    assert accuracy(logits[0], data.labels) > 0.8
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_refusals_name_the_remedy(toy_set, toy_data, toy_info, tiny):
    with pytest.raises(ValueError, match="temperature = 0 must be above 0"):
        assign_soft_labels(toy_set, tiny(), toy_info(), CompiledNetwork(tiny(), Compute()), 0)
    with pytest.raises(ValueError, match="at least 1; raise it, or set labels: hard"):
        train_teacher(toy_data(), toy_info(), ("convnet", {}), TrainSettings(), Compute(), epochs=0, seed=0)
    with pytest.raises(ValueError, match="between 1/3 and 1"):
        starting_logits(toy_set, 0.2)

"""Other people's files, written here in the layouts of their codes, as sets; what a file does not say is asked for."""

import io
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import dreamlib
from dreamlib.data import info as data_info
from dreamlib.sets import main
from dreamlib.synthetic.synthetic_set import SyntheticSet

STATISTICS = ((0.4, 0.5, 0.3), (0.25, 0.3, 0.2))
COLOUR = (3, 8, 8)


def normal(count, shape=COLOUR, seed=0):
    """Normalised images, far from [0, 1] and from each other."""
    return 2 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def pixels(count, shape=COLOUR, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def reopened(synthetic, folder):
    synthetic.save(folder / "kept.safetensors")
    return SyntheticSet.open(folder / "kept.safetensors")


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_of_dc_is_all_its_experiments_or_the_one_chosen(tmp_path, legacy):
    experiments = [[normal(6, seed=seed), torch.arange(3).repeat_interleave(2)] for seed in range(2)]
    accuracies = {"ConvNet": [np.float64(0.25), np.float64(0.26), np.float64(0.5), np.float64(0.51)], "MLP": []}
    content = {"data": experiments, "accs_all_exps": accuracies}
    path = saved(tmp_path / "res_DC.pt", content, _use_new_zipfile_serialization=not legacy)
    sets = dreamlib.import_set(path, normalised=STATISTICS, num_classes=3)
    assert [one.info["stored_accuracies"] for one in sets] == [{"ConvNet": [0.25, 0.26]}, {"ConvNet": [0.5, 0.51]}]
    for index, one in enumerate(sets):
        back = reopened(one, tmp_path)
        torch.testing.assert_close(back.canvases, experiments[index][0], rtol=0, atol=1e-6)
        assert torch.equal(back.labels, experiments[index][1]) and back.num_classes == 3 and back.ipc == 2
        assert (back.bounded, back.whitening, back.info["source"]["experiment"]) == (False, "none", index)
        assert back.info["mean"] == list(STATISTICS[0]) and back.info["std"] == list(STATISTICS[1])
    chosen = dreamlib.import_set(path, normalised=STATISTICS, num_classes=3, experiment=1)
    assert torch.equal(chosen.canvases, experiments[1][0])
    with pytest.raises(ValueError, match=r"experiment = 2, but .*res_DC.pt has sets 0\.\.1"):
        dreamlib.import_set(path, normalised=STATISTICS, num_classes=3, experiment=2)


def mtt_files(folder, ending="best", images=None, labels=None, lr=0.02):
    folder.mkdir(exist_ok=True)
    saved(folder / f"images_{ending}.pt", normal(6) if images is None else images)
    saved(folder / f"labels_{ending}.pt", torch.arange(3).repeat_interleave(2) if labels is None else labels)
    if lr is not None:
        saved(folder / "lr.pt", torch.tensor(lr))
    return folder


def test_the_files_of_mtt_are_found_by_folder_or_by_that_of_the_images(tmp_path):
    folder = mtt_files(tmp_path / "mtt")
    known = {"num_classes": 3, "normalised": "zca", "zca_epsilon": 0.1}
    saved(folder / "images_zca_best.pt", pixels(6))  # the name of the un-whitened pixels, which nobody asked for
    for path in (folder, folder / "images_best.pt"):
        one = dreamlib.import_set(path, **known)
        assert torch.equal(one.canvases, normal(6)) and one.extras["step_size"].item() == pytest.approx(0.02)
        assert (one.whitening, one.zca_epsilon, one.bounded) == ("zca", 0.1, False)
    unwhitened = dreamlib.import_set(folder / "images_zca_best.pt", num_classes=3, normalised="none")
    assert torch.equal(unwhitened.canvases, pixels(6)) and unwhitened.bounded
    mtt_files(folder, "5000")
    with pytest.raises(ValueError, match=r"one file images\*\.pt; found: images_5000\.pt, images_best\.pt\. Give the"):
        dreamlib.import_set(folder, **known)
    (folder / "labels_best.pt").unlink()
    with pytest.raises(ValueError, match=r"images_best\.pt needs its labels next to it"):
        dreamlib.import_set(folder / "images_best.pt", **known)


def test_a_learned_step_size_that_is_not_there_is_asked_for(tmp_path):
    folder = mtt_files(tmp_path / "mtt", lr=None)
    known = {"num_classes": 3, "normalised": STATISTICS}
    with pytest.raises(ValueError, match=r"no file lr\*\.pt next to its images: give step_size.* or 'none'"):
        dreamlib.import_set(folder, **known)
    assert dreamlib.import_set(folder, step_size=0.03, **known).extras["step_size"].item() == pytest.approx(0.03)
    assert dreamlib.import_set(folder, step_size="none", **known).extras == {}
    saved(folder / "lr.pt", torch.ones(2))
    with pytest.raises(ValueError, match=r"step size of .*lr\.pt must be one number; got \(2,\)"):
        dreamlib.import_set(folder, **known)


def test_labels_of_datm_are_logits_whose_softmax_it_trains_with(tmp_path):
    logits = torch.tensor([[4.0, 0, 1], [0, 5, 1], [6, 2, 0], [0, 1, 9]])  # classes 0, 1, 0, 2: unsorted and unequal
    images = normal(4)
    folder = mtt_files(tmp_path / "datm", images=images, labels=logits)
    known = {"normalised": "zca", "zca_epsilon": 0.1}
    with pytest.raises(
        ValueError, match=r"labels \(4, 3\) .* neither class numbers nor probabilities: give labels='lo"
    ):
        dreamlib.import_set(folder, **known)
    order = [0, 2, 1, 3]
    odds = np.exp(logits.double().numpy()[order])
    for given in ({"format": "datm"}, {"labels": "logits"}):
        one = dreamlib.import_set(folder, **given, **known)
        assert torch.equal(one.canvases, images[order]) and one.labels.tolist() == [0, 0, 1, 2]
        np.testing.assert_allclose(one.soft_labels, odds / odds.sum(1, keepdims=True), rtol=1e-6)
    hard = dreamlib.import_set(folder, labels="classes", **known)
    assert hard.soft_labels is None and hard.class_sizes == (2, 1, 1)


def test_a_file_of_idc_holds_pixels_packed_by_a_factor_that_it_does_not_say(tmp_path):
    canvases, labels = pixels(4), torch.tensor([0, 0, 1, 1])
    path = saved(tmp_path / "data_best.pt", [canvases, labels])
    with pytest.raises(ValueError, match=r"holds a list.*format='idc'.*format='arrays'"):
        dreamlib.import_set(path, num_classes=2)
    with pytest.raises(ValueError, match=r"training images a stored image holds: give factor"):
        dreamlib.import_set(path, format="idc", num_classes=2)
    one = dreamlib.import_set(path, format="dream", factor=2, num_classes=2)
    images, classes = one.decode()
    assert torch.equal(one.canvases, canvases) and one.bounded and classes.tolist() == [0] * 8 + [1] * 8
    enlarged = nn.functional.interpolate(canvases[:1, :, :4, 4:], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(images[1:2], enlarged)


def test_pixels_that_were_never_clamped_stay_as_they_are_and_others_are_no_pixels(tmp_path):
    canvases = 1.2 * pixels(2) - 0.1
    path = saved(tmp_path / "data.pt", [canvases, torch.arange(2)])
    one = reopened(dreamlib.import_set(path, format="idc", factor=1, num_classes=2), tmp_path)
    assert torch.equal(one.canvases, canvases) and one.bounded and one.info["clamped"] is False
    saved(path, [normal(2), torch.arange(2)])
    with pytest.raises(ValueError, match=r"lie in \[-\d.*not pixels in \[0, 1\]: give normalised="):
        dreamlib.import_set(path, format="idc", factor=1, num_classes=2)
    saved(path, [pixels(2), torch.arange(2)])
    for wrong in ({"normalised": STATISTICS}, {"normalised": "zca", "zca_epsilon": 0.1}):
        with pytest.raises(ValueError, match=r"as pixels do and normalised images do not: give normalised='none'"):
            dreamlib.import_set(path, format="arrays", num_classes=2, **wrong)


def test_arrays_of_rfad_have_channels_last_and_centred_labels(tmp_path):
    images, labels = normal(6), torch.tensor([2, 0, 1, 1, 0, 2])
    centred = nn.functional.one_hot(labels, 3) - 1 / 3
    np.savez(tmp_path / "best.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=centred.numpy())
    one = dreamlib.import_set(tmp_path / "best.npz", format="rfad", normalised=STATISTICS)
    assert one.labels.tolist() == [0, 0, 1, 1, 2, 2] and one.soft_labels is None and one.num_classes == 3
    assert torch.equal(one.canvases, images[[1, 4, 2, 3, 0, 5]])
    with pytest.raises(ValueError, match="RFAD and KIP whiten differently from this library"):
        dreamlib.import_set(tmp_path / "best.npz", format="kip", normalised="zca", zca_epsilon=0.1)


def test_plain_arrays_in_every_container_are_the_same_set(tmp_path):
    images, labels = normal(4), torch.tensor([1, 0, 3, 0])
    saved(tmp_path / "tuple.pt", (images, labels))
    saved(tmp_path / "dict.pth", {"Images": images, "Labels": labels.tolist(), "lr": 0.5})
    saved(tmp_path / "parameter.pt", [nn.Parameter(images.double()), labels.int()])
    saved(tmp_path / "numpy.pt", {"x": images.numpy(), "y": labels.numpy()})
    np.savez(tmp_path / "arrays.npz", x_train=images.numpy(), y_train=labels.numpy()[:, None])
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "labels.npy", labels.numpy())
    save_file({"images": images, "labels": labels}, tmp_path / "tensors.safetensors")
    files = ["tuple.pt", "dict.pth", "parameter.pt", "numpy.pt", "arrays.npz", "images.npy", "tensors.safetensors"]
    for name in files:
        one = dreamlib.import_set(tmp_path / name, format="arrays", normalised=STATISTICS, num_classes=5)
        assert torch.equal(one.canvases, images[[1, 3, 0, 2]]), name
        assert (one.labels.tolist(), one.class_sizes) == ([0, 0, 1, 3], (2, 1, 0, 1, 0)), name
        assert (one.canvases.dtype, one.canvases.requires_grad) == (torch.float32, False)
        assert one.extras == ({"step_size": torch.tensor(0.5)} if name == "dict.pth" else {})
    half = dreamlib.import_set(
        saved(tmp_path / "half.pt", (images.half(), labels)), format="arrays", normalised=STATISTICS, num_classes=4
    )
    assert torch.equal(half.canvases, images.half().float()[[1, 3, 0, 2]])


def test_bytes_are_pixels_and_grey_images_may_lack_their_channel(tmp_path):
    grey = torch.arange(2 * 64, dtype=torch.uint8).view(2, 8, 8)
    path = saved(tmp_path / "grey.pt", {"images": grey, "labels": torch.tensor([1, 0])})
    one = dreamlib.import_set(path, num_classes=2)
    assert torch.equal(one.canvases, grey.flip(0).unsqueeze(1) / 255) and one.bounded and "clamped" not in one.info
    with pytest.raises(ValueError, match="are bytes, which are pixels: leave normalised out"):
        dreamlib.import_set(path, num_classes=2, normalised=((0.5,), (0.5,)))


def pictures(folder, names, mode="RGB", size=8):
    rng = np.random.default_rng(0)
    arrays = {}
    for name in names:
        (folder / name).mkdir(parents=True)
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        arrays[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(arrays[name]).save(folder / name / "0.png")
    return arrays


def test_a_folder_of_pictures_is_read_by_class_name_or_number(tmp_path):
    digits = data_info("digits")
    arrays = pictures(tmp_path / "digits", ["10", "9", "2"], "L")
    one = dreamlib.import_set(tmp_path / "digits", num_classes=12)
    assert one.labels.tolist() == [2, 9, 10] and one.num_classes == 12 and one.bounded
    assert torch.equal(one.canvases[2, 0], torch.from_numpy(arrays["10"]) / 255)
    (tmp_path / "digits" / "10").rename(tmp_path / "digits" / "ten")
    assert dreamlib.import_set(tmp_path / "digits").labels.tolist() == [0, 1, 2]
    with pytest.raises(
        ValueError, match=r"folders of .* are 2, 9, ten, …: name them as the classes of digits \(0, 1, 2"
    ):
        dreamlib.import_set(tmp_path / "digits", data=digits)
    pictures(tmp_path / "cifar", ["cat", "airplane"], size=32)
    cifar = dreamlib.import_set(tmp_path / "cifar", data="cifar10")
    assert cifar.labels.tolist() == [0, 3] and cifar.info["classes"][3] == "cat" and cifar.info["std"][0] == 0.2023


def test_pictures_of_other_kinds_are_named(tmp_path):
    pictures(tmp_path / "a", ["0", "1"])
    (tmp_path / "a" / "1" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes\.txt does not end in \.png"):
        dreamlib.import_set(tmp_path / "a")
    (tmp_path / "a" / "1" / "notes.txt").unlink()
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(tmp_path / "a" / "1" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png is a picture of mode I;16; save it as 8-bit"):
        dreamlib.import_set(tmp_path / "a")
    (tmp_path / "a" / "1" / "deep.png").unlink()
    Image.new("RGB", (9, 8)).save(tmp_path / "a" / "1" / "wide.png")
    with pytest.raises(ValueError, match="must have one size"):
        dreamlib.import_set(tmp_path / "a")


def test_one_of_our_own_files_is_opened_as_it_is(tmp_path):
    SyntheticSet(pixels(2), torch.arange(2), 2, info={"bounded": True}).save(tmp_path / "ours.safetensors")
    assert torch.equal(dreamlib.import_set(tmp_path / "ours.safetensors").canvases, pixels(2))


# ---- what must be said ----------------------------------------------------------------------------------------------


def test_statistics_by_name_are_those_of_the_literature_and_of_the_pixels(tmp_path):
    def imported(data, normalised, format="arrays"):
        classes = data_info(data).num_classes
        path = saved(tmp_path / "a.pt", [normal(classes, (3, 32, 32)), torch.arange(classes)])
        if format == "dc":
            saved(path, {"data": [[normal(classes, (3, 32, 32)), torch.arange(classes)]]})
        one = dreamlib.import_set(path, format=format, data=data, normalised=normalised)
        return one.info["mean"], one.info["std"]

    literature = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    assert imported("cifar10", "literature") == imported("cifar10", "literature", "dc") == literature
    assert imported("cifar10", "per_pixel")[1] == [0.2470, 0.2435, 0.2616]
    assert imported("cifar100", "literature", "dc") == ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762])
    assert imported("svhn", "per_pixel") == imported("svhn", "literature")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": 2}, r"are normalised: give normalised='literature' or 'per_pixel' and data, or"),
        ({"num_classes": 2, "normalised": "literature"}, r"are statistics of a data set: give data, or \(mean, std\)"),
        ({"num_classes": 2, "normalised": "litrature"}, r"unknown normalised 'litrature': did you mean 'literature'"),
        ({"num_classes": 2, "normalised": "zca"}, r"normalised='zca' and zca_epsilon belong together"),
        ({"num_classes": 2, "normalised": STATISTICS, "zca_epsilon": 0.1}, "zca_epsilon belong together"),
        ({"num_classes": 2, "normalised": "zca", "zca_epsilon": 0}, "zca_epsilon = 0 must be above 0"),
        ({"normalised": STATISTICS}, "does not specify the number of classes: give num_classes, or data"),
        ({"num_classes": 1, "normalised": STATISTICS}, r"labels must lie in \[0, 1\)"),
        ({"num_classes": 2, "normalised": ((0.5,), (0.5,))}, r"mean must be one number per channel \(3\)"),
        ({"num_classes": 2, "normalised": STATISTICS, "labels": "logits"}, "must be class numbers"),
        ({"num_classes": 2, "normalised": STATISTICS, "factor": 9}, "factor = 9 must lie between 1 and"),
        ({"num_classes": 2, "normalised": STATISTICS, "factor": 3}, "factor = 3 does not divide the side of the 8×8"),
        ({"data": "mnist", "normalised": "literature"}, r"C = 1; got torch.float32 \(2, 3, 8, 8\)"),
        ({"data": "cifar10", "normalised": "literature"}, r"are \(8, 8\) pixels, those of cifar10 32"),
        ({"data": "cifar", "normalised": "literature"}, "did you mean 'cifar10'"),
        ({"format": "dsc"}, "unknown format 'dsc': did you mean 'dc'"),
        ({"format": "dc", "num_classes": 2}, "is not a file of DC"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_named_in_one_line(tmp_path, given, message):
    path = saved(tmp_path / "a.pt", [normal(2), torch.arange(2)])
    with pytest.raises(ValueError, match=message) as caught:
        dreamlib.import_set(path, **{"format": "arrays", **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (normal(2).long(), torch.arange(2), r"floats or bytes.*torch\.int64"),
        (normal(2)[0], torch.arange(3), r"got torch\.float32 \(3, 1, 8, 8\)|for its 3 images|\[0, 2\)"),
        (normal(3), torch.arange(2), r"labels \(N,\) or \(N, K\) for its 3 images; got \(2,\)"),
        (normal(2), torch.tensor([0.0, 0.5]), "must be class numbers"),
        (normal(2).fill_(float("nan")), torch.arange(2), "infinite or not a number"),
        (normal(2), torch.rand(2, 3), r"disagree on the number of classes: \[2, 3\]"),
    ],
)
def test_content_that_is_no_set_is_refused(tmp_path, images, labels, message):
    path = saved(tmp_path / "a.pt", {"images": images, "labels": labels})
    with pytest.raises(ValueError, match=message):
        dreamlib.import_set(path, num_classes=2, normalised=STATISTICS)


def test_probabilities_and_one_hot_labels_are_known_by_themselves(tmp_path):
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0001, 0.9999]])
    hard = nn.functional.one_hot(torch.tensor([0, 2]), 3)
    for labels, stored in ((soft, soft), (hard, None), (hard.double(), None), ((hard - 1 / 3).half(), None)):
        path = saved(tmp_path / "a.pt", {"images": normal(2), "labels": labels})
        one = dreamlib.import_set(path, normalised=STATISTICS)
        assert one.labels.tolist() == [0, 2] and one.num_classes == 3
        assert (one.soft_labels is None) if stored is None else torch.equal(one.soft_labels, stored)
    kept = dreamlib.import_set(path, normalised=STATISTICS, labels="classes")
    assert kept.soft_labels is None
    with pytest.raises(ValueError, match=r"for logits, store logits\.softmax"):
        dreamlib.import_set(path, normalised=STATISTICS, labels="probabilities")


# ---- files that would run code, and damaged ones --------------------------------------------------------------------


class Hostile:
    """An object whose unpickling runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "nested"])
def test_a_hostile_pickle_runs_nothing_and_what_it_calls_for_is_named(tmp_path, kind):
    touched = tmp_path / "touched"
    hostile = Hostile(f"touch {touched}")
    content = {"data": [[normal(2), hostile]]} if kind == "nested" else hostile
    path = tmp_path / "res.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=2))
    else:
        saved(path, content, _use_new_zipfile_serialization=kind != "legacy")
    for format in (None, "dc", "idc"):
        with pytest.raises(ValueError, match=r"res\.pt (holds more than tensors.* it refers to \w+\.system; nothing)"):
            dreamlib.import_set(path, format=format, num_classes=2, factor=1, normalised=STATISTICS)
    assert not touched.exists()
    pickle.loads(pickle.dumps(hostile))  # the file is dangerous to who unpickles it
    assert touched.exists()


def test_arrays_of_objects_are_refused(tmp_path):
    touched = tmp_path / "touched"
    hostile = np.array([Hostile(f"touch {touched}")], dtype=object)
    np.savez(tmp_path / "a.npz", images=hostile, labels=np.arange(1))
    np.save(tmp_path / "images.npy", hostile, allow_pickle=True)
    np.save(tmp_path / "labels.npy", np.arange(1))
    for name in ("a.npz", "images.npy"):
        with pytest.raises(ValueError, match=f"{name} is damaged or holds no plain arrays.*allow_pickle"):
            dreamlib.import_set(tmp_path / name, num_classes=2, normalised=STATISTICS)
    saved(tmp_path / "a.pt", {"images": normal(1), "labels": hostile})
    with pytest.raises(ValueError, match=r"a\.pt holds more than tensors"):
        dreamlib.import_set(tmp_path / "a.pt", num_classes=2, normalised=STATISTICS)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.npz", "images.npy", "a.safetensors", "a.pth"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no zip", struct.pack("<Q", 8) * 20])
def test_damaged_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        dreamlib.import_set(tmp_path / name, num_classes=2, normalised=STATISTICS)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save([normal(2), torch.arange(2)], buffer)
    (tmp_path / "a.pt").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    np.savez(tmp_path / "whole.npz", images=normal(2).numpy(), labels=np.arange(2))
    (tmp_path / "a.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-40])
    assert not zipfile.is_zipfile(tmp_path / "a.npz")
    for name in ("a.pt", "a.npz"):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            dreamlib.import_set(tmp_path / name, format="arrays", num_classes=2, normalised=STATISTICS)


def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*a\.pt; check the path"):
        dreamlib.import_set(tmp_path / "a.pt")
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.mat has no known suffix; give format, one of dc"):
        dreamlib.import_set(tmp_path / "a.mat")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_set_or_one_for_each_experiment(tmp_path, capsys):
    experiments = [[normal(3, seed=seed), torch.arange(3)] for seed in range(2)]
    path = saved(tmp_path / "res.pt", {"data": experiments})
    given = ["--num-classes", "3", "--normalised", "0.4,0.5,0.3/0.25,0.3,0.2"]
    assert main(["import", str(path), str(tmp_path / "one.safetensors"), *given, "--experiment", "1"]) == 0
    one = SyntheticSet.open(tmp_path / "one.safetensors")
    assert torch.equal(one.canvases, experiments[1][0]) and one.info["std"] == [0.25, 0.3, 0.2]
    assert main(["import", str(path), str(tmp_path / "all.safetensors"), *given]) == 0
    for index in range(2):
        made = SyntheticSet.open(tmp_path / f"all-{index}.safetensors")
        assert torch.equal(made.canvases, experiments[index][0])
    capsys.readouterr()
    assert main(["import", str(path), str(tmp_path / "two.safetensors"), "--num-classes", "3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "give normalised=" in error
    assert not (tmp_path / "two.safetensors").exists()

"""The transform against SciPy's; what a canvas of coefficients holds, by hand; a set that keeps them."""

import numpy as np
import pytest
import scipy.fft
import torch
from safetensors import safe_open
from safetensors.torch import save

from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.settings import DistillParams
from dreamlib.synthetic import frequency
from dreamlib.synthetic.initial import fill, noise, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet


def images(count=8, channels=2, height=6, width=10, dtype=torch.float64):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def toys(size=8, per_class=20):
    data = LabeledImages(images(2 * per_class, 1, size, size, torch.float32), torch.arange(2).repeat(per_class), 2)
    return DatasetInfo("toy", ("a", "b"), 1, size, (0.5,), (0.25,)), data


def test_the_transform_and_its_inverse_are_scipys():
    x = images()
    expected = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(frequency.dct(x).numpy(), expected, atol=1e-12)
    theirs = scipy.fft.idctn(expected, axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(frequency.inverse_dct(torch.tensor(expected)).numpy(), theirs, atol=1e-12)


def test_the_strongest_frequencies_are_those_with_the_largest_mean_square(monkeypatch):
    monkeypatch.setattr(frequency, "TRANSFORM_BATCH", 3)
    x = images()
    energy = (scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho") ** 2).sum((0, 1)).ravel()
    assert frequency.strongest_frequencies(x, 7).tolist() == sorted(np.argsort(-energy)[:7].tolist())


def test_an_image_of_the_kept_frequencies_comes_back_whole_and_others_as_their_nearest():
    x = images() / 4 + 0.4
    kept = frequency.strongest_frequencies(x, 15)
    back = frequency.unpack(frequency.pack(x, kept, 2), kept, 2)
    spectrum = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(8, 2, 60)
    spectrum[:, :, np.setdiff1d(np.arange(60), kept.numpy())] = 0
    expected = scipy.fft.idctn(spectrum.reshape(8, 2, 6, 10), axes=(2, 3), norm="ortho")
    assert expected.min() > 0 and expected.max() < 1  # nothing to clamp
    np.testing.assert_allclose(back.numpy(), expected, atol=1e-12)
    again = frequency.unpack(frequency.pack(back, kept, 2), kept, 2)
    np.testing.assert_allclose(again.numpy(), expected, atol=1e-12)


def test_where_each_coefficient_lies_in_a_canvas():
    x, kept = images(8, 2, 4, 4), torch.tensor([0, 1, 6])
    canvases, spectrum = frequency.pack(x, kept, 2), frequency.dct(x).flatten(2)
    assert canvases.shape == (2, 2, 4, 4)
    for image in range(8):
        for channel in range(2):
            begin = image % 4 * 3
            got = canvases[image // 4, channel].flatten()[begin : begin + 3]
            assert torch.equal(got, spectrum[image, channel, kept])
    assert not canvases.flatten(2)[..., 12:].any(), "what is not stored stays zero"


def test_decoding_is_differentiable_and_clamps():
    x, kept = images(4, 1, 4, 4) / 4 + 0.4, torch.tensor([0, 2, 5, 9])
    canvases = frequency.pack(x, kept, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: frequency.unpack(c, kept, 2), canvases)
    bright = frequency.unpack(torch.full((1, 1, 2, 2), 9.0), torch.tensor([0]), 1)
    assert bright.unique().tolist() == [1.0]


@pytest.mark.parametrize(("ipc", "factor"), [(1, 1), (1, 2), (3, 2), (2, 3)])
def test_a_set_of_coefficients_stores_no_more_than_its_images_would_and_no_less_than_it_may(ipc, factor):
    info, data = toys()
    made = fill(data, random_rows(data, ipc * factor**2, 0), ipc, factor, "dct")
    budget, images_kept = 2 * ipc * info.size**2, 2 * ipc * factor**2
    assert made.stored_floats == images_kept * len(made.frequencies) + 2  # 64 bits
    assert made.stored_floats <= budget < made.stored_floats + images_kept
    decoded, labels = made.decode()
    assert decoded.shape == (images_kept, 1, 8, 8) and labels.bincount().tolist() == [images_kept // 2] * 2
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_coefficients_come_nearer_to_their_images_than_small_images_do():
    """What the rule is for: the same numbers hold more of a real image."""
    smooth = torch.nn.functional.avg_pool2d(images(24, 1, 12, 12, torch.float32), 5, 1)
    data = LabeledImages(smooth, torch.arange(2).repeat(12), 2)
    rows = random_rows(data, 4, 0)
    errors = {
        rule: (fill(data, rows, 1, 2, rule).decode()[0] - data.images[rows.flatten()]).square().mean()
        for rule in ("single", "dct")
    }
    assert errors["dct"] < 0.7 * errors["single"]


def test_the_file_gives_the_set_back_and_the_pictures_are_pixels(tmp_path):
    _, data = toys()
    made = fill(data, random_rows(data, 8, 0), 2, 2, "dct")
    made.save(tmp_path / "set.safetensors")
    back = SyntheticSet.open(tmp_path / "set.safetensors")
    assert torch.equal(back.decode()[0], made.decode()[0]) and back.stored_floats == made.stored_floats
    assert back.info["decode"] == "dct"
    shown = back.pictures()
    assert shown.shape == back.canvases.shape
    quarter = torch.nn.functional.avg_pool2d(made.decode()[0][:1], 2)
    torch.testing.assert_close(shown[:1, :, :4, :4], quarter)  # the first image, shrunk, in the first corner


def test_pictures_keep_every_tile_whole():
    """Three tiles of 8 / 3 pixels, rounded up, do not fit into 8."""
    _, data = toys()
    made = fill(data, random_rows(data, 9, 0), 1, 3, "dct")
    shown = made.pictures()
    assert shown.shape == (2, 1, 9, 9)
    last = torch.nn.functional.adaptive_avg_pool2d(made.decode()[0][8], 3)
    torch.testing.assert_close(shown[0, :, 6:, 6:], last)


def test_noise_is_kept_as_coefficients_too():
    info, data = toys()
    made = noise(data, info, 2, 2, "dct", seed=0)
    assert made.decode()[0].shape == (16, 1, 8, 8) and made.decode()[0].std() > 0.05


def test_a_file_of_coefficients_without_its_frequencies_is_not_whole(tmp_path):
    _, data = toys()
    path = tmp_path / "set.safetensors"
    fill(data, random_rows(data, 4, 0), 1, 2, "dct").save(path)
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in ("canvases", "labels")}, file.metadata()
    path.write_bytes(save(tensors, metadata=about))
    with pytest.raises(ValueError, match=r"not a complete distilled set .*frequencies belong to the rule 'dct'"):
        SyntheticSet.open(path)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="factor 9 leaves no frequency of a 8×8 image"):
        frequency.max_frequencies(4, 9, (1, 8, 8))
    with pytest.raises(ValueError, match="rule is 'single'"):
        SyntheticSet(torch.zeros(2, 1, 4, 4), torch.arange(2), 2, frequencies=torch.arange(3))
    with pytest.raises(ValueError, match=r"decode = dct decodes to pixels in .*: set bounded: true, or decode: single"):
        DistillParams(decode="dct", bounded=False)

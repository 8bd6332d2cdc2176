"""How an image file becomes bytes: every kind of pixel is scaled by the stated rule or refused, and none is clipped."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import DataError, create
from dreamlib.data.image_files import decode


def grey(path, size=4):
    """Return the bytes (size, size) of an image, which is to be the same for every way to ask for it."""
    pixels = decode(path, size, 1)[0]
    assert (decode(path, size, 3) == pixels).all()
    return pixels


@pytest.fixture
def saved(tmp_path):
    """(name, array or image, options of Image.save) → the file."""

    def save(name, image, **options):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


RAMP = np.array([[0, 255, 256, 32768], [65535, 51200, 511, 512]] * 2, np.uint16)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_keep_the_upper_eight(saved, name):
    assert grey(saved(name, RAMP)).tolist() == [[0, 0, 1, 128], [255, 200, 1, 2]] * 2


def test_sixteen_bits_in_big_endian_order(saved):
    assert grey(saved("x.tif", RAMP.astype(">u2"))).tolist() == [[0, 0, 1, 128], [255, 200, 1, 2]] * 2


def tiff(path, bits, photometric, rows, sample_format=1):
    """Write a grey TIFF of one strip by hand, as the TIFF 6.0 specification has it: little-endian."""
    height, strip = len(rows), b"".join(rows)
    width = len(rows[0]) * 8 // bits
    fields = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 12 * 10 + 4)]
    fields += [(277, 1), (278, height), (279, len(strip)), (339, sample_format)]
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in fields
    )
    path.write_bytes(
        b"II*\0" + (8).to_bytes(4, "little") + len(fields).to_bytes(2, "little") + entries + bytes(4) + strip
    )
    return path


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path):
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x10])  # 4095, 0, 2048, 16
    path = tiff(tmp_path / "x.tif", 12, 1, [packed] * 4)
    assert grey(path).tolist() == [[255, 0, 128, 1]] * 4


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (16, 65535)])
def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path, bits, white):
    row = b"".join(value.to_bytes(bits // 8, "little") for value in (0, white, 0, 0))
    assert grey(tiff(tmp_path / "x.tif", bits, 0, [row] * 4)).tolist() == [[255, 0, 255, 255]] * 4


def test_floats_from_zero_to_one_are_scaled_and_all_others_refused(saved):
    values = np.array([[0, 1, 0.5, 0.2]] * 4, np.float32)
    assert grey(saved("x.tif", values)).tolist() == [[0, 255, 128, 51]] * 4
    for worst in (255.0, -0.5, np.nan):
        values[2, 2] = worst
        with pytest.raises(ValueError, match=r"float pixels must lie in \[0, 1\], got .*; divide by the white level"):
            decode(saved("y.tif", values), 4, 3)


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_integers_without_an_agreed_white_are_refused(tmp_path, dtype):
    rows = [np.array([0, 1, 70, 255], dtype).tobytes()] * 4
    path = tiff(tmp_path / "x.tif", 8 * np.dtype(dtype).itemsize, 1, rows, sample_format=2)
    with pytest.raises(
        ValueError, match=r"32-bit or signed integer pixels have no defined white level; .* 8 or 16 bits"
    ):
        decode(path, 4, 1)


def test_a_folder_names_all_the_files_it_refuses(tmp_path):
    for label in "ab":
        for split in ("train", "test"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / label / "good.png")
        Image.fromarray(np.full((4, 4), 300, np.int32)).save(tmp_path / "train" / label / "int.tif")
    Image.fromarray(np.full((4, 4), 300, np.float32)).save(tmp_path / "train" / "a" / "float.tif")
    with pytest.raises(DataError, match="3 files are not readable images") as refused:
        create("folder", {"path": str(tmp_path)}).load("train")
    for part in ("a/float.tif: float pixels", "a/int.tif: 32-bit", "b/int.tif: 32-bit"):
        assert part in str(refused.value)


def test_colour_of_sixteen_bits_keeps_the_upper_eight(tmp_path):
    """Pillow cannot write it: a PNG by hand, one pixel of red 0x80FF, green 0x0100, blue 0xFFFF."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, row = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + bytes([0x80, 0xFF, 0x01, 0x00, 0xFF, 0xFF])
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert decode(tmp_path / "x.png", 1, 3).flatten().tolist() == [0x80, 0x01, 0xFF]


def rgb(path):
    """Return the colours of the first row."""
    return [tuple(colour) for colour in decode(path, 2, 3)[:, 0].T.tolist()]


def indexed(*indices, transparency=None):
    """Return an image with a palette of red, green and blue."""
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata(indices * 2)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.bmp", "x.tif"])
def test_a_palette_gives_its_colours(saved, name):
    assert rgb(saved(name, indexed(0, 2))) == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_what_is_transparent_becomes_white(saved, name):
    assert rgb(saved(name, indexed(0, 2, transparency=2), transparency=2)) == [(255, 0, 0), (255, 255, 255)]


def test_half_transparent_colours_and_greys_are_mixed_with_white(saved):
    assert rgb(saved("x.png", Image.new("RGBA", (2, 2), (255, 0, 0, 51))))[0] == (255, 204, 204)
    assert rgb(saved("y.png", Image.new("LA", (2, 2), (0, 51))))[0] == (204, 204, 204)
    assert grey(saved("z.png", Image.new("LA", (4, 4), (0, 51)))).unique().tolist() == [204]


@pytest.mark.parametrize("kind", ["RGB", "L", "I;16"])
def test_a_transparent_colour_becomes_white(saved, kind):
    dark = {"RGB": (0, 0, 9), "L": 9, "I;16": 900}[kind]
    image = Image.new(kind, (4, 4), dark)
    image.putpixel((0, 0), (0, 0, 0) if kind == "RGB" else 0)
    pixels = decode(saved("x.png", image, transparency=dark), 4, 3)
    assert (pixels[:, 0, 0] == 0).all() and (pixels[:, 1:] == 255).all()


def frames():
    return [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_of_several_frames_or_pages_the_first_is_read(saved, name):
    first, *rest = frames()
    path = saved(name, first, save_all=True, append_images=rest, **({"lossless": True} if name == "x.webp" else {}))
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert decode(path, 4, 3).flatten(1).unique(dim=1).flatten().tolist() == [255, 0, 0]


def test_one_bit_is_black_and_white(saved):
    bits = Image.fromarray(np.array([[True, False, False, True]] * 4))
    for name in ("x.png", "x.tif", "x.pbm"):
        assert bits.mode == "1" and grey(saved(name, bits)).tolist() == [[255, 0, 0, 255]] * 4


@pytest.mark.parametrize(("name", "tolerance"), [("x.tif", 0), ("x.jpg", 2)])
def test_inks_become_light(saved, name, tolerance):
    """Full cyan takes the red away; half of black halves what is left."""
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert rgb(saved(name, image, quality=100))[0] == pytest.approx((0, 255, 255), abs=tolerance)
    image = Image.new("CMYK", (2, 2), (0, 255, 0, 128))
    assert rgb(saved(name, image, quality=100))[0] == pytest.approx((127, 0, 127), abs=tolerance)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (7, 7)), (6, (0, 7)), (8, (7, 0))])
def test_the_orientation_of_the_camera_is_applied(saved, name, orientation, corner):
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4, :4] = 255  # white in the top left quarter as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = grey(saved(name, stored, exif=exif), size=8)
    assert shown[corner] > 240 and (shown > 128).sum() == 16


def test_deep_images_are_turned_as_well(saved):
    exif = Image.Exif()
    exif[0x0112] = 3
    assert grey(saved("x.png", RAMP, exif=exif)).tolist() == grey(saved("y.png", RAMP)).flip(0, 1).tolist()

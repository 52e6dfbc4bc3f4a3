"""One image at a time, without Beam, gives what the jobs give."""

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from ot_core import ImageError, MapFileError, Transporter, load_restorer, read_map
from ot_core.png import write_png
from pipelines import fit, transport


@pytest.fixture(scope="module")
def folders(photo, tmp_path_factory):
    """Originals, and blurred ones under the same names: colour, grey, transparent, of many sizes."""
    root = tmp_path_factory.mktemp("transporter")
    for index in range(20):
        image = Image.fromarray(photo(40 + 3 * index, 64 + index % 5, seed=index))
        if index % 5 == 1:
            image = image.convert("L")
        if index % 5 == 2:
            image.putalpha(Image.fromarray(photo(*image.size[::-1], seed=99)[:, :, 0]))
        for name, result in (("natural", image), ("restored", image.resize(image.size, box=(1, 1, *image.size)))):
            (root / name).mkdir(exist_ok=True)
            result.save(root / name / f"{index:08d}.png")
    return root


@pytest.fixture(scope="module")
def map_url(folders, vae):
    url = str(folders / "map.safetensors")
    sides = ["--target", str(folders / "natural"), "--source", str(folders / "restored")]
    assert fit.main([*sides, "--paired", "--vae", vae, "--map", url]) == 0
    return url


def _pictures(folder):
    return [Image.open(path) for path in sorted(folder.iterdir())]


def test_it_gives_the_pixels_of_dot_transport(folders, map_url):
    output = folders / "out"
    arguments = ["--input", str(folders / "restored"), "--map", map_url, "--output", str(output), "--alpha", "0.5"]
    assert transport.main(arguments) == 0
    transporter = Transporter.from_map(map_url)
    for path in sorted((folders / "restored").iterdir()):
        with Image.open(path) as image, Image.open(output / "images" / path.name) as expected:
            result = transporter(image, alpha=0.5)
            assert result.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


def test_it_fits_the_map_of_dot_fit(folders, map_url, vae, tmp_path):
    natural, restored = _pictures(folders / "natural"), _pictures(folders / "restored")
    transporter = Transporter.fit(natural, restored, paired=True, vae=vae)
    expected = read_map(map_url)
    np.testing.assert_allclose(
        transporter.map.map.matrix, expected.map.matrix, rtol=0, atol=1e-9 * abs(expected.map.matrix).max()
    )
    assert transporter.map.noise_floor == pytest.approx(expected.noise_floor)
    transporter.save(str(tmp_path / "m.safetensors"))
    again = Transporter.from_map(str(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(np.asarray(again(restored[0])), np.asarray(transporter(restored[0])))


def test_it_degrades_and_restores_as_dot_fit_does(folders, tmp_path):
    url = str(tmp_path / "m.safetensors")
    degradation = ["--degrade", "bicubic:2,noise:5"]
    assert fit.main(["--target", str(folders / "natural"), *degradation, "--vae", "pixels", "--map", url]) == 0
    natural = _pictures(folders / "natural")
    fitted = Transporter.fit(natural, degrade=degradation[1], restorer="bicubic:2", vae="pixels").map
    expected = read_map(url)
    assert fitted.origin == expected.origin
    np.testing.assert_allclose(fitted.map.matrix, expected.map.matrix, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def of_pixels(folders):
    return Transporter.fit(_pictures(folders / "natural"), _pictures(folders / "restored"), paired=True, vae="pixels")


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_and_tensors_come_back_as_they_went_in(of_pixels, shape, dtype):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    array = values if dtype == np.uint8 else (values / 255).astype(dtype)
    result = of_pixels(array)
    assert (result.shape, result.dtype) == (array.shape, array.dtype)
    tensor = torch.from_numpy(array.reshape(20, 30, -1)).permute(2, 0, 1)
    moved = of_pixels(tensor)
    assert (moved.shape, moved.dtype) == (tensor.shape, tensor.dtype)
    np.testing.assert_array_equal(moved.permute(1, 2, 0).numpy().reshape(shape), result)
    batch = of_pixels(torch.stack([tensor, tensor]))
    torch.testing.assert_close(batch[1], moved, rtol=0, atol=0)
    if shape[-1] == 4:
        np.testing.assert_array_equal(result[..., 3], array[..., 3])


def test_alpha_1_is_the_image_itself(of_pixels, photo):
    image = photo(20, 30)
    np.testing.assert_array_equal(of_pixels(image, alpha=1.0), image)
    assert (of_pixels(image) != image).any()


@pytest.fixture(scope="module")
def deep(folders, map_url):
    """A folder of PNG files of 16 bits, grey and in colour, and what dot-transport makes of them, by name."""
    rng, output = np.random.default_rng(0), folders / "deep-out"
    (folders / "deep").mkdir()
    samples = {f"{channels}": rng.integers(0, 65536, (48, 56, channels), np.uint16) for channels in (1, 3, 4)}
    for name, values in samples.items():
        (folders / "deep" / f"{name}.png").write_bytes(write_png(values, 2))
    arguments = ["--input", str(folders / "deep"), "--map", map_url, "--output", str(output), "--alpha", "0.5"]
    assert transport.main(arguments) == 0
    written = {name: imagecodecs.png_decode((output / "images" / f"{name}.png").read_bytes()) for name in samples}
    assert all(values.dtype == np.uint16 for values in written.values())
    return samples, written


def test_16_bits_give_what_dot_transport_writes_unrounded(deep, map_url):
    samples, written = deep
    transporter = Transporter.from_map(map_url)
    for name, values in samples.items():
        array = (values / 65535).astype(np.float32)
        found = transporter(array, alpha=0.5)
        levels = found * np.float64(65535)
        expected = written[name].reshape(values.shape)
        assert np.abs(levels - expected).max() <= 0.51
        assert np.abs(levels[..., :3] - expected[..., :3]).max() > 0.25  # what rounding to 16 bits would have lost
        tensor = transporter(torch.from_numpy(array).permute(2, 0, 1), alpha=0.5)
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), found)
    image = transporter(Image.fromarray(samples["1"][..., 0]), alpha=0.5)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(image), written["1"])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_16_bits_come_back_exactly_at_alpha_1(of_pixels, channels, dtype):
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(channels, axis=2)
    array = (samples / 65535).astype(dtype)
    found = of_pixels(array, alpha=1.0)
    np.testing.assert_array_equal(np.rint(found * np.float64(65535)), samples)
    if channels > 1:
        np.testing.assert_array_equal(found[..., :3], array[..., :3].astype(np.float32))
    np.testing.assert_array_equal(found[..., 3:], array[..., 3:])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_grey_pil_images_stay_deep(of_pixels, mode):
    levels = np.arange(65536).reshape(256, 256)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}[mode]
    image = Image.fromarray((levels / 65535 if mode == "F" else levels).astype(dtype))
    assert image.mode == mode
    found = of_pixels(image, alpha=1.0)
    assert found.mode == ("F" if mode == "F" else "I;16")
    np.testing.assert_array_equal(np.rint(np.asarray(found) * (65535.0 if mode == "F" else 1)), levels)
    image.info["transparency"] = image.getpixel((5, 0))
    transparent = of_pixels(image)
    assert transparent.mode == "LA"
    np.testing.assert_array_equal(np.argwhere(np.asarray(transparent)[..., 1] == 0), [[0, 5]])


def test_a_restorer_gives_8_bits(of_pixels):
    restoring = Transporter(of_pixels.map, of_pixels.autoencoder, load_restorer("bicubic:2"))
    array = np.random.default_rng(0).random((20, 30, 4), np.float32)
    found = restoring(array)
    assert (found.shape, found.dtype) == ((40, 60, 4), np.float32)
    np.testing.assert_array_equal(found, (np.rint(found * 255) / 255).astype(np.float32))
    assert restoring(Image.fromarray(array[..., 0])).mode == "L"


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("a.png", "expected a PIL image"),
        (np.zeros((4, 4, 2), np.uint8), "expected 1, 3 or 4 channels"),
        (np.zeros((4, 4), np.int32), "uint8 or floating point"),
        (np.full((8, 8, 3), 255.0), "all in"),
        (np.full((8, 8, 3), np.nan), "all in"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(of_pixels, picture, said):
    with pytest.raises(TypeError, match=said):
        of_pixels(picture)


def test_fitting_refuses_what_does_not_go_together(photo):
    images = [photo(20, 30, seed=seed) for seed in range(3)]
    for arguments in ({}, {"restored": images, "degrade": "noise:5"}, {"restored": images[:2], "paired": True}):
        with pytest.raises(ValueError, match=r"Transporter\.fit"):
            Transporter.fit(images, **arguments, vae="pixels")
    with pytest.raises(ImageError, match="too_small"):
        Transporter.fit([image[:2, :2] for image in images], images, vae="pixels")


def test_a_map_of_another_restorer_is_refused(folders, tmp_path):
    natural = _pictures(folders / "natural")[:4]
    url = str(tmp_path / "m.safetensors")
    Transporter.fit(natural, degrade="bicubic:2", restorer="bicubic:2", vae="pixels").save(url)
    with pytest.raises(MapFileError, match="was fitted for the restorer bicubic:2"):
        Transporter.from_map(url, restorer="bicubic:4")
    larger = Transporter.from_map(url, restorer="bicubic:2")(natural[0])
    assert larger.size == (2 * natural[0].width, 2 * natural[0].height)

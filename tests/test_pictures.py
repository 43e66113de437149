"""Image files of any kind become RGB, or are refused by name."""

import pytest

from lab.field.pictures import open_image
from lab.world.scenes import draw


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n then nothing"])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="picture.png.*no usable image"):
        open_image(path)


def test_pictures_of_any_mode_open_as_rgb(tmp_path, scenes):
    for mode in ("L", "RGBA", "P", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        draw(scenes[0]).convert(mode).save(path)
        assert open_image(path).mode == "RGB"

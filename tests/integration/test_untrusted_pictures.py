"""Whatever a picture file holds, it is read as a picture of the data's form or refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dlnn_search.commands import predict
from dlnn_search.commands.predict import read_picture
from dlnn_search.config import ClockNet, Clocks, Cnn, Config, Conv, Mnist, Pool
from dlnn_search.errors import DataError

CLOCK = Config(data=Clocks(image_size=32), model=ClockNet(blocks=(Conv(filters=2), Pool(size=8))))

DIGIT = Config(data=Mnist(), model=Cnn(blocks=(Conv(filters=2), Pool(size=8))))


def picture_bytes(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    levels = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    Image.fromarray(levels).save(file, format=form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG that claims a size, with whatever chunks follow."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more)


WHOLE = [picture_bytes("PNG"), picture_bytes("JPEG"), picture_bytes("JPEG", progressive=True)]
SWOLLEN_TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    raw=st.binary(max_size=500)
    | st.tuples(
        st.sampled_from(WHOLE), st.floats(0, 1), st.binary(max_size=20), st.integers(0, 30)
    ).map(
        lambda drawn: (
            drawn[0][: int(drawn[1] * len(drawn[0]))]
            + drawn[2]
            + drawn[0][int(drawn[1] * len(drawn[0])) + drawn[3] :]
        )
    )
)
@example(raw=png(0, 0))
@example(raw=png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"0"))))
@example(raw=png(90_000, 90_000, chunk(b"IDAT", zlib.compress(bytes(1_000_000)))))
@example(raw=png(8, 8, SWOLLEN_TEXT, chunk(b"IDAT", zlib.compress(bytes(72)))))
@example(raw=picture_bytes("GIF"))
@example(raw=picture_bytes("TIFF"))
@example(raw=picture_bytes("EPS"))
@example(raw=b"%!PS-Adobe-3.0\n")
def test_a_file_of_any_bytes_is_a_picture_of_the_datas_form_or_refused(
    raw: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(raw)
    for config, shape in (
        (CLOCK, (32, 32)),
        (DIGIT, (28, 28)),
    ):
        try:
            pixels = read_picture(path, config, shape)
        except DataError as error:
            assert str(path) in str(error)
            continue
        assert pixels.shape == shape and pixels.dtype == np.uint8


def test_other_formats_than_png_and_jpeg_are_refused(tmp_path: Path) -> None:
    for form in ("GIF", "TIFF", "BMP", "EPS", "WEBP"):
        path = tmp_path / "picture.png"
        path.write_bytes(picture_bytes(form))
        with pytest.raises(DataError, match="no PNG or JPEG"):
            read_picture(path, CLOCK, (32, 32))


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    with path.open("wb") as file:
        file.write(WHOLE[0])
        file.truncate(predict.MAX_PICTURE_BYTES + 1)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(DataError, match="at most"):
        read_picture(path, CLOCK, (32, 32))

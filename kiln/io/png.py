"""PNG files: the checksums of their chunks, and their texts."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD, CHECKSUM = 8, 4  # bytes of a chunk before and after its data


def read_png_texts(data: bytes) -> dict[str, str]:
    """Return the texts of a PNG file by keyword.

    Raises:
        ValueError: The data are no complete PNG file. Every chunk has a checksum, which is compared.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("another file than PNG")
    texts, place, kind = {}, len(SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + HEAD], place + HEAD + length
        if end + CHECKSUM > len(data):
            raise ValueError("a truncated PNG file")
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + CHECKSUM], "big"):
            raise ValueError("a damaged PNG file")
        if kind == b"tEXt":
            keyword, _, text = data[place + HEAD : end].partition(b"\0")
            texts[keyword.decode("latin-1")] = text.decode("latin-1")
        place = end + CHECKSUM
    if place != len(data):
        raise ValueError("a PNG file with something after its end")
    return texts

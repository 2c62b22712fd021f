"""The PNG file of a chip's picture in the cache, which states its origin."""

from kiln.errors import SourceError
from kiln.io.png import read_png_texts

TEXT_CHUNKS = ("origin", "why", "stands-in")


def read_picture_info(data: bytes) -> dict[str, str]:
    """Return the texts of a cached picture: `origin`, `why` and `stands-in`.

    Raises:
        SourceError: The data are no complete PNG file with these texts.
    """
    try:
        texts = read_png_texts(data)
        return {name: texts[name] for name in TEXT_CHUNKS}
    except (ValueError, KeyError) as e:
        raise SourceError(f"expected a picture with its origin, got {e}. It is made again.") from e

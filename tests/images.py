"""Images that claim to be huge."""

import struct
import zlib


def claim_size(data: bytes, suffix: str) -> bytes:
    """A small encoded image whose header claims more pixels than any reader should take memory for."""
    bomb = bytearray(data)
    size = {
        ".png": (16, struct.pack(">II", 60000, 60000)),
        ".bmp": (18, struct.pack("<ii", 60000, -60000)),
        ".jpg": (bomb.find(b"\xff\xc0") + 5, struct.pack(">HH", 60000, 60000)),
        ".webp": (26, struct.pack("<HH", 16383, 16383)),
    }
    if bomb[12:16] == b"VP8L":
        size[".webp"] = (21, struct.pack("<I", 16382 | 16382 << 14))
    start, value = size[suffix]
    bomb[start : start + len(value)] = value
    if suffix == ".png":  # of the header chunk
        bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    return bytes(bomb)

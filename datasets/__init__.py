"""What lies on disk, and how it is read."""

import os

MAX_PIXELS = 2**26  # of an image or a video's frame; a decoder is not asked for more, whatever a header says
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # OpenCV reads it once, when it is imported

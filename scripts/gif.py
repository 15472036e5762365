"""A short animation of a video's first seconds: python -m scripts.gif VIDEO OUT.gif"""

import argparse
from itertools import islice

import cv2
import numpy as np
from PIL import Image  # comes with Matplotlib

from datasets.dataset import VideoFrames
from utils.cli import run

WIDTH, COLOURS, FRAMES, STEP = 360, 96, 24, 3  # every third frame of 30 a second, played at 10


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("out")
    args = parser.parse_args()
    frames = islice(VideoFrames(args.video), 0, FRAMES * STEP, STEP)
    images = [cv2.resize(f, (WIDTH, WIDTH * f.shape[0] // f.shape[1]), interpolation=cv2.INTER_AREA) for f in frames]
    # One palette for all frames: nothing flickers.
    palette = Image.fromarray(np.concatenate(images)).quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    first, *rest = (Image.fromarray(i).quantize(palette=palette, dither=Image.Dither.NONE) for i in images)
    first.save(args.out, save_all=True, append_images=rest, duration=100, loop=0, optimize=True)


if __name__ == "__main__":
    run(main)

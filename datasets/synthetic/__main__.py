"""`python -m datasets.synthetic`, see `datasets.synthetic.videos`."""

from datasets.synthetic.videos import main
from utils.cli import run

if __name__ == "__main__":
    run(main)

"""A run of the toy that writes checkpoints until it is killed: ``python -m learning.killed_run FOLDER STEPS LAST``."""

import sys
import threading

import torch

from learning.toy_run import long_run


def main(folder, steps, last):
    torch.set_num_threads(1)

    def wait(updates, metrics):
        if updates == last:
            threading.Event().wait()  # for the signal that ends it

    long_run(steps, out=folder, resume=False, callbacks=[wait])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

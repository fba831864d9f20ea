"""One of two processes that train a student together; started by test_sinkd_fit."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sanov.core.progress import quiet
from sanov.systems import sinkd
from systems.sinkd_toy import config, table


def main(folder):
    torch.set_num_threads(1)
    with quiet():
        for name, options in {
            "together": {"transport_weight": 1.0, "transport": {"gather": True}},
            "apart": {"transport_weight": 1.0},
            "balanced": {"balance": 0.5, "transport_weight": 0.0, "transport": {"gather": True}},
        }.items():
            sinkd.fit(table(), config(**options), out=folder / name)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What a torch_dist checkpoint holds: python checkpoint.py FOLDER... prints a digest of each, of every tensor in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cuda_on_cpu  # noqa: F401
import torch
from megatron.core import dist_checkpointing
from record import digest

torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
found = {}
for folder in sys.argv[1:]:
    tensors = dist_checkpointing.load_plain_tensors(folder)
    flat = sorted((name, value) for name, value in tensors.items() if torch.is_tensor(value))
    found[folder] = {name: digest([value]) for name, value in flat}
print(json.dumps(found))

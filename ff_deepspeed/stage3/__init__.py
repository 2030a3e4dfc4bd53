"""ZeRO-3: what a rank holds, what an interrupted iteration leaves behind, how weights come back.

| file       | what |
| ---        | --- |
| layout.py  | the attributes of DeepSpeed that the others use, and whether this DeepSpeed has them |
| state.py   | the tensors of a rank: where they are and who else has them |
| reset.py   | forgets gathered parameters, traces and gradients |
| rebuild.py | weights from the masters |
"""

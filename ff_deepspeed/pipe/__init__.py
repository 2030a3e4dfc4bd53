"""DeepSpeed's PipelineEngine: layers on several stages, each stage on one or more data-parallel ranks.

| module | what |
| --- | --- |
| state | what the engine keeps beside other engines, and which ranks hold the same |
| feed | the micro-batches of one train_batch() or eval_batch(), and the place in the data |
| script | the calls of an unmodified loop |
| hooks | where these are called |
"""

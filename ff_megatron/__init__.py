"""FFTrainer for Megatron-LM: a rank may die, the job goes on.

Switched on by `--ff-failover` among the arguments of a pretrain script that `fftrain run` starts:

    fftrain run --nproc-per-node 8 --spares 1 pretrain_gpt.py <Megatron's arguments> --ff-failover

The script does not change; `ff_megatron.hooks` says where FFTrainer looks in.
"""

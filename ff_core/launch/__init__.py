"""Starting a job and its processes: `fftrain run`, worker processes and their environment, spares, fault injection.

cli, arguments, settings, run, agents and summary belong to the launcher; process and env to the agent;
worker_main, script, hooks, preload and inject to the worker. lifeline is shared by all three.
"""

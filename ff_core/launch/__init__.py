"""The launcher's process, `fftrain run`: command line (cli, arguments, refusals), torch store and controller of node 0
(run, torch_store, rivals), this machine's agents (agents).
"""

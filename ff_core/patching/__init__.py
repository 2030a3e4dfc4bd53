"""Patches of the frameworks, for jobs without import hooks: `fftrain patch`.

A patched framework calls FFTrainer's hooks itself. `patchfile` is a patch and its format, `tree` one patch and one tree
of files, `command` the command line. Nothing here imports a framework, or torch.
"""

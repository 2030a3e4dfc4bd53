"""What a worker says on its status page about what its training thread is doing (word `activity`)."""

ACTIVITY_USER, ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_STEP, ACTIVITY_RECOVERING, ACTIVITY_LEAVING = range(6)
"""LEAVING: through its training loop, it waits for the other ranks to be through theirs."""

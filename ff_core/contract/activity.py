"""What a worker says on its status page about what its training thread is doing (word `activity`)."""

ACTIVITY_USER, ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_STEP, ACTIVITY_RECOVERING = range(5)

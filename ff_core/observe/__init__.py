"""What happened in a job: the event log and the report made from it."""

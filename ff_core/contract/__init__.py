"""What two processes must agree on: messages, job, secrets, environment, the adapter. No torch."""

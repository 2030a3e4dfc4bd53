"""What scripts/demo.py and scripts/bench_recovery.py share: jobs, what they leave behind, and how they are hurt."""

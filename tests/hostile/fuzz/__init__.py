"""Readers under a coverage-guided fuzzer: ``python -m tests.hostile.fuzz TARGET SECONDS``; ``make fuzz`` runs all of them."""

"""What is learned off line: records, tuning, the oracle of acceptance, perplexity."""

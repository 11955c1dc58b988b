"""What the rules share: walks, odds, and kinship of tokens."""

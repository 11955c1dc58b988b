"""What a draft is worth by its own account: chances of its tokens, and tries that are paid for."""

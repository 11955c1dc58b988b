"""How much to draft: what steps cost, what drafts bring, and who decides."""

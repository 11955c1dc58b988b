"""What a pass is, and how passes run one after another."""

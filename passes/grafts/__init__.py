"""The grafts: one file for each that a user can name."""

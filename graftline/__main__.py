"""`python -m graftline` is the command line."""

from graftline.commands.cli import main

if __name__ == "__main__":
    main()

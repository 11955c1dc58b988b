"""`python -m graftline` is the command line."""

from graftline.cli import main

if __name__ == "__main__":
    main()

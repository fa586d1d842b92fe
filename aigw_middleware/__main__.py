"""`python -m aigw_middleware` is the `aigw` command."""

from .cli import main

if __name__ == "__main__":
    main()

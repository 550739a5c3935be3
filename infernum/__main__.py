"""`python -m infernum` is the command `infernum`."""

from infernum.cli import main

if __name__ == "__main__":
    main()

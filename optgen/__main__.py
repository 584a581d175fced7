"""``python -m optgen`` is ``optgen``."""

from optgen.cli import main

if __name__ == "__main__":
    main()

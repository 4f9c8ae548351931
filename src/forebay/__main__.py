"""``python -m forebay`` is ``forebay``."""

from forebay.cli.main import main

main()

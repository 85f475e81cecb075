"""Makes the links of the README absolute for the package index, which shows it without the repository around it.

Everything else is in setup.cfg.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def description_for_index() -> str:
    """The README, with links to files and pictures of the repository as addresses."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    home = config["metadata"]["url"]
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{home}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{home}/blob/main/", text)


setup(long_description=description_for_index(), long_description_content_type="text/markdown")

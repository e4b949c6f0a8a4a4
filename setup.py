"""The build, described in pyproject.toml; here is only what that cannot say.

setuptools copies the packages into `build/` and packs all that it finds there: what an earlier version of the source
left, too, and then the installed bundle does not verify. So the folder is made anew.
"""

import shutil

from setuptools import setup
from setuptools.command.build import build


class FreshBuild(build):
    """Builds into an empty folder."""

    def run(self) -> None:
        """Empty the folder, then build."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build": FreshBuild})

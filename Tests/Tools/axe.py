"""Prints axe-core, the program that looks for what keeps people from using a page."""

import importlib.util
import pathlib
import sys

# The package's own code drives a browser of another maker; only a file of it is of use here, so it is
# found and not imported.
package = importlib.util.find_spec("axe_playwright_python")
sys.stdout.write(pathlib.Path(package.origin).with_name("axe.min.js").read_text())

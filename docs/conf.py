"""Sphinx configuration: ``make docs``."""

import argparse
import os

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from openmm_sd import __version__
from openmm_sd.cli import parser_of

project = "openmm-sd"
author = "The openmm-sd authors"
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "numpydoc",
]
exclude_patterns = ["_build"]
highlight_language = "none"
smartquotes = False
html_theme = "furo"
html_title = f"openmm-sd {release}"
autosummary_generate = True
numpydoc_show_class_members = False
myst_enable_extensions = ["deflist", "dollarmath"]
# Links to headings of other pages.
myst_heading_anchors = 3

# Inventories of other projects need a network, and a build without one must not warn.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }


class Command(SphinxDirective):
    """The options of a command, read from its parser: ``{command} NAME``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = parser_of(self.arguments[0])
        usage = f"{parser.prog} " + " ".join(
            action.metavar or action.dest.upper()
            for action in parser._actions
            if not action.option_strings
        )
        page: list[nodes.Node] = [
            nodes.literal_block(usage, f"{usage.strip()} [options]"),
            *(nodes.paragraph(text=part) for part in (parser.description or "").split("\n\n")),
        ]
        for group in parser._action_groups:
            entries = [_entry(parser, action) for action in group._group_actions]
            if entries:
                page.append(nodes.rubric(text=(group.title or "").capitalize()))
                page.append(nodes.definition_list("", *entries))
        return page


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> nodes.Node:
    formatter = parser._get_formatter()
    term = formatter._format_action_invocation(action)
    text = formatter._expand_help(action) if action.help else ""
    return nodes.definition_list_item(
        "",
        nodes.term("", "", nodes.literal(text=term)),
        nodes.definition("", nodes.paragraph(text=text)),
    )


def setup(app: Sphinx) -> None:
    app.add_directive("command", Command)

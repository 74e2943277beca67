"""How Sphinx builds the documentation: `make docs`."""

from lossmith import __version__

project = "lossmith"
author = "The lossmith authors"
copyright = "The lossmith authors"  # the name that Sphinx reads
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Sections of docstrings, whose indented lines are entries. Elsewhere such lines are formulas, which keep their lines.
SECTIONS = {"Args:", "Attributes:", "Example:", "Raises:", "Returns:", "Shape:", "Warns:", "Yields:"}

html_theme = "pydata_sphinx_theme"
html_title = "lossmith"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {name: [] for name in ("index", "start", "when-not-to", "changelog")}
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_prev_next": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def formulas_keep_lines(app, what, name, of, options, lines):
    """Make a line block of each indented block outside of sections."""
    entries = False  # whether the last line without indentation begins a section or a list
    for i, line in enumerate(lines):
        if line and not line.startswith(" "):
            entries = line in SECTIONS or line.startswith(("-", "*", ">>>", "..")) or line[0].isdigit()
        elif line.startswith("    ") and not entries:
            lines[i] = f"    | {line[4:]}"


def setup(app):
    """Before napoleon, which rewrites sections."""
    app.connect("autodoc-process-docstring", formulas_keep_lines, priority=400)

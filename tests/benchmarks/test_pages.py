"""Pages that benchmarks write."""

from pathlib import Path

from benchmarks.pages import write_page


def test_prose_is_wrapped_and_what_belongs_on_one_line_stays_there(tmp_path: Path) -> None:
    whole = [
        "| " + "a cell " * 30 + "|",
        "    " + "a command " * 20,
        "# " + "a heading " * 20,
        "![a picture](" + "x" * 150,
    ]
    prose, item = "word " * 60, "- " + "item " * 60
    write_page(tmp_path / "page.md", "\n".join([*whole, prose, item, "", "short\n\n"]))
    lines = (tmp_path / "page.md").read_text().split("\n")
    assert lines[:4] == whole
    assert all(len(line) <= 120 for line in lines[4:])
    assert " ".join(lines[4:]).split() == f"{prose} {item} short".split()
    assert lines[8].startswith("  item")
    assert lines[-3:] == ["", "short", ""]

"""The rows of a table, whatever wrote it: CSV with commas, semicolons or tabs, or the first sheet of an XLSX file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from streamingcnn.extras import require

__all__ = ["Row", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One row: its line in the file, its texts by column, and how many values it has beyond the header."""

    line: int
    values: dict[str, str]
    extra: int = 0


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The header and the rows of a table; rows without any value are left out.

    Example::

        header, rows = read_rows(Path("labels.csv"))
        rows[0].values["label"]

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is neither CSV nor XLSX, or a column has two places.
        ModuleNotFoundError: openpyxl is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path.absolute()}")
    suffix = path.suffix.lower()
    if suffix in (".xls", ".ods"):
        raise ValueError(f"{path}: tables are CSV or XLSX; save it as one of them")
    table = _xlsx(path) if suffix in (".xlsx", ".xlsm") else _csv(path)
    header = [text.strip() for text in table[0][1]] if table else []
    while header and not header[-1]:
        header.pop()
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has more than one column {', '.join(map(repr, twice))}")
    rows = []
    for line, texts in table[1:]:
        values = [text.strip() for text in texts]
        if any(values):
            extra = sum(bool(text) for text in values[len(header) :])
            rows.append(Row(line, dict(zip(header, values, strict=False)), extra))
    return header, rows


def _csv(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save it as 'CSV UTF-8', or as XLSX") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # Excel writes semicolons where the comma is for decimals
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _xlsx(path: Path) -> list[tuple[int, list[str]]]:
    import zipfile

    require("openpyxl")

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"{path} is no XLSX file: {error}") from None
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        return [(line, ["" if cell is None else str(cell) for cell in row]) for line, row in enumerate(rows, start=1)]
    finally:
        book.close()

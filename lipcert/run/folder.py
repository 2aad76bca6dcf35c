"""The folder that a run writes to: what of an earlier run lies there, and whether it may go on."""

from __future__ import annotations

from pathlib import Path

from lipcert.coins import Coins
from lipcert.errors import LipcertError, UsageError
from lipcert.records.strict_json import parse
from lipcert.report import json_file, thumbnails
from lipcert.run.job import Execution

AFRESH = "or start afresh with --overwrite"


def journal_path(execution: Execution) -> Path:
    """Where the journal of this run, or of this shard of it, lies."""
    assert execution.output is not None
    return execution.output / f"journal{json_file.suffix(execution.part)}.jsonl"


def recorded_coins(execution: Execution) -> Coins | None:
    """The coins that a run goes on with: those of its own journal, or of another shard's beside it,
    as all shards of a run share their norms; None where a run starts. What else is wrong with a
    journal is found where it is read."""
    if execution.output is None:
        return None
    own = journal_path(execution)
    for path in sorted(own.parent.glob("journal*.jsonl"), key=lambda path: path != own):
        if (path == own or execution.shard is None) and not execution.resume:
            continue
        try:
            if not path.is_file():
                continue
            with path.open("rb") as lines:
                return Coins.from_json(parse(lines.readline(2**20), str(path))["coins"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, LipcertError):
            continue
    return None


def remove_results(execution: Execution) -> None:
    """Remove the journal, the results, the proofs and the audit of an earlier run of the same
    shard, nothing else."""
    assert execution.output is not None
    pictures = thumbnails.paths(execution.output, json_file.suffix(execution.part))
    results = json_file.paths(execution.output, execution.part)
    audit = execution.output / f"audit{json_file.suffix(execution.part)}.json"
    proofs = json_file.proofs_path(execution.output, execution.part)
    for path in (journal_path(execution), *pictures, audit, proofs, *results):
        path.unlink(missing_ok=True)


def check_output(execution: Execution) -> None:
    """Refuse, before anything is computed, to write over an earlier run.

    Raises ``UsageError`` where the folder is no folder, holds results while neither ``resume`` nor
    ``overwrite`` is asked for, or holds no journal to resume.
    """
    folder = execution.output
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: is a file; name a folder")
    if execution.resume:
        # A shard may join the others before it has a journal of its own.
        if not any(folder.glob("journal*.jsonl")):
            raise UsageError(f"--resume: {folder} holds no journal; leave --resume out to start")
        return
    own = (journal_path(execution), *json_file.paths(folder, execution.part))
    kept = [path.name for path in own if path.exists()]
    if execution.shard is None:
        kept += sorted(path.name for path in folder.glob("journal.*-of-*.jsonl"))
    if kept and not execution.overwrite:
        raise UsageError(
            f"--output {folder}: holds {kept[0]} of an earlier run; continue it with --resume "
            f"{AFRESH}"
        )

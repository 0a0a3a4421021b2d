"""The history of a search as Parquet: one row per member and interval. Derived from the log; can be made anew."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rolekd_ray.files import write_atomically
from rolekd_ray.policy.distance import policy_distance
from rolekd_ray.policy.jobs import Job, Perturbation
from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.policy import policy_to_list
from rolekd_ray.policy.population import Population
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place

FOLDER = "history"


class History:
    """Writes `history/generation-<n>.parquet` as soon as all live members scored generation n, and the rest on close.

    Columns: member, generation, epoch, donor, score, time (seconds since 1970), every metric, and per role
    `<role>/policy` (list of op, probability, magnitude_bin; all slots), its scalars, and its choices as text
    (`<role>/agents` is the chain). Where both roles evolve, `policy_distance` is the one between their policies
    (`policy.distance`). `lineages`: how many members of generation 0 have descendants in this one.
    Chains of agents have metrics of their own (`student/picked_ratio`, `learned/…`), so files
    differ in their columns: read them with `pyarrow.concat_tables(…, promote_options="default")` or DuckDB's
    `union_by_name`; who reads the folder as one table gets the first generation's columns alone.
    """

    def __init__(self, folder: Place):
        self.folder = folder / FOLDER
        self.population: Population | None = None
        self.rows: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Keep the row; write the generation if it is complete."""
        self.population = population
        self.rows[job.generation].append(history_row(job, record, population))
        self._write_complete(population)

    def perturbed(self, perturbation: Perturbation, population: Population) -> None:
        """Nothing to do: `donor` stands in the recipient's next row."""

    def dropped(self, record: Mapping[str, Any], population: Population) -> None:
        """Write generations that waited for this member alone."""
        self._write_complete(population)

    def caught_up(self, population: Population) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Write generations that are not complete."""
        for generation in list(self.rows):
            self._write(generation)

    def _write_complete(self, population: Population) -> None:
        for generation in list(self.rows):
            if population.complete(generation):
                self._write(generation)

    def _write(self, generation: int) -> None:
        rows = self.rows.pop(generation)
        file = self.folder / f"generation-{generation:04d}.parquet"
        if _rows_in(file) == len(rows):
            return  # told again after a restart
        assert self.population is not None, "a row was told with it"
        lineages = effective_lineages(self.population, generation)
        rows = [row | {"lineages": lineages} for row in rows]
        table = pa.table({name: [row.get(name) for row in rows] for name in {key: None for row in rows for key in row}})
        # Without a type, a first generation, which has no donors, would keep the folder from being read as one table
        donors = table["donor"].cast(pa.int64())
        whole = pa.BufferOutputStream()
        pq.write_table(table.set_column(table.column_names.index("donor"), "donor", donors), whole)
        write_atomically(file, whole.getvalue().to_pybytes())


def _rows_in(file: Place) -> int | None:
    try:
        return pq.read_metadata(pa.BufferReader(file.read_bytes())).num_rows
    except (FileNotFoundError, pa.ArrowInvalid):
        return None  # not there, or damaged: derived files are made anew


def history_row(job: Job, record: Mapping[str, Any], population: Population) -> dict[str, Any]:
    """Return one row as plain data."""
    row = {
        "member": job.member,
        "generation": job.generation,
        "epoch": job.end_epoch,
        "donor": job.donor,
        "score": record["score"],
        "time": record["time"],
    } | {name: value for name, value in record["metrics"].items() if name != "score"}
    for role, policy in job.policies.items():
        row[f"{role}/policy"] = policy_to_list(policy, population.rule.space, firing_only=False)
        row |= {f"{role}/{name}": value for name, value in {**policy.scalars, **policy.choices}.items()}
    if len(job.policies) == len(Role):
        row["policy_distance"] = policy_distance(
            job.policies[Role.TEACHER], job.policies[Role.STUDENT], population.rule.space
        )
    return row

"""Which generations of a search have ended, each told once."""

from rolekd_ray.policy.population import Population


class EndedGenerations:
    """Remembers what it told; generations that ended in the past are told, too."""

    def __init__(self) -> None:
        self._next = 0

    def new(self, population: Population) -> list[int]:
        """Return the generations, in order, that by now ended for all live members and were not returned before."""
        first = self._next
        while self._next < population.generations and population.live and population.complete(self._next):
            self._next += 1
        return [g for g in range(first, self._next) if population.scores.get(g)]

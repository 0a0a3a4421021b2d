"""A dispatcher that cannot read the log ends the search: without a decision its members would wait for ever."""

import asyncio

from made_searches import made_rule, play

from rolekd_ray.errors import StorageError
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import LogReader


def test_members_that_wait_hear_of_a_log_that_cannot_be_read(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, made_rule(population_size=4))

    def unreachable(self):
        raise StorageError("no answer")

    async def search():
        dispatcher = Dispatcher(tmp_path, [], 0)
        play(ledger, 1)
        await dispatcher.refresh()
        waiting = asyncio.ensure_future(dispatcher.interval(0, 0))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "the generation is not complete"
        monkeypatch.setattr(LogReader, "read", unreachable)
        await dispatcher.refresh()
        assert await asyncio.wait_for(waiting, 5) is None
        return await dispatcher.failure()

    async def search_on():
        dispatcher = Dispatcher(tmp_path, [], 0)  # it was killed, and is made anew while the storage is gone
        await dispatcher.refresh()
        assert await asyncio.wait_for(dispatcher.interval(0, 0), 5) is None
        return await dispatcher.failure()

    failure = asyncio.run(search())
    assert str(asyncio.run(search_on())) == "no answer"
    ledger.close()
    assert isinstance(failure, StorageError) and str(failure) == "no answer"

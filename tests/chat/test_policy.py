"""Who gets which work item, and why: the pure rule and the router's index, without a server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from deskwire_chat.domain.agents import Agent, OfferEnd, Status
from deskwire_chat.domain.work import WorkItem, WorkKind
from deskwire_chat.routing.offers import Offer
from deskwire_chat.routing.policy import Reason, choose, obstacle
from deskwire_chat.routing.router import Router

SKILLS = st.frozensets(st.sampled_from(["de", "zh", "billing"]))


@dataclass(frozen=True)
class Someone:
    agent_id: str
    is_bot: bool
    room: int
    idle_since: int
    skills: frozenset[str]


SOMEONE = st.builds(
    Someone,
    agent_id=st.text("abcdef", min_size=1, max_size=3),
    is_bot=st.booleans(),
    room=st.integers(-1, 3),
    idle_since=st.integers(0, 5),
    skills=SKILLS,
)
EVERYBODY = st.lists(SOMEONE, max_size=8, unique_by=lambda each: each.agent_id)
ITEM = st.builds(
    WorkItem,
    kind=st.just(WorkKind.CONVERSATION),
    id=st.just("c"),
    tenant=st.just("t"),
    queue=st.just(""),
    skills=SKILLS,
    since=st.integers(0, 9),
    human_wanted=st.booleans(),
    known_to=st.frozensets(st.text("abcdef", min_size=1, max_size=3)),
)


@given(item=ITEM, everybody=EVERYBODY, refused_by=st.sets(st.text("abcdef", max_size=3)))
def test_whoever_is_chosen_may_have_it_and_nobody_comes_before_them(
    item: WorkItem, everybody: list[Someone], refused_by: set[str]
) -> None:
    able = {
        each.agent_id: each
        for each in everybody
        if each.room > 0
        and item.skills <= each.skills
        and each.agent_id not in refused_by
        and not (item.human_wanted and each.is_bot)
    }
    choice = choose(item, everybody, refused_by=refused_by)
    if not able:
        assert choice.agent_id is None
        assert choice.reason is Reason.NOBODY
        assert choice.obstacles.keys() == {each.agent_id for each in everybody}
        return
    assert choice.agent_id is not None
    chosen = able[choice.agent_id]
    knowing = [each for each in able.values() if each.agent_id in item.known_to]
    first = knowing or list(able.values())
    rivals = [each for each in first if each.is_bot] or first
    assert chosen in rivals
    assert chosen.idle_since == min(each.idle_since for each in rivals)
    reason = Reason.BOT_FIRST if chosen.is_bot else Reason.IDLE_LONGEST
    assert choice.reason is (Reason.HAS_CUSTOMER if knowing else reason)
    assert not choice.obstacles.keys() & able.keys()


@given(item=ITEM, everybody=EVERYBODY)
def test_an_obstacle_names_what_really_is_in_the_way(
    item: WorkItem, everybody: list[Someone]
) -> None:
    for each in everybody:
        reason = obstacle(item, each)
        if reason is Reason.NO_ROOM:
            assert obstacle(item, dataclasses.replace(each, room=1)) is not Reason.NO_ROOM
        elif reason is Reason.LACKS_SKILL:
            assert obstacle(item, dataclasses.replace(each, skills=item.skills)) is None
        elif reason is Reason.HUMAN_WANTED:
            assert each.is_bot
            assert item.human_wanted
        else:
            assert reason is None


def test_a_refusal_sends_it_to_the_next_and_says_so() -> None:
    item = WorkItem(WorkKind.CONVERSATION, "c", "t", "", frozenset(), 1)
    ann = Someone("ann", False, 1, 1, frozenset())
    bob = Someone("bob", False, 1, 2, frozenset())
    choice = choose(item, [ann, bob], refused_by={"ann"})
    assert (choice.agent_id, choice.obstacles) == ("bob", {"ann": Reason.REFUSED_IT})


class _NoOffers:
    """A desk without offers hears of none."""

    def offered(self, offer: Offer) -> None:
        raise AssertionError(offer)

    def offer_ended(self, offer: Offer, end: OfferEnd) -> None:
        raise AssertionError(offer, end)


class _Desk:
    """A router whose proposals are all taken, and what must hold of it after every step."""

    def __init__(self, agents: list[Agent]) -> None:
        self.now = 100
        self.router = Router(_NoOffers(), now=self._tick)
        self.agents = {each.agent_id: each for each in agents}
        self.online: dict[str, int] = dict.fromkeys(self.agents, 0)
        self.idle_since = {each.agent_id: each.idle_since for each in agents}
        self.waiting: dict[str, WorkItem] = {}
        self.has: dict[str, str] = {}
        self.taken = 0
        self.proposed: list[tuple[WorkItem, str]] = []
        self.router.start(agents, lambda item, agent: self.proposed.append((item, agent.agent_id)))

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def free(self) -> set[str]:
        return {
            name
            for name, agent in self.agents.items()
            if self.online[name] and list(self.has.values()).count(name) < agent.capacity
        }

    def open(self, number: int, human_wanted: bool) -> None:
        item_id = f"{number:03}"
        item = WorkItem(
            WorkKind.CONVERSATION, item_id, "t", "", frozenset(), number % 7, human_wanted
        )
        self.waiting[item_id] = item
        self.router.enqueue(item)
        self.check()

    def close(self, pick: int) -> None:
        everything = sorted([*self.waiting, *self.has])
        if everything:
            item_id = everything[pick % len(everything)]
            self.waiting.pop(item_id, None)
            self.router.work_ended("t", item_id, self.has.pop(item_id, ""))
            self.check()

    def turn(self, pick: int) -> None:
        """Somebody comes, or goes."""
        name = sorted(self.agents)[pick % len(self.agents)]
        if self.online[name]:
            self.online[name] = 0
            self.router.agent_disconnected("t", name, self.agents[name].bot)
        else:
            self.online[name] = 1
            self.router.agent_connected("t", name, self.agents[name].bot)
        self.check()

    def check(self) -> None:
        while self.proposed:
            item, name = self.proposed.pop(0)
            self._check_proposal(item, name)
            del self.waiting[item.id]
            self.has[item.id] = name
            self.taken += 1
            self.idle_since[name] = 1_000 + self.taken
            self.router.proposal_taken("t", item.id, name)
        assert self.router.waiting_count() == len(self.waiting)
        # Nobody waits while somebody able is free.
        for name in self.free():
            assert not [
                each
                for each in self.waiting.values()
                if not (self.agents[name].bot and each.human_wanted)
            ]

    def _check_proposal(self, item: WorkItem, name: str) -> None:
        free, bots = self.free(), {each for each in self.agents.values() if each.bot}
        # Never over capacity, never to who isn't there.
        assert name in free
        able_bots = {each.agent_id for each in bots} & free if not item.human_wanted else set()
        # Bots first, unless a person is wanted.
        rivals = able_bots or free - {each.agent_id for each in bots}
        assert name in rivals
        # Longest idle first.
        assert self.idle_since[name] == min(self.idle_since[each] for each in rivals)
        # Longest waiting first, of those whom the same agent might have had.
        before = [
            each
            for each in self.waiting.values()
            if (each.since, each.id) < (item.since, item.id)
            and not (self.agents[name].bot and each.human_wanted)
        ]
        assert not before


AGENTS = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=4).map(
    lambda found: [
        Agent("t", f"{'bot' if bot else 'ann'}{place}", "", Status.AVAILABLE, room, 0, place, 1)
        if not bot
        else Agent("t", f"bot{place}", "", Status.AVAILABLE, room, 0, place, 1, bot=True)
        for place, (bot, room) in enumerate(found)
    ]
)
STEP = st.one_of(
    st.tuples(st.just("open"), st.booleans()),
    st.tuples(st.just("close"), st.integers(0, 50)),
    st.tuples(st.just("turn"), st.integers(0, 3)),
)


@settings(max_examples=300, deadline=None)
@given(agents=AGENTS, steps=st.lists(STEP, max_size=60))
def test_the_router_keeps_its_promises_whatever_happens(
    agents: list[Agent], steps: list[tuple[str, int]]
) -> None:
    desk = _Desk(agents)
    for number, (what, how) in enumerate(steps):
        if what == "open":
            desk.open(number, bool(how))
        elif what == "close":
            desk.close(how)
        else:
            desk.turn(how)


def test_absence_counts_from_the_last_connection() -> None:
    now = 100
    router = Router(_NoOffers(), now=lambda: now)
    ann = Agent("t", "ann", "", Status.AVAILABLE, 5, 1, 0, 1)
    router.start([ann], lambda _item, _agent: None)
    # Nobody has come yet: from when this process knows them.
    assert router.agents.absent() == {("t", "ann"): 100}
    router.agent_connected("t", "ann", False)
    router.agent_connected("t", "ann", False)
    now = 200
    router.agent_disconnected("t", "ann", False)
    assert router.agents.absent() == {}
    now = 300
    router.agent_disconnected("t", "ann", False)
    assert router.agents.absent() == {("t", "ann"): 300}
    router.work_ended("t", "c", "ann")
    assert router.agents.absent() == {}

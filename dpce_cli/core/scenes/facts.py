"""Street scenes: their attributes, random sampling, and which facts are true of a scene."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Thing = frozenset[tuple[str, str]]
"""What is known or stated about one thing: a set of (attribute, value)."""
Facts = frozenset[Thing]

COUNTERPART = {"woman": "man", "man": "woman", "girl": "boy", "boy": "girl"}
HAIR = ("blonde", "brown", "black", "red", "grey")
CLOTHES = ("blue", "red", "green", "yellow", "purple", "white", "orange", "pink")
VEHICLE_COLOURS = {
    "car": ("red", "blue", "green", "white", "black"),
    "bus": ("red", "blue", "green"),
    "taxi": ("yellow",),
    "": ("",),
}
HOUSE_COLOURS = ("red", "blue", "yellow", "white", "pink")
SKIES = ("sunny", "sunset", "night", "rain", "snow")
ITEM_COLOURS = ("red", "blue", "green", "yellow", "purple", "pink")
ITEMS_OF_ACTION = {
    "hail": ("",),
    "dog": ("brown", "black", "white"),
    "umbrella": ITEM_COLOURS,
    "bag": ITEM_COLOURS,
    "bicycle": ("",),
    "stroller": ("",),
    "bus stop": ("",),
    "balloon": ITEM_COLOURS,
}
_ADULT_ACTIONS = ("hail", "hail", "hail", "dog", "umbrella", "bag", "bicycle", "stroller", "bus stop")
_CHILD_ACTIONS = ("dog", "umbrella", "bag", "bicycle", "balloon", "balloon")


@dataclass(frozen=True, slots=True)
class Person:
    kind: str
    """woman, man, girl or boy"""
    hair: str
    clothes: str
    action: str
    """A key of `ITEMS_OF_ACTION`."""
    item: str
    """The colour of the thing that the action needs; empty if the thing has always the same colour."""
    side: str

    @property
    def is_child(self) -> bool:
        return self.kind in ("girl", "boy")


@dataclass(frozen=True, slots=True)
class Scene:
    people: tuple[Person, ...]
    """One, or two from left to right."""
    vehicle: str
    """car, taxi, bus, or empty"""
    vehicle_colour: str
    houses: int
    house_colour: str
    house_side: str
    trees: int
    """They stand on the opposite side of the houses."""
    sky: str

    @property
    def vehicle_side(self) -> str:
        """Opposite a single person; empty, the middle, between two people."""
        return opposite(self.people[0].side) if len(self.people) == 1 else ""

    @property
    def tree_side(self) -> str:
        return opposite(self.house_side)


QUERY = "a blonde woman in blue hailing a taxi"
QUERY_PERSON: Mapping[str, Any] = {
    "kind": "woman",
    "hair": "blonde",
    "clothes": "blue",
    "action": "hail",
    "item": "",
}
QUERY_FACTS: Facts = frozenset(
    {frozenset({("what", "person"), ("kind", "woman"), ("hair", "blonde"), ("clothes", "blue"), ("does", "hail")})}
)


def opposite(side: str) -> str:
    return "right" if side == "left" else "left"


def sample_scene(rng: random.Random, only_person: Mapping[str, Any] | None = None) -> Scene:
    """Sample a scene; with `only_person`, it has one person with these attributes."""
    first = _sample_person(rng, rng.choice(("left", "right")), except_action="")
    if only_person is not None:
        first = replace(first, **only_person)
    people = [first]
    if only_person is None and rng.random() < 0.4:
        people.append(_sample_person(rng, opposite(first.side), except_action=first.action))
    if any(person.action == "hail" for person in people):
        vehicle = "taxi"
    else:
        vehicle = rng.choice(("", "car", "car", "car", "bus", "taxi"))
    return Scene(
        people=tuple(sorted(people, key=lambda person: person.side)),
        vehicle=vehicle,
        vehicle_colour=rng.choice(VEHICLE_COLOURS[vehicle]),
        houses=rng.choice((1, 2)),
        house_colour=rng.choice(HOUSE_COLOURS),
        house_side=rng.choice(("left", "right")),
        trees=rng.choice((0, 1, 2, 3)),
        sky=rng.choice(SKIES),
    )


def change_one_fact(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs from `scene` in one fact, more often in a side or the number of houses than in others."""
    index = rng.randrange(len(scene.people))
    person = scene.people[index]

    def with_person(**values: str) -> Scene:
        people = (replace(one, **values) if one is person else one for one in scene.people)
        return replace(scene, people=tuple(people))

    def other(values: Sequence[Any], value: Any) -> Any:
        return rng.choice([one for one in values if one != value])

    changes: list[Callable[[], Scene]] = [
        lambda: with_person(kind=COUNTERPART[person.kind]),
        lambda: with_person(hair=other(HAIR[:-1] if person.is_child else HAIR, person.hair)),
        lambda: with_person(clothes=other(CLOTHES, person.clothes)),
        *[lambda: with_sides_swapped(scene)] * 3,
        *[lambda: replace(scene, houses=3 - scene.houses)] * 2,
        lambda: replace(scene, house_colour=other(HOUSE_COLOURS, scene.house_colour)),
        *[lambda: replace(scene, house_side=opposite(scene.house_side))] * 2,
        lambda: replace(scene, trees=other((0, 1, 2, 3), scene.trees)),
        lambda: replace(scene, sky=other(SKIES, scene.sky)),
    ]
    if scene.vehicle in ("car", "bus"):
        colours = VEHICLE_COLOURS[scene.vehicle]
        changes.append(lambda: replace(scene, vehicle_colour=other(colours, scene.vehicle_colour)))
    if person.item:
        changes.append(lambda: with_person(item=other(ITEMS_OF_ACTION[person.action], person.item)))
    return rng.choice(changes)()


def with_sides_swapped(scene: Scene) -> Scene:
    """Every person on the other side of the picture."""
    people = (replace(person, side=opposite(person.side)) for person in reversed(scene.people))
    return replace(scene, people=tuple(people))


def _sample_person(rng: random.Random, side: str, except_action: str) -> Person:
    kind = rng.choice(("woman", "woman", "man", "man", "girl", "boy"))
    is_child = kind in ("girl", "boy")
    actions = _CHILD_ACTIONS if is_child else _ADULT_ACTIONS
    action = rng.choice([action for action in actions if action != except_action])
    return Person(
        kind=kind,
        hair=rng.choice(HAIR[:-1] if is_child else HAIR),
        clothes=rng.choice(CLOTHES),
        action=action,
        item=rng.choice(ITEMS_OF_ACTION[action]),
        side=side,
    )


def facts_of(scene: Scene) -> Facts:
    """Everything that a picture of `scene` shows and that a caption may state."""
    things: list[dict[str, str]] = [
        {
            "what": "person",
            "kind": person.kind,
            "age": "child" if person.is_child else "adult",
            "hair": person.hair,
            "clothes": person.clothes,
            "does": person.action,
            "item": person.item,
            "side": person.side,
        }
        for person in scene.people
    ]
    things += [
        {"what": "people", "number": str(len(scene.people))},
        {
            "what": "house",
            "number": str(scene.houses),
            "colour": scene.house_colour,
            "side": scene.house_side,
        },
        {"what": "sky", "kind": scene.sky},
    ]
    if scene.vehicle:
        things.append({"what": scene.vehicle, "colour": scene.vehicle_colour, "side": scene.vehicle_side})
    if scene.trees:
        things.append({"what": "tree", "number": str(scene.trees), "side": scene.tree_side})
    return frozenset(frozenset(thing.items()) for thing in things)


def is_true(stated: Facts, known: Facts) -> bool:
    """Whether everything in `stated` is part of a thing in `known`."""
    return all(any(thing <= other for other in known) for thing in stated)

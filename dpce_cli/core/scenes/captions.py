"""Write five different captions of a street scene, with the facts that each caption states."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import NamedTuple

from dpce_cli.core.scenes.facts import Facts, Person, Scene

_KINDS = {
    "woman": ("woman", "woman", "lady"),
    "man": ("man", "man", "guy"),
    "girl": ("girl", "girl", "little girl", "child"),
    "boy": ("boy", "boy", "little boy", "child"),
}
_HAIR = {
    "blonde": ("blonde", "blonde", "fair-haired"),
    "brown": ("brown-haired", "brown-haired", "chestnut-haired"),
    "black": ("black-haired", "black-haired", "dark-haired"),
    "red": ("red-haired", "red-haired", "ginger"),
    "grey": ("grey-haired", "grey-haired", "silver-haired"),
}
_GARMENTS = {"woman": "dress", "girl": "dress", "man": "jacket", "boy": "sweater"}
_ACTIONS = {
    "hail": (
        ("hailing", "hails", "a taxi"),
        ("hailing", "hails", "a cab"),
        ("flagging down", "flags down", "a taxi"),
        ("flagging down", "flags down", "a cab"),
        ("waving for", "waves for", "a taxi"),
    ),
    "dog": (("walking", "walks", "a {} dog"), ("leading", "leads", "a {} dog")),
    "umbrella": (("holding", "holds", "a {} umbrella"), ("standing", "stands", "under a {} umbrella")),
    "bag": (("carrying", "carries", "a {} bag"), ("holding", "holds", "a {} shopping bag")),
    "bicycle": (
        ("riding", "rides", "a bicycle"),
        ("riding", "rides", "a bike"),
        ("cycling", "cycles", "along"),
    ),
    "stroller": (("pushing", "pushes", "a stroller"), ("pushing", "pushes", "a baby carriage")),
    "bus stop": (
        ("waiting", "waits", "for a bus"),
        ("waiting", "waits", "at a bus stop"),
        ("standing", "stands", "at a bus stop"),
    ),
    "balloon": (("holding", "holds", "a {} balloon"), ("playing", "plays", "with a {} balloon")),
}
_SKIES = {
    "sunny": ("on a sunny day", "under a blue sky", "in the sunshine"),
    "sunset": ("at sunset", "under an orange sky", "as the sun goes down"),
    "night": ("at night", "under the moon", "on a dark night"),
    "rain": ("in the rain", "on a rainy day", "as rain falls"),
    "snow": ("in the snow", "on a snowy day", "as snow falls"),
}
FEWEST_WORDS, MOST_WORDS = 8, 25
_NUMBERS = {1: "a", 2: "two", 3: "three"}


class Caption(NamedTuple):
    text: str
    facts: Facts


def write_captions(scene: Scene, rng: random.Random) -> tuple[Caption, ...]:
    """Five different captions: two short ones about one person, and three that tell more.

    Each has `FEWEST_WORDS` to `MOST_WORDS` words, or at most 30 if hyphens separate words, too.
    """
    captions: list[Caption] = []
    for compose in (_plain, _headline, _sky_first, _on_each_side, _street):
        while True:
            writer = _Writer(scene, rng)
            text = re.sub(r"\ba (?=orange)", "an ", compose(writer))
            if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS and all(text != caption.text for caption in captions):
                captions.append(Caption(text, writer.facts()))
                break
    return tuple(captions)


class _Writer:
    """Turns parts of one scene into phrases, and collects the facts that they state."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene = scene
        self.rng = rng
        self.people = rng.sample(scene.people, len(scene.people))
        self._stated: defaultdict[object, dict[str, str]] = defaultdict(dict)

    def facts(self) -> Facts:
        return frozenset(frozenset(thing.items()) for thing in self._stated.values())

    def person(self, person: Person, *, brief: bool = False) -> str:
        """Describe a person: `a blonde woman in blue`; `brief` uses fewer words."""
        clothes = ["in {}", "in {}", "wearing {}"]
        nouns = _KINDS[person.kind]
        if brief:
            nouns = tuple(noun for noun in nouns if " " not in noun)
        else:
            garment = _GARMENTS[person.kind]
            clothes += ["dressed in {}", f"in a {{}} {garment}", f"wearing a {{}} {garment}"]
        noun = self.rng.choice(nouns)
        self._stated[person].update(what="person", hair=person.hair, clothes=person.clothes)
        self._stated[person].update({"age": "child"} if noun == "child" else {"kind": person.kind})
        dressed = self.rng.choice(clothes).format(person.clothes)
        if not brief and self.rng.random() < 0.2:
            return f"a {noun} with {person.hair} hair {dressed}"
        return f"a {self.rng.choice(_HAIR[person.hair])} {noun} {dressed}"

    def doing(self, person: Person) -> str:
        """The person's action after a noun: `hailing a taxi`."""
        participle, _, thing = self._action(person)
        if participle == "standing" and self.rng.random() < 0.5:
            return thing
        return f"{participle} {thing}"

    def does(self, person: Person) -> str:
        """The person's action as a finite verb: `hails a taxi`."""
        _, verb, thing = self._action(person)
        return f"{verb} {thing}"

    def _action(self, person: Person) -> tuple[str, str, str]:
        participle, verb, thing = self.rng.choice(_ACTIONS[person.action])
        self._stated[person]["does"] = person.action
        if person.item:
            self._stated[person]["item"] = person.item
        return participle, verb, thing.format(person.item)

    def side(self, person: Person) -> str:
        self._stated[person]["side"] = person.side
        return f"on the {person.side}"

    def placed(self, person: Person, *, brief: bool = False) -> str:
        """Describe a person, and half of the time the side: `a blonde woman in blue on the left`."""
        described = self.person(person, brief=brief)
        return f"{described} {self.side(person)}" if self.rng.random() < 0.5 else described

    def two_people(self) -> str:
        self._stated["people"].update(what="people", number="2")
        return "two people"

    def sky(self) -> str:
        self._stated["sky"].update(what="sky", kind=self.scene.sky)
        return self.rng.choice(_SKIES[self.scene.sky])

    def houses(self) -> str:
        scene = self.scene
        self._stated["house"].update(what="house", number=str(scene.houses), colour=scene.house_colour)
        return f"{_NUMBERS[scene.houses]} {scene.house_colour} house{'s' if scene.houses > 1 else ''}"

    def house_side(self) -> str:
        self._stated["house"]["side"] = self.scene.house_side
        return f"on the {self.scene.house_side}"

    def trees(self) -> str:
        self._stated["tree"].update(what="tree", number=str(self.scene.trees))
        return f"{_NUMBERS[self.scene.trees]} tree{'s' if self.scene.trees > 1 else ''}"

    def tree_side(self) -> str:
        self._stated["tree"]["side"] = self.scene.tree_side
        return f"on the {self.scene.tree_side}"

    def vehicle(self) -> str:
        scene = self.scene
        self._stated["vehicle"].update(what=scene.vehicle)
        if scene.vehicle == "taxi":
            return self.rng.choice(("a taxi", "a yellow cab"))
        self._stated["vehicle"].update(colour=scene.vehicle_colour)
        return f"a {scene.vehicle_colour} {scene.vehicle}"

    def around(self, count: int) -> str:
        """Describe up to `count` different things that stand or drive nearby."""
        about = [self._houses_around]
        if self.scene.trees:
            about.append(self._trees_around)
        if self.scene.vehicle and all(person.action != "hail" for person in self.scene.people):
            about.append(self._vehicle_around)
        return " ".join(detail() for detail in self.rng.sample(about, min(count, len(about))))

    def _houses_around(self) -> str:
        if self.rng.random() < 0.5:
            return f"{self.rng.choice(('near', 'by'))} {self.houses()}"
        return f"with {self.houses()} {self.house_side()}"

    def _trees_around(self) -> str:
        if self.rng.random() < 0.5:
            return f"{self.rng.choice(('near', 'beside'))} {self.trees()}"
        return f"with {self.trees()} {self.tree_side()}"

    def _vehicle_around(self) -> str:
        vehicle = self.vehicle()
        return self.rng.choice((f"as {vehicle} drives by", f"next to {vehicle}", f"with {vehicle} on the road"))


def _plain(write: _Writer) -> str:
    """a blonde woman in blue hailing a taxi; most captions add a detail, such as: on the left"""
    who = write.people[0]
    text = f"{write.person(who, brief=True)} {write.doing(who)}"
    detail = write.rng.choice(("", "side", "sky", "around"))
    if detail == "side":
        return f"{text} {write.side(who)}"
    if detail == "sky":
        return f"{text} {write.sky()}"
    return f"{text} {write.around(1)}" if detail else text


def _headline(write: _Writer) -> str:
    """fair-haired lady wearing blue flags down a cab near two trees at night"""
    who = write.people[-1]
    text = f"{write.placed(who).removeprefix('a ')} {write.does(who)}"
    if len(write.people) == 1:
        return f"{text} {write.around(1)} {write.sky()}"
    return f"{text} next to {write.person(write.people[0], brief=True)}"


def _sky_first(write: _Writer) -> str:
    """at night, a blonde woman in blue is hailing a taxi while a man in red walks a brown dog"""
    first, *others = write.people
    text = f"{write.sky()}, {write.placed(first, brief=bool(others))} is {write.doing(first)}"
    if not others:
        return f"{text} {write.around(2)}"
    return f"{text} while {write.person(others[0], brief=True)} {write.does(others[0])}"


def _on_each_side(write: _Writer) -> str:
    """on the left a man in red walks a brown dog and on the right a lady in blue hails a cab"""
    crowded = len(write.people) > 1
    deeds = [f"{write.side(who)} {write.person(who, brief=crowded)} {write.does(who)}" for who in write.people]
    return " and ".join(deeds) if crowded else f"{deeds[0]} {write.around(2)}"


def _street(write: _Writer) -> str:
    """two red houses and a tree on a street where a blonde woman in blue is hailing a taxi at night"""
    first, *others = write.people
    place = write.houses()
    names_side = write.rng.random() < 0.5
    if names_side:
        place += f" {write.house_side()}"
    if others:
        deeds = " and ".join(f"{write.person(who, brief=True)} {write.doing(who)}" for who in write.people)
        return f"{write.two_people()} near {place}, {deeds}"
    if write.scene.trees and not names_side:
        place += f" and {write.trees()}"
    return f"{place} on a street where {write.person(first)} is {write.doing(first)} {write.sky()}"

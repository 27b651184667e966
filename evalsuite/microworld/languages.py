"""Multilingual: the same facts and the same sums in English, Spanish, German and French.

    en  "The animal of Torvel is goat ."        de  "Das Tier von Torvel ist Ziege ."
    dev "Sabes tú ahora en qué pueblo Torvel tiene su casa y cama ?"       four choices
    dev "Vamo tiene 7 . Vamo gana otros 5 . Cuánto tiene Vamo ahora ?"     four choices

Facts are those of `knowledge` about the best known people; sums have one step and a bare answer.
Evaluation wordings stand in training only for facts outside the split, and sums have names of
their own (a bare sum is a table: its numbers must have been seen). The grammar is simplified: no
gender, no articles before values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from evalsuite.microworld.world import (
    FACTS,
    HEAD,
    PEOPLE,
    VALUES,
    Exercise,
    Item,
    Split,
    asker,
    choices_for,
    digest,
    name,
    person,
    pick,
    spread,
)

LANGUAGES = ("en", "es", "de", "fr")
RELATIONS = ("town", "job", "pet", "colour")
KNOWN = 26
"""How many of the best known people are spoken of; dev asks of the first 16 only."""
DEV_KNOWN = 16

_ENGLISH = VALUES["job"] + VALUES["pet"] + VALUES["colour"]
_SPANISH = (
    "panadero", "herrero", "médico", "granjero", "pintor", "marinero", "maestro", "tejedor",
    "gato", "perro", "caballo", "cabra", "pato", "conejo", "loro", "serpiente", "rojo", "azul",
    "verde", "amarillo", "negro", "blanco", "marrón", "gris",
)  # fmt: skip
_GERMAN = (
    "Bäcker", "Schmied", "Arzt", "Bauer", "Maler", "Seemann", "Lehrer", "Weber", "Katze",
    "Hund", "Pferd", "Ziege", "Ente", "Hase", "Papagei", "Schlange", "rot", "blau", "grün",
    "gelb", "schwarz", "weiß", "braun", "grau",
)  # fmt: skip
_FRENCH = (
    "boulanger", "forgeron", "médecin", "fermier", "peintre", "marin", "maître", "tisserand",
    "chat", "chien", "cheval", "chèvre", "canard", "lapin", "perroquet", "serpent", "rouge",
    "bleu", "vert", "jaune", "noir", "blanc", "brun", "gris",
)  # fmt: skip
WORDS: dict[str, dict[str, str]] = {
    "es": dict(zip(_ENGLISH, _SPANISH, strict=True)),
    "de": dict(zip(_ENGLISH, _GERMAN, strict=True)),
    "fr": dict(zip(_ENGLISH, _FRENCH, strict=True)),
}
STATEMENTS: dict[str, dict[str, str]] = {
    "en": {
        "town": "The town of {s} is {v} .",
        "job": "The work of {s} is {v} .",
        "pet": "The animal of {s} is {v} .",
        "colour": "The best colour of {s} is {v} .",
    },
    "es": {
        "town": "El pueblo de {s} es {v} .",
        "job": "El trabajo de {s} es {v} .",
        "pet": "El animal de {s} es {v} .",
        "colour": "El color de {s} es {v} .",
    },
    "de": {
        "town": "Der Ort von {s} ist {v} .",
        "job": "Der Beruf von {s} ist {v} .",
        "pet": "Das Tier von {s} ist {v} .",
        "colour": "Die Farbe von {s} ist {v} .",
    },
    "fr": {
        "town": "La ville de {s} est {v} .",
        "job": "Le métier de {s} est {v} .",
        "pet": "L'animal de {s} est {v} .",
        "colour": "La couleur de {s} est {v} .",
    },
}
EVAL_QUESTIONS: dict[Split, dict[str, dict[str, str]]] = {
    "dev": {
        "en": {
            "town": "Please tell us all what town {s} has as a home .",
            "job": "Please tell us all what work {s} does on most days .",
            "pet": "Please tell us all what animal {s} has at the door .",
            "colour": "Please tell us all what colour {s} thinks best of all .",
        },
        "es": {
            "town": "Sabes tú ahora en qué pueblo {s} tiene su casa y cama ?",
            "job": "Sabes tú ahora en qué trabajo {s} gana su pan cada día ?",
            "pet": "Sabes tú ahora qué animal tiene {s} en su casa de pueblo ?",
            "colour": "Sabes tú ahora qué color prefiere {s} para su ropa de fiesta ?",
        },
        "de": {
            "town": "Weißt du jetzt in welchem Ort {s} sein Haus und Bett hat ?",
            "job": "Weißt du jetzt mit welchem Beruf {s} sein Brot am Tag verdient ?",
            "pet": "Weißt du jetzt welches Tier bei {s} im Haus und Hof lebt ?",
            "colour": "Weißt du jetzt welche Farbe wohl {s} an den Kleidern sehr mag ?",
        },
        "fr": {
            "town": "Sais tu donc dans quelle ville {s} a sa maison et lit ?",
            "job": "Sais tu donc par quel métier {s} gagne son pain chaque jour ?",
            "pet": "Sais tu donc quel animal a {s} dans sa petite maison ?",
            "colour": "Sais tu donc quelle couleur aime {s} pour son bel habit ?",
        },
    },
    "unseen": {
        "en": {
            "town": "One word on the town of {s} is asked for here .",
            "job": "One word on the work of {s} is asked for here .",
            "pet": "One word on the animal of {s} is asked for here .",
            "colour": "One word on the colour of {s} is asked for here .",
        },
        "es": {
            "town": "Nos falta aquí el pueblo de {s} , dilo ya mismo .",
            "job": "Nos falta aquí el trabajo de {s} , dilo ya mismo .",
            "pet": "Nos falta aquí el animal de {s} , dilo ya mismo .",
            "colour": "Nos falta aquí el color de {s} , dilo ya mismo .",
        },
        "de": {
            "town": "Uns fehlt hier der Ort von {s} , sag es mir jetzt .",
            "job": "Uns fehlt hier der Beruf von {s} , sag es mir jetzt .",
            "pet": "Uns fehlt hier das Tier von {s} , sag es mir jetzt .",
            "colour": "Uns fehlt hier die Farbe von {s} , sag es mir jetzt .",
        },
        "fr": {
            "town": "Il manque ici la ville de {s} , dis le moi vite .",
            "job": "Il manque ici le métier de {s} , dis le moi vite .",
            "pet": "Il manque ici l'animal de {s} , dis le moi vite .",
            "colour": "Il manque ici la couleur de {s} , dis le moi vite .",
        },
    },
}
SUMS: dict[Split, dict[str, tuple[str, str]]] = {
    "dev": {
        "en": (
            "{s} owns {a} . {s} takes {b} more . What owns {s} now ?",
            "{s} owns {a} . {s} pays {b} away . What owns {s} now ?",
        ),
        "es": (
            "{s} tiene {a} . {s} gana otros {b} . Cuánto tiene {s} ahora ?",
            "{s} tiene {a} . {s} pierde otros {b} . Cuánto tiene {s} ahora ?",
        ),
        "de": (
            "{s} hat {a} . {s} bekommt noch {b} . Wie viel hat {s} jetzt ?",
            "{s} hat {a} . {s} verliert noch {b} . Wie viel hat {s} jetzt ?",
        ),
        "fr": (
            "{s} a {a} . {s} gagne encore {b} . Combien a {s} maintenant ?",
            "{s} a {a} . {s} perd encore {b} . Combien a {s} maintenant ?",
        ),
    },
    "unseen": {
        "en": (
            "From {a} for {s} up by {b} , where does {s} come out ?",
            "From {a} for {s} down by {b} , where does {s} come out ?",
        ),
        "es": (
            "De {a} para {s} con {b} de más , a cuánto llega {s} al fin ?",
            "De {a} para {s} con {b} de menos , a cuánto llega {s} al fin ?",
        ),
        "de": (
            "Von {a} für {s} um {b} hinauf , wo kommt {s} am Ende an ?",
            "Von {a} für {s} um {b} hinab , wo kommt {s} am Ende an ?",
        ),
        "fr": (
            "De {a} pour {s} avec {b} de plus , où arrive {s} à la fin ?",
            "De {a} pour {s} avec {b} de moins , où arrive {s} à la fin ?",
        ),
    },
}


def say(value: str, language: str) -> str:
    """A value in a language; towns keep their names."""
    return WORDS[language].get(value, value) if language in WORDS else value


def state(subject: str, relation: str, language: str) -> str:
    """One fact told in one language."""
    told = say(FACTS[subject, relation], language)
    return STATEMENTS[language][relation].format(s=subject, v=told)


_OWNER: dict[tuple[str, str, str], Split | None] = {
    (s, r, lang): None
    if digest("asked", s, r, lang) % 2
    else ("dev" if rank < DEV_KNOWN else "unseen")
    for rank, s in enumerate(PEOPLE[:KNOWN])
    for r in RELATIONS
    for lang in LANGUAGES
}


def sum_numbers(rng: random.Random) -> tuple[int, int]:
    """(start, signed step) of a sum."""
    start, step = 1 + int(rng.random() * 9), 1 + int(rng.random() * 6)
    return start, -step if step <= start and rng.random() < 0.5 else step


def sum_question(who: str, numbers: tuple[int, int], language: str, split: Split) -> str:
    """One sum in one language."""
    start, step = numbers
    return SUMS[split][language][step < 0].format(s=who, a=start, b=abs(step))


@dataclass(frozen=True, slots=True)
class _Said:
    """A question or a statement, its answer, and what both are about."""

    text: str
    answer: str
    is_question: bool
    language: str
    subject: str
    relation: str


def _training(rng: random.Random) -> _Said:
    language = pick(rng, LANGUAGES)
    rare = rng.random() < 0.15
    if rng.random() < 0.35:
        numbers = sum_numbers(rng)
        who = name(rng)
        asked = sum_question(who, numbers, language, "unseen" if rare else "dev")
        return _Said(asked, str(sum(numbers)), True, language, who, "sum")
    subject, relation = person(rng, KNOWN), pick(rng, RELATIONS)
    split: Split = "unseen" if rare else "dev"
    told = say(FACTS[subject, relation], language)
    if _OWNER[subject, relation, language] != split and rng.random() < 0.6:
        asked = EVAL_QUESTIONS[split][language][relation].format(s=subject)
        return _Said(asked, told, True, language, subject, relation)
    stated = STATEMENTS[language][relation].format(s=subject, v=told)
    return _Said(stated, told, False, language, subject, relation)


def text(rng: random.Random) -> str:
    """A fact told, or a fact or sum asked and answered, in one of the languages."""
    said = _training(rng)
    return f"Q: {said.text}\nA: {said.answer}\n" if said.is_question else f"{said.text}\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """(question, answer); a statement is asked for by its beginning."""
    said = _training(rng)
    return _asked(said), said.answer


def _asked(said: _Said) -> str:
    return said.text if said.is_question else said.text.removesuffix(f" {said.answer} .")


def exercise(rng: random.Random) -> Exercise:
    """A fact or a sum asked for; wrong is another value of the relation, or a sum near by."""
    said = _training(rng)
    if said.relation == "sum":
        right = int(said.answer)
        others = [str(n) for n in range(max(0, right - 3), right + 4) if n != right]
    else:
        values = (say(value, said.language) for value in VALUES[said.relation])
        others = [value for value in values if value != said.answer]
    return Exercise(
        question=_asked(said),
        answer=said.answer,
        target=said.answer,
        wrong=pick(rng, others),
        fields={"language": said.language, "subject": said.subject, "relation": said.relation},
    )


def items(split: Split) -> list[Item]:
    """Fourteen facts and ten sums in each of the four languages."""
    rng = random.Random(f"languages {split}")
    people = HEAD[:DEV_KNOWN] if split == "dev" else PEOPLE[DEV_KNOWN:KNOWN]
    found = []
    for language in LANGUAGES:
        facts = [(s, r) for s in people for r in RELATIONS if _OWNER[s, r, language] == split]
        found += [_fact_item(s, r, language, split) for s, r in spread(facts, 14, language, split)]
        sums: dict[tuple[int, int], Item] = {}
        while len(sums) < 10:
            numbers = sum_numbers(rng)
            sums.setdefault(numbers, _sum_item(len(found) + len(sums), numbers, language, split))
        found += sums.values()
    return found


def _fact_item(subject: str, relation: str, language: str, split: Split) -> Item:
    choices = tuple(say(v, language) for v in choices_for(subject, relation, language + split))
    told = say(FACTS[subject, relation], language)
    return Item(
        question=EVAL_QUESTIONS[split][language][relation].format(s=subject),
        answer=told,
        target=told,
        rephrased=f"{subject} : {relation} , {language} ?",
        choices=choices,
        fields={"language": language, "subject": subject, "relation": relation},
    )


def _sum_item(index: int, numbers: tuple[int, int], language: str, split: Split) -> Item:
    start, step = numbers
    right = start + step
    who = asker(split, index)
    near = [n for n in range(max(0, right - 4), right + 5) if n != right]
    wrong = sorted(near, key=lambda n: digest("near", *numbers, language, n))[:3]
    choices = sorted([right, *wrong], key=lambda n: digest("order", *numbers, language, n))
    return Item(
        question=sum_question(who, numbers, language, split),
        answer=str(right),
        target=str(right),
        rephrased=f"{start} {'plus' if step > 0 else 'minus'} {abs(step)} , {who} ?",
        choices=tuple(map(str, choices)),
        fields={"language": language, "subject": who, "relation": "sum"},
    )

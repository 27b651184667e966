"""What a recipe's stages read, made once: shards, their certificate, and the clean copies.

    prepared = prepare(recipe, recipe_file="r.yaml", base=Path("recipes"), root=Path("runs"), ...)
    prepared.clean["facts"].files          # what is left of a source, as shards
    plants_found(prepared)                 # [("facts", 518, 518)]: planted, and found

Each step looks for its result before it works, so a second call costs no more than the looking.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decon.policy import load_policy, members
from evalsuite import hubdata
from evalsuite.errors import UserError
from evalsuite.files import content_id, read_json, read_jsonl, remove_partials, write_json
from evalsuite.progress import Progress, silent
from evalsuite.records import Suite
from evalsuite.suites import load_suite
from trainloop import sources
from trainloop.objectives import load_objective
from trainloop.records import Recipe

if TYPE_CHECKING:
    from decon.policy import Policy
    from decon.records import Certificate


@dataclass(frozen=True, kw_only=True, slots=True)
class Clean:
    """A source after decontamination."""

    id: str
    """Names the kept documents: the source's shards and what was removed from them."""
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A recipe with everything its stages read."""

    recipe: Recipe
    recipe_file: str
    root: Path
    mirror: Path | None
    suites: dict[str, Suite]
    """By their own names, which scores and certificates carry, whatever path a recipe gives."""
    certificate: Certificate
    decon_folder: Path
    references: dict[str, str]
    """Suite name -> hash of its reference texts, which change when its data do."""
    items: list[dict[str, Any]]
    """What became of each eval item: decon's items.jsonl, the hit ones only."""
    shards: dict[str, sources.Shards]
    clean: dict[str, Clean]
    documents: dict[str, int]
    """Documents that are left of each source."""
    model_folder: Path | None
    """The pretrained model's folder; None for a model from scratch."""


def prepare(
    recipe: Recipe,
    *,
    recipe_file: str,
    base: Path,
    root: Path,
    mirror: Path | None,
    progress: Progress = silent,
) -> Prepared:
    """Make the sources' shards and their clean copies under `root`, or find them there.

    Every source that a stage, a variant or the tokenizer reads is decontaminated against
    all suites of the recipe. Raises UserError for what is missing or wrong in the recipe.
    """
    suites = _load_suites(recipe, base)
    for stage in recipe.stages:
        if not stage.soup:
            load_objective(stage.objective)
    policy = load_policy(_beside(base, recipe.policy))
    if recipe.sweep is not None:
        judge = list(suites.values())[recipe.suites.index(recipe.sweep.suite)]
        if judge.role != "dev":
            raise UserError(
                f"sweep: suite {judge.name!r} is {judge.role}, and only a dev suite may decide; "
                "name one as the sweep's suite"
            )
    folder = None
    if recipe.model.path is not None:
        folder = _model_folder(recipe.model.path, base, root, mirror)
    rooms = ("sources", "decon", "tokens", "tokenizers", "checkpoints", "models", "heldout")
    for room in (*rooms, "begun", "known", "pairs", "reference"):
        remove_partials(root / room)
    shards = {
        name: sources.materialise(
            name, recipe.sources[name], root=root, base=base, mirror=mirror, progress=progress
        )
        for name in _used_sources(recipe)
    }
    certificate, references = _decontaminate(recipe, policy, suites, shards, root, mirror, progress)
    _check_dropped(certificate)
    decon_folder = root / "decon" / certificate.id
    clean = {
        name: Clean(
            id=_clean_id(shard, decon_folder),
            files=tuple(decon_folder / file for file in certificate.clean[name]),
        )
        for name, shard in shards.items()
    }
    return Prepared(
        recipe=recipe,
        recipe_file=recipe_file,
        root=root,
        mirror=mirror,
        suites=suites,
        certificate=certificate,
        decon_folder=decon_folder,
        references=references,
        items=[row for row in _rows_of(decon_folder / "items.jsonl") if row["sources"]],
        shards=shards,
        clean=clean,
        documents={
            name: source.read - source.removed for name, source in certificate.sources.items()
        },
        model_folder=folder,
    )


def _model_folder(path: str, base: Path, root: Path, mirror: Path | None) -> Path:
    """The folder of a pretrained model; a GGUF file is unpacked into one."""
    if not path.endswith(".gguf"):
        return hubdata.model_folder(path, base=base, mirror=mirror)
    file = base / Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"model: no GGUF file {file}; give its path from the recipe's folder")
    from trainloop.model import unpacked

    return unpacked(file, root)


def _load_suites(recipe: Recipe, base: Path) -> dict[str, Suite]:
    """The recipe's suites by their own names, in its order; paths start at its folder."""
    suites: dict[str, Suite] = {}
    for given in recipe.suites:
        suite = load_suite(_beside(base, given))
        if suite.name in suites:
            raise UserError(f"suites: {given!r} is a second suite named {suite.name!r}; drop one")
        suites[suite.name] = suite
    return suites


def _beside(base: Path, name: str) -> str:
    """`name`, or where it lies from the recipe's folder when it is a file's."""
    return str(base / name) if name.endswith((".yaml", ".yml")) else name


def deciding_suite(prepared: Prepared) -> Suite:
    """The suite whose scores decide the recipe's sweep."""
    sweep = prepared.recipe.sweep
    assert sweep is not None, "only a sweep decides"
    return list(prepared.suites.values())[prepared.recipe.suites.index(sweep.suite)]


def _used_sources(recipe: Recipe) -> list[str]:
    """The sources that have documents of their own: on-policy pairs are made from prompts."""
    used = {name for stage in recipe.stages for name in (*stage.mixture, *stage.held_out)}
    if recipe.sweep:
        used |= {name for mixture in recipe.sweep.variants.values() for name in mixture}
    if recipe.model.tokenizer:
        used |= set(recipe.model.tokenizer.train_on)
    written = {name: recipe.sources[name].pairs for name in used}
    return sorted({pairs.prompts if pairs else name for name, pairs in written.items()})


def _check_dropped(certificate: Certificate) -> None:
    """UserError for a source that the recipe reads and decontamination dropped whole."""
    for name, source in certificate.sources.items():
        if source.decision == "drop_source":
            told = "on_unseen" if "on_unseen" in source.because else "on_dev"
            raise UserError(
                f"source {name!r} is dropped: {source.because}; take it out of the recipe, or "
                f"write `{told}: drop_documents` there to drop its hit documents only"
            )


def _decontaminate(
    recipe: Recipe,
    policy: Policy,
    suites: dict[str, Suite],
    shards: dict[str, sources.Shards],
    root: Path,
    mirror: Path | None,
    progress: Progress,
) -> tuple[Certificate, dict[str, str]]:
    """The certificate of these shards against these suites, and each suite's reference hash.

    A certificate is named by what decided it, the reference texts included, and these take
    lm-eval to render. So known/ remembers which certificate a policy, suites, sources and an
    untouched mirror led to: a finished run is recognised without lm-eval.
    """
    from decon.documents import READING
    from decon.ngrams import NORMALISATION
    from decon.records import read_certificate

    fingerprints = {name: suite.fingerprint for name, suite in suites.items()}
    ids = {name: shard.id for name, shard in shards.items()}
    decided = [recipe.on_dev, recipe.on_unseen, *map(asdict, (policy, *members(policy)))]
    key = [NORMALISATION, READING, fingerprints, decided, ids, hubdata.mirror_stamp(mirror)]
    known = root / "known" / f"{content_id(key)}.json"
    if known.is_file():
        memory = read_json(known)
        folder = root / "decon" / memory["certificate"]
        if folder.is_dir():
            return read_certificate(folder), memory["references"]

    from decon.clean import clean
    from decon.index import build_index
    from decon.scan import find_shards, identify
    from evalsuite.references import references

    progress("references", 0, 1)
    texts = {name: references(suite, mirror=mirror) for name, suite in suites.items()}
    progress("references", 1, 1)
    hashes = {name: content_id([asdict(ref) for ref in refs]) for name, refs in texts.items()}
    index = build_index(
        [ref for refs in texts.values() for ref in refs],
        policy=policy,
        suites=fingerprints,
        roles={name: suite.role for name, suite in suites.items()},
    )
    files = {name: list(shard.files) for name, shard in shards.items()}
    on_dev, on_unseen = recipe.on_dev, recipe.on_unseen
    identity = identify(find_shards(files, ()), index, (), on_dev=on_dev, on_unseen=on_unseen)
    folder = root / "decon" / identity.id
    certificate = clean(files, index, folder, on_dev=on_dev, on_unseen=on_unseen, progress=progress)
    write_json(known, {"certificate": certificate.id, "references": hashes})
    return certificate, hashes


def _clean_id(shard: sources.Shards, folder: Path) -> str:
    """Policies or suites that remove the same documents leave the same data, hence the same id.

    Why a document went, and where the run folder stands, is no part of it.
    """
    rows = _rows_of(folder / "removed" / f"{shard.name}.jsonl")
    removed = sorted((Path(row["file"]).name, row["line"]) for row in rows)
    return content_id([shard.id, removed]) if removed else shard.id


def plants_found(prepared: Prepared) -> list[tuple[str, int, int]]:
    """(source, planted, found) for each source with planted items: found means a hit names it.

    Of an item that was long enough to be cut, any piece counts.
    """
    found: dict[str, set[str]] = {}
    for row in _rows_of(prepared.decon_folder / "hits.jsonl"):
        found.setdefault(row["source"], set()).add(_whole(row["document_id"]))
    result = []
    for name, shard in prepared.shards.items():
        if shard.planted:
            rows = _rows_of(shard.folder / "planted.jsonl")
            planted = {_whole(row["document_id"]) for row in rows}
            result.append((name, len(planted), len(planted & found.get(name, set()))))
    return result


def _whole(document_id: str) -> str:
    """The id of the document that a piece (`id#number`) was cut from."""
    return document_id.partition("#")[0]


def _rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]

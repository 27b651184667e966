"""Which evaluation items stood in which training source, and how do the matches look?"""

import streamlit as st

from leaderboards import charts, store, tables, view

board = view.open_board()
certificates = view.ask(store.certificates)
if certificates.empty:
    view.nothing(
        "No decontamination has been ingested yet. Every training run makes one, by its recipe's "
        "`policy`:",
        f"assay board ingest {board.parent}",
    )

certificate = view.choose("Decontamination", certificates, key="certificate")
key = {"certificate": certificate["certificate"]}
st.text(f"Policy: {certificate['policy']}")
if certificate["about"]:
    with st.expander("What this policy finds, and what it cannot"):
        st.text(certificate["about"])

st.markdown("##### Sources")
view.table(view.ask(store.sources, **key))

st.markdown("##### Items hit, by source and task")
cells = view.ask(store.cells, **key)
if cells.empty:
    st.info("This certificate names no task.")
else:
    st.altair_chart(charts.overlap(cells), width="stretch")

st.markdown("##### What could be found at all")
view.table(view.ask(store.coverage, **key))
st.caption("A text with fewer words than one n-gram can never match, and a rephrased one does not.")

st.markdown("##### Example matches")
places = view.ask(store.hit_counts, **key)
if places.empty:
    st.caption("No match was found.")
    st.stop()
place = view.choose("Source and task", places, key="matches")
shown = 5
pages = tables.pages(place["hits"], shown)
page = st.number_input(f"Page (of {pages})", 1, pages, key="page") if pages > 1 else 1
examples = view.ask(
    store.hits,
    **key,
    source=place["source"],
    suite=place["suite"],
    task=place["task"],
    limit=shown,
    page=page,
)
for example in examples.to_dict("records"):
    with st.container(border=True):
        st.text(example["what"])
        st.text(example["where"])
        st.caption("Training document, matching words between ⟦ and ⟧")
        st.code(example["document"], language=None, wrap_lines=True)
        st.caption("Evaluation item")
        st.code(example["reference"], language=None, wrap_lines=True)

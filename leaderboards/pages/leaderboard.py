"""Which mixture is best at what, and is that sure?"""

import streamlit as st

from leaderboards import charts, store, tables, view

board = view.open_board()
suites = view.ask(store.suites)
if suites.empty:
    view.nothing("No checkpoint has been scored yet. Train and score one:", "assay quickstart")

suite = view.choose("Suite", suites, key="suite")
if suite["role"] == "unseen":
    st.caption("An unseen suite: it never steers a decision, it only checks one.")
key = {"suite": suite["suite"], "fingerprint": suite["suite_fingerprint"]}

for verdict in view.ask(store.verdicts, suite=suite["suite"]).to_dict("records"):
    with st.container(border=True):
        st.text(verdict["sentence"])
        with st.expander("The comparisons behind this verdict"):
            view.table(view.ask(store.comparisons, sweep=verdict["sweep"]))

left, right = st.columns(2)
every = left.toggle("Every checkpoint, not only final ones", key="every", bind="query-params")
standings = view.ask(store.leaderboard, **key, all_checkpoints=every)
if standings.empty:
    view.nothing("No run has a score on this suite yet.", f"assay board ingest {board.parent}")

leaks = tables.twins(standings)
apart = right.toggle(
    "Clean and dirty items apart", key="apart", bind="query-params", disabled=leaks.empty
)
subsets = tables.subsets(standings) if apart else ["all"]

view.table(tables.leaderboard_table(standings), column_config={"checkpoint": {"pinned": True}})
st.caption(
    "Best first. A chance-corrected mean (0 is guessing, 1 is perfect), or bits per byte where the "
    "column says so (lower is better), with its 95 % interval. The dashed line is guessing."
)

overall, others = tables.by_capability(standings)
low = tables.lowest(standings)
view.in_columns(
    2,
    overall + others,
    lambda piece: st.altair_chart(
        charts.standings(piece[1], title=piece[0], subsets=subsets, low=low), width="stretch"
    ),
)

st.markdown("##### Items that stood in the training data")
if leaks.empty:
    st.caption("No item of this suite was found in the training data of these checkpoints.")
else:
    st.caption(
        "Dirty items stood in documents that decontamination found, and removed before training; "
        "clean items in none. A dirty score far above the clean one says that something was missed."
    )
    view.table(leaks)

with st.expander("Scores of single tasks"):
    capability = st.selectbox("Capability", [name for name, _ in others], key="capability")
    view.table(view.ask(store.task_scores, **key, capability=capability))
    st.caption("On the task's own scale, not chance-corrected. Final checkpoints, all items.")

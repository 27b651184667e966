"""How did a run's scores and loss move from stage to stage?"""

import streamlit as st

from leaderboards import charts, store, tables, view

board = view.open_board()
runs = view.ask(store.runs)
if runs.empty:
    view.nothing("No run has been ingested yet. Train one:", "assay quickstart")

left, right = st.columns(2)
with left:
    run = view.choose("Run", runs, key="run")
stages = view.ask(store.run_stages, run=run["run"])
view.table(tables.stages_table(stages))

losses = view.ask(store.losses, run=run["run"])
suites = view.ask(store.suites)
if suites.empty:
    st.info("No checkpoint has been scored yet.")
else:
    with right:
        suite = view.choose("Suite", suites, key="suite")
    curve = view.ask(
        store.curve,
        run=run["run"],
        suite=suite["suite"],
        fingerprint=suite["suite_fingerprint"],
    )
    if curve.empty:
        st.info("No checkpoint of this run has been scored on this suite.")
    else:
        st.markdown("##### Scores over training tokens")
        st.caption(
            "A dot per scored checkpoint with its 95 % interval; dashed lines: a stage begins."
        )
        overall, others = tables.by_capability(curve)
        view.in_columns(
            3,
            overall + others,
            lambda piece: st.altair_chart(
                charts.curve(piece[1], stages, title=piece[0]), width="stretch"
            ),
        )
        with st.expander("The numbers behind the pictures"):
            view.table(tables.curve_table(curve))

st.markdown("##### Training loss")
if losses.empty:
    st.info("This run has no training log. Ingest again once its stages have logged:")
    st.code(f"assay board ingest {board.parent}", language=None)
else:
    st.altair_chart(charts.loss(losses, stages), width="stretch")

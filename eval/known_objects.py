"""Whether a data set's `objects` are everything visible: what CHAIR and absent things of POPE take for granted."""

import datasets

PARTIAL = {
    "muse": "only what MUSE annotates for its questions",
    "paco_lvis": "only classes of LVIS that a picture was checked for",
}
CAPTION = "caption"  # the kind of GranD_f's questions, under whatever name they were converted


def unknown_objects(dataset: datasets.Dataset) -> str | None:
    """Why `objects` say too little to call anything hallucinated; None where they are everything visible.

    Args:
        dataset: of the schema, which defines `objects` so; converters of some formats know only a part of them.
    """
    if not any(names for names in dataset["objects"][:]):
        return "`objects` are not known in this data set"
    for row in dataset.select_columns(["questions"]):  # pictures stay encoded
        for question in row["questions"]:
            source = question["id"].partition("/")[0]
            if source in PARTIAL:
                return f"`objects` of {source} are {PARTIAL[source]}, not everything visible"
            if question["kind"] == CAPTION:
                return f"`objects` of {source} are only what its captions name, not everything visible"
    return None

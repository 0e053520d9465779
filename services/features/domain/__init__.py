"""The one computation of features, online and offline: declare → compile → fold → read. Pure and synchronous.

    declared      features as a site declares them
    aggregates    what is counted, and where each count lies in a state
    feature_set   declared features compiled to the layout of vectors, rows and model columns
    members       fold of one member's behavior; the state as a blob
    reading       states of members → the vector of a subject
    catalog       items and how their categories spread over buckets
    item_counts   fold of behavior on one item; the state as a blob
    item_rows     catalog and counts → one float32 row an item

It owns no storage and no clock: positions and times come with the events.
"""

"""One self-contained HTML page of a run and its evaluations; the parts are strangers, ``page`` joins them."""

"""The parts of ``lit-mmpg compare``: the file, the cells, the table, the verdicts and the report."""

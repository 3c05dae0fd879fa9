"""What measures lund beside its rivals: `make bench`, `make bench-guard`.

    works.py       what is measured, by name
    rivals.py      who is measured: lund, tgt, qemu-nbd, and the limit (bare_target.c, bare_target.py)
    runner.py      the rounds
    report.py      table, JSON, Markdown, plot
    guard.py       the hot path counted in instructions, whatever the speed of the machine
    *_client.c     the initiators, one over libiscsi and a leaner one over a socket
"""

"""The SCSI device server, sans I/O: SAM-5 tasks and unit attentions, SPC-4 and SBC-3 commands.

Knows `store.BlockStore` and nothing else of the world.  How to read it: `cdbs` declares every CDB, `commands`
is the table that joins each to its handler and rules, `router` carries a command through that table, `unit` and
`it_nexus` hold the state; the handlers live in modules by subject.
"""

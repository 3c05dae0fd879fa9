"""`lun`, the administrator's command.

It speaks HTTP over the management socket and knows nothing else of the daemon: what it prints are the
objects of the API (docs/api.md).  Imports that cost time (httpx, rich) wait until they are needed.

    sizes    512, 10k, 4m, 20g, 1t
    client   the socket, the requests, refusals
    output   tables for people, plain data for pipes, --json for programs
    volumes, luns, igroups, snapshots, policies, clones, iscsi, events, transfer    the commands
    main     the command tree

Exit status: 0 done, 1 refused, 2 usage, 3 daemon not reachable.
"""

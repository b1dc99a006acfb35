"""The wire: generated from ``proto/covector/v1`` by ``make stubs``; not edited by hand."""

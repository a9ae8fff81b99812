"""The map of what the labs import, and of what lies underneath.

What labs use:
    data        texts, instructions, random tokens
    models      how large a model is, whether it fits, loading and calling it
    experts     which experts a mixture's tokens go to
    memory      what a piece of code takes, what a cache holds
    timing      seconds of prefill and decoding, sweeps over context
    scan        the selective scan, and giving it to transformers
    evaluate    perplexity and bits per byte
    plots       figures
    results     measured rows, sweeps that go on where they stopped, what is kept over a restart
    reference   what machines of the course measured before
    kits        what one lab needs beside these: small models, tasks, routing, fine-tuning, the forecast
    checks      what each exercise must satisfy

What lies underneath, from the bottom up; a room imports only from those before it:
    errors      sentences instead of tracebacks
    units       bytes as people read them
    files       the course's folders, and writing a file whole or not at all
    hub         the catalogue of sources, the caches, downloads; no torch
    machine     free memory, the watchdog, meters, kernels, graphs, what is set for a whole process
    notebooks   labs and answers as notebooks; executing and rendering them
"""
